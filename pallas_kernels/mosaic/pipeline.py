"""What a computing warpgroup does with an item, in the order that keeps the tensor cores busy."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic.tiles import Program, down, empty_tile, in_place, multiply


class Kernel(NamedTuple):
    """What becomes of a warpgroup's own rows and, block after block, the other side's.

    Attributes:
      name: of the compiled kernel.
      scores: pairs (own array, other array), by number: their products over head_dim are the scores.
      sums: arrays of the other side, by number: their products with weights are added up.
      start: own -> state; `own` are references to its rows in shared memory.
      weigh: (program, own, other, n, is_edge, scores, state) -> (weights, state, rescale). `other` are references to
        block n, `is_edge` says whether rows may not see all of it, `scores` are functions that wait for the products,
        float32 [64, columns]; weights are like these, one for each sum; rescale, float32 [64] or None, is for the sums
        over the blocks before.
      finish: (program, sums, state) -> one array for each output.
    """

    name: str
    scores: tuple[tuple[int, int], ...]
    sums: tuple[int, ...]
    start: Callable
    weigh: Callable
    finish: Callable


class Ring(NamedTuple):
    """Slots that the loading warpgroup fills and the others read; number k of what goes through takes slot k % size.

    full, empty: a barrier for each slot.
    """

    full: Any
    empty: Any
    size: int

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


def compute_item(
    kernel: Kernel,
    program: Program,
    own: list[Any],
    other_smem: list[Any],
    ring: Ring,
    passed: Any,
    release_own: Callable[[], None],
    *,
    overlap: bool,
    unmasked_loop: bool,
) -> tuple[tuple[jax.Array, ...], Any]:
    """(sums, state) over all blocks of an item, of which the first is number `passed` of what goes through the ring.

    With `overlap` a block's sums are added up while the next block's scores become weights, which are in registers
    beside the ones before. With `unmasked_loop` the blocks of which everything is seen have a loop of their own.
    """
    begin, inside, edge, end = program.bounds
    interpret = program.spec.interpret

    def block(n: Any) -> list[Any]:
        return [smem.at[ring.slot(passed + n)] for smem in other_smem]

    def scores(n: Any) -> list[tuple[Any, Any]]:
        return [(own[mine], block(n)[theirs]) for mine, theirs in kernel.scores]

    def summed(n: Any) -> list[Any]:
        return [block(n)[x] for x in kernel.sums]

    def fence_lines(refs: list[Any]) -> None:
        """Lines are read by loads, which without a fence need not be done when TMA is told to write there again."""
        if any(len(ref.shape) == 1 for ref in refs):
            plgpu.commit_smem()

    def weigh(is_edge: bool, n: Any, state: Any, scores: tuple[Callable, ...]):
        weighed = kernel.weigh(program, own, block(n), n, is_edge, scores, state)
        fence_lines(block(n))
        return weighed

    def product(pair: tuple[Any, Any]) -> jax.Array:
        return multiply((pair,), lambda s: s(), (), (), (), interpret)[1]

    def rescaled(sums: Any, rescale: Any) -> tuple[jax.Array, ...]:
        return sums if rescale is None else tuple(x * down(rescale, x.shape[1]) for x in sums)

    def add_up(sums: Any, weights: Any, n: Any) -> tuple[jax.Array, ...]:
        sums, _ = multiply((), lambda: None, sums, weights, summed(n), interpret)
        ring.release(passed + n)
        return sums

    def skip(n, _) -> None:
        ring.wait_full(passed + n)
        ring.release(passed + n)

    def step(is_edge, n, carry):
        sums, state = carry
        ring.wait_full(passed + n)
        products = tuple(functools.partial(product, pair) for pair in scores(n))
        weights, state, rescale = weigh(is_edge, n, state, products)
        return add_up(rescaled(sums, rescale), weights, n), state

    def weigh_and_wait(is_edge: bool, n: Any, state: Any, *scores: Callable):
        # The weights stay float32 here: rounded beside products in flight, all products would wait for each other.
        weighed = in_place(weigh(is_edge, n, state, scores))
        # Here because a branch, which this wait is, is what the assembler does not move the wait for sums across.
        pl.when(n + 1 < end)(functools.partial(ring.wait_full, passed + n + 1))
        return weighed

    def step_beside_sums(is_edge, n, carry):
        sums, weights, state = carry
        then = functools.partial(weigh_and_wait, is_edge, n, state)
        sums, weighed = multiply(scores(n), then, sums, weights, summed(n - 1), interpret)
        ring.release(passed + n - 1)
        weights, state, rescale = weighed
        return rescaled(sums, rescale), weights, state

    def run(step: Callable, first: Any, carry: Any) -> Any:
        def part(number, carry):
            """Masked blocks, and then those inside the band, of which the second part has none."""
            is_last = number > 0
            start, stop = jnp.where(is_last, edge, begin), jnp.where(is_last, end, inside)
            carry = lax.fori_loop(jnp.maximum(first, start), stop, functools.partial(step, True), carry)
            start, stop = jnp.maximum(first, inside), jnp.where(is_last, inside, edge)
            return lax.fori_loop(start, stop, functools.partial(step, False), carry)

        if not unmasked_loop:
            return lax.fori_loop(first, end, functools.partial(step, True), carry)
        # A loop of two, and of a length that the compiler does not know, as it would make three loops of it.
        return lax.fori_loop(0, jnp.where(edge < end, 2, 1), part, carry)

    def done_with_own() -> None:
        fence_lines(own)
        release_own()

    lax.fori_loop(0, begin, skip, None)
    sums, state = tuple(empty_tile(x.shape[-1]) for x in summed(begin)), kernel.start(own)
    if overlap:
        ring.wait_full(passed + begin)
        then = functools.partial(weigh_and_wait, True, begin, state)
        _, (weights, state, _) = multiply(scores(begin), then, (), (), (), interpret)
        sums, weights, state = run(step_beside_sums, begin + 1, (sums, weights, state))
        done_with_own()
        sums = add_up(sums, weights, end - 1)
    else:
        sums, state = run(step, begin, (sums, state))
        done_with_own()
    lax.fori_loop(end, program.block.count, skip, None)
    return sums, state
