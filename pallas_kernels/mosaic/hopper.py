"""How a kernel runs on Hopper: of a program's warpgroups one loads, the others compute, by warpgroup products.

Of each item a program owns rows of one side, 64 for each computing warpgroup. The loading warpgroup sends them and,
block by block, the other side's rows through rings of shared memory by TMA, and is ahead of the others, beyond the end
of an item. Each computing warpgroup takes part in the blocks that its own rows see, in the order that keeps the tensor
cores busy.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic.items import OwnRows, Scalars, Schedule
from pallas_kernels.mosaic.kernel import Arrays, Kernel, over_blocks
from pallas_kernels.mosaic.tiles import down, empty_tile, in_place, load_tile, multiply, note_loads, store_numbers
from pallas_kernels.mosaic.tiling import ROWS, Tiling
from pallas_kernels.mosaic.views import shared_rows

# Registers of a thread that computes and of one that loads, by the number of computing warpgroups: together as many as
# there are at launch, 3 * 168, 4 * 128 and 5 * 96. With one, all may keep the 255 that a thread can have.
_REGISTERS = {2: (240, 24), 3: (160, 32), 4: (112, 32)}


class Ring(NamedTuple):
    """Slots that the loading warpgroup fills and the others read; number k of what goes through takes slot k % size.

    full, empty: a barrier for each slot; on the first all arrays that are loaded arrive, on the second all readers.
    """

    full: Any
    empty: Any

    @classmethod
    def with_barriers(cls, size: int, arrays: int, readers: int) -> "Ring":
        return cls(
            plgpu.Barrier(num_arrivals=arrays, num_barriers=size),
            plgpu.Barrier(num_arrivals=readers, num_barriers=size),
        )

    @property
    def size(self) -> int:
        return self.full.shape[0]

    def slot(self, k: Any) -> Any:
        return lax.rem(k.astype(jnp.uint32), jnp.uint32(self.size)).astype(jnp.int32)  # unsigned: an `and` for 4

    def wait_full(self, k: Any) -> None:
        plgpu.barrier_wait(self.full.at[self.slot(k)])

    def release(self, k: Any) -> None:
        plgpu.barrier_arrive(self.empty.at[self.slot(k)])

    def wait_empty(self, k: Any) -> None:
        pl.when(k >= self.size)(lambda: plgpu.barrier_wait(self.empty.at[self.slot(k)]))

    def drain(self, count: Any) -> None:
        """Waits until all of the `count` that went through are read, so that no barrier is left in use."""

        def wait(k, _) -> None:
            plgpu.barrier_wait(self.empty.at[self.slot(k)])

        lax.fori_loop(jnp.maximum(count - self.size, 0), count, wait, None)


class Turns(NamedTuple):
    """Who of the computing warpgroups may start products: each in turn, once for every block of an item.

    barriers: one for each warpgroup, on which the one before arrives; none where all may at any time.
    """

    barriers: Any

    @classmethod
    def of(cls, tiling: Tiling) -> Self:
        return cls(plgpu.Barrier(num_barriers=tiling.warpgroups) if tiling.turns else None)

    def take(self, warpgroup: Any) -> None:
        if self.barriers is not None:
            plgpu.barrier_wait(self.barriers.at[warpgroup])

    def pass_on(self, warpgroup: Any) -> None:
        if self.barriers is not None:
            following = warpgroup + 1
            plgpu.barrier_arrive(self.barriers.at[jnp.where(following < self.barriers.shape[0], following, 0)])


class Shared(NamedTuple):
    """In shared memory, rows of all arrays: slot, warpgroup and row of own ones, slot and row of other ones.

    numbers: 0, 1, 2, ... of the columns, for each computing warpgroup.
    """

    own: dict[str, Any]
    other: dict[str, Any]
    outputs: tuple[Any, ...]
    numbers: Any
    own_ring: Ring
    ring: Ring
    turns: Turns

    @classmethod
    def of(cls, schedule: Schedule[Tiling], arrays: Arrays) -> Self:
        tiling = schedule.tiling
        readers = tiling.warpgroups
        return cls(
            own=jax.tree.map(lambda x: shared_rows(x, (tiling.own_stages, readers), ROWS), arrays.own),
            other=jax.tree.map(lambda x: shared_rows(x, (tiling.stages,), tiling.columns), arrays.other),
            outputs=tuple(shared_rows(x, (readers,), ROWS) for x in arrays.outputs),
            numbers=plgpu.SMEM((readers, tiling.columns), jnp.int32),
            own_ring=Ring.with_barriers(tiling.own_stages, arrays=len(arrays.own) * readers, readers=readers),
            ring=Ring.with_barriers(tiling.stages, arrays=len(arrays.other), readers=readers),
            turns=Turns.of(tiling),
        )


def run(kernel: Kernel, schedule: Schedule[Tiling], arrays: Arrays, scalars: Scalars, shared: Shared) -> None:
    """What each warpgroup of a program does."""
    warpgroup, warpgroups = lax.axis_index("warpgroup"), schedule.tiling.warpgroups
    computing, loading = _REGISTERS.get(warpgroups, (None, None))

    @pl.when(warpgroup < warpgroups)
    def _() -> None:
        if computing is not None:
            plgpu.set_max_registers(computing, action="increase")
        compute(kernel, schedule, arrays, scalars, shared, warpgroup)

    @pl.when(warpgroup == warpgroups)
    def _() -> None:
        if loading is not None:
            plgpu.set_max_registers(loading, action="decrease")
        load(schedule, arrays, scalars, shared)


def compute(
    kernel: Kernel, schedule: Schedule[Tiling], arrays: Arrays, scalars: Scalars, shared: Shared, warpgroup: Any
) -> None:
    """What a computing warpgroup does."""
    numbers = shared.numbers.at[warpgroup]
    store_numbers(numbers)
    plgpu.commit_smem()

    def work(i, passed):
        rows = schedule.item(i, scalars).own_rows(warpgroup, numbers)
        shared.own_ring.wait_full(i)
        own = {name: ref.at[shared.own_ring.slot(i), warpgroup] for name, ref in shared.own.items()}
        release_own = functools.partial(shared.own_ring.release, i)
        sums, state = compute_item(kernel, rows, own, shared, warpgroup, passed, release_own)
        results = kernel.finish(rows, sums, state)
        item = schedule.item(in_place(i), scalars)  # computed again, so as not to take registers meanwhile
        first = item.own_rows(warpgroup, numbers).first
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the item before
        for x, ref in zip(results, shared.outputs, strict=True):
            ref.at[warpgroup][...] = x.astype(ref.dtype)
        plgpu.commit_smem()

        @pl.when(first < schedule.own_rows)  # of a residue's last item not all warpgroups have rows
        def store() -> None:
            for array, ref in zip(arrays.outputs, shared.outputs, strict=True):
                source = ref.at[warpgroup]
                plgpu.copy_smem_to_gmem(source, item.output_part(array, first, source.shape))

        return passed + item.block.count

    pl.when(warpgroup == schedule.tiling.warpgroups - 1)(lambda: shared.turns.pass_on(warpgroup))
    lax.fori_loop(0, schedule.count(), work, jnp.int32(0))
    pl.when(warpgroup == 0)(lambda: shared.turns.take(warpgroup))
    plgpu.wait_smem_to_gmem(0)


def load(schedule: Schedule[Tiling], arrays: Arrays, scalars: Scalars, shared: Shared) -> None:
    """What the loading warpgroup does."""
    tiling, ring, own_ring = schedule.tiling, shared.ring, shared.own_ring

    def work(i, passed):
        item = schedule.item(i, scalars)
        block = item.block

        def load_own() -> None:
            slot = own_ring.slot(i)
            own_ring.wait_empty(i)
            for (name, array), reader in itertools.product(arrays.own.items(), range(tiling.warpgroups)):
                first = jnp.minimum(block.first + reader * ROWS, schedule.own_rows - ROWS)
                target = shared.own[name].at[slot, reader]
                source = item.own_part(array, pl.multiple_of(first, ROWS), target.shape)
                plgpu.copy_gmem_to_smem(source, target, own_ring.full.at[slot])

        def load_block(n, _) -> None:
            slot = ring.slot(passed + n)
            ring.wait_empty(passed + n)
            for name, array in arrays.other.items():
                target = shared.other[name].at[slot]
                plgpu.copy_gmem_to_smem(item.other_part(array, n, target.shape), target, ring.full.at[slot])

        # Where the own rows have to wait for those of the item before, what needs not wait goes first.
        early = jnp.minimum(block.count, tiling.stages) if tiling.own_stages == 1 else 0
        lax.fori_loop(0, early, load_block, None)
        load_own()
        lax.fori_loop(early, block.count, load_block, None)
        return passed + block.count

    ring.drain(lax.fori_loop(0, schedule.count(), work, jnp.int32(0)))
    own_ring.drain(schedule.count())


def compute_item(
    kernel: Kernel,
    rows: OwnRows,
    own: dict[str, Any],
    shared: Shared,
    warpgroup: Any,
    passed: Any,
    release_own: Callable[[], None],
) -> tuple[tuple[jax.Array, ...], Any]:
    """(sums, state) over all blocks of an item, of which the first is number `passed` of what goes through the ring."""
    begin, _, _, end = rows.bounds
    interpret, tiling = rows.spec.interpret, rows.item.schedule.tiling
    ring, turns = shared.ring, shared.turns

    def slots(n: Any) -> dict[str, Any]:
        return {name: ref.at[ring.slot(passed + n)] for name, ref in shared.other.items()}

    def scored(n: Any) -> list[list[tuple[Any, Any]]]:
        other = slots(n)
        return [[(operands[mine], other[theirs]) for mine, theirs in pairs] for pairs in kernel.scores]

    def summed(n: Any) -> list[Any]:
        other = slots(n)
        return [each.of(other) for each in kernel.sums]

    def of_sums(weights: Any) -> list[Any]:
        return [weights[each.weights] for each in kernel.sums]

    def weigh(is_edge: bool, n: Any, state: Any, *scores: Callable):
        return kernel.weigh(rows, own, slots(n), n, is_edge, scores, state)

    def product(pairs: list[tuple[Any, Any]]) -> jax.Array:
        return multiply((pairs,), lambda s: s(), (), (), (), interpret)[1]

    def rescaled(sums: Any, rescale: Any) -> tuple[jax.Array, ...]:
        return sums if rescale is None else tuple(x * down(rescale, x.shape[1]) for x in sums)

    def release(n: Any) -> None:
        note_loads(interpret)
        ring.release(passed + n)

    def add_up(sums: Any, weights: Any, n: Any) -> tuple[jax.Array, ...]:
        sums, _ = multiply((), lambda: None, sums, of_sums(weights), summed(n), interpret)
        release(n)
        return sums

    def skip(n, _) -> None:
        ring.wait_full(passed + n)
        ring.release(passed + n)
        turns.take(warpgroup)
        turns.pass_on(warpgroup)

    def step(is_edge, n, carry):
        sums, state = carry
        ring.wait_full(passed + n)
        if tiling.scores_together:
            _, weighed = multiply(scored(n), functools.partial(weigh, is_edge, n, state), (), (), (), interpret)
        else:
            weighed = weigh(is_edge, n, state, *(functools.partial(product, pairs) for pairs in scored(n)))
        weights, state, rescale = weighed
        return add_up(rescaled(sums, rescale), weights, n), state

    def weigh_and_wait(is_edge: bool, n: Any, state: Any, *scores: Callable):
        turns.pass_on(warpgroup)  # the products are under way
        # The weights stay float32 here: rounded beside products in flight, all products would wait for each other.
        weighed = in_place(weigh(is_edge, n, state, *scores))
        # Here because a branch, which this wait is, is what the assembler does not move the wait for sums across.
        pl.when(n + 1 < end)(functools.partial(ring.wait_full, passed + n + 1))
        return weighed

    def step_beside_sums(is_edge, n, carry):
        sums, weights, state = carry
        then = functools.partial(weigh_and_wait, is_edge, n, state)
        turns.take(warpgroup)
        sums, weighed = multiply(scored(n), then, sums, of_sums(weights), summed(n - 1), interpret)
        release(n - 1)
        weights, state, rescale = weighed
        return rescaled(sums, rescale), weights, state

    def done_with_own() -> None:
        note_loads(interpret)
        release_own()

    lax.fori_loop(0, begin, skip, None)
    mine = [mine for pairs in kernel.scores for mine, _ in pairs]
    operands = {name: load_tile(own[name]) if tiling.own_in_registers else own[name] for name in mine}
    sums, state = tuple(empty_tile(each.size) for each in kernel.sums), kernel.start(own)
    if tiling.overlap:
        ring.wait_full(passed + begin)
        then = functools.partial(weigh_and_wait, True, begin, state)
        turns.take(warpgroup)
        _, (weights, state, _) = multiply(scored(begin), then, (), (), (), interpret)
        sums, weights, state = over_blocks(rows, step_beside_sums, begin + 1, (sums, weights, state))
        done_with_own()
        sums = add_up(sums, weights, end - 1)
    else:
        sums, state = over_blocks(rows, step, begin, (sums, state))
        done_with_own()
    lax.fori_loop(end, rows.item.block.count, skip, None)
    return sums, state
