"""The pipeline that the Hopper kernels share: one warpgroup loads, the others compute.

A program goes through several items of the walk, one after the other. Of each it owns rows of one side, 64 for each
computing warpgroup. The loading warpgroup sends them and, block by block, the other side's rows through rings of shared
memory by TMA, and is ahead of the others, beyond the end of an item. Each computing warpgroup takes part in the blocks
that its own rows see.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.batching import over_batches
from pallas_kernels.mosaic.pipeline import Kernel, Ring, compute_item
from pallas_kernels.mosaic.tiles import ROWS, Program, aligned, in_place, store_numbers
from pallas_kernels.spans import spans_of_limits
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

# Registers of a thread that computes and of one that loads, by the number of computing warpgroups: together as many as
# there are at launch, 3 * 168 and 4 * 128. With one, all may keep the 255 that a thread can have.
_REGISTERS = {2: (240, 24), 3: (160, 32)}


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a kernel is cut.

    Attributes:
      warpgroups: that compute, 64 own rows each.
      columns: of a block of the other side.
      stages: blocks of the other side in the ring: the one at work, the next, and with `overlap` the one before.
      own_stages: items whose own rows are in shared memory at the same time.
      overlap: products of a block run while the next block's scores become weights, which takes registers.
      persistent: a program for each core of the GPU goes through several items; else each item has its own.
      unmasked_loop: blocks inside the band have a loop of their own, without masks, which takes registers.
    """

    warpgroups: int
    columns: int
    stages: int
    own_stages: int = 1
    overlap: bool = True
    persistent: bool = True
    unmasked_loop: bool = True

    def __post_init__(self) -> None:
        if self.warpgroups not in (1, 2, 3):
            raise ValueError(f"warpgroups is {self.warpgroups}; 1 to 3 were expected")
        if self.columns <= 0 or self.columns % 64:
            raise ValueError(f"columns is {self.columns}; a multiple of 64 was expected")
        if self.stages < (least := 3 if self.overlap else 2):  # with fewer, the warpgroups wait for each other
            raise ValueError(f"stages is {self.stages}; with overlap={self.overlap} at least {least} are needed")

    @property
    def rows(self) -> int:
        return ROWS * self.warpgroups


def launch(
    kernel: Kernel,
    spec: Spec,
    walk: Walk,
    tiling: Tiling,
    own: tuple[jax.Array, ...],
    other: tuple[jax.Array, ...],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    num_cores: int,
    *,
    own_is_query: bool,
) -> tuple[jax.Array, ...]:
    """Runs the kernel for every block of the walk, every head and batch entry.

    Arrays and outputs are [B, length, H, head_dim] ("tiles") or [B, length, H] ("lines"); the outputs have the own
    side's length. Neighbouring heads with the same dilation are one launch.
    """

    def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
        own, other, limits = jax.tree.unflatten(tree, operands)
        parts, first = [], 0
        for dilation, heads in itertools.groupby(spec.dilations):
            count = len(list(heads))
            part = dataclasses.replace(walk, dilations=(dilation,) * count)
            run = _Launch(kernel, spec, part, tiling, num_cores, first, own_is_query)
            parts.append(run(own, other, limits, outputs))
            first += count
        return tuple(x[0] if len(x) == 1 else jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))

    operands, tree = jax.tree.flatten((own, other, limits))
    if spec.interpret:  # the interpreter's side effects cannot be partitioned
        return call(*operands)
    return over_batches(call, [x.ndim for x in operands], [len(x.shape) for x in outputs])(*operands)


@dataclasses.dataclass(frozen=True)
class _Launch:
    """The heads from `first_head` on that the walk has dilations of, all the same."""

    kernel: Kernel
    spec: Spec
    walk: Walk
    tiling: Tiling
    num_cores: int
    first_head: int
    own_is_query: bool

    def __call__(
        self,
        own: tuple[jax.Array, ...],
        other: tuple[jax.Array, ...],
        limits: Limits,
        outputs: tuple[jax.ShapeDtypeStruct, ...],
    ) -> tuple[jax.Array, ...]:
        walk, tiling = self.walk, self.tiling
        batch, dilation, heads = len(own[0]), walk.dilations[0], len(walk.dilations)
        spans = spans_of_limits(walk, limits, batch, self.own_is_query)
        own_ids, other_ids = limits.ids(walk.length if self.own_is_query else walk.other_length, batch)
        if not self.own_is_query:
            own_ids, other_ids = other_ids, own_ids
        # Whole products and blocks, so that nothing is read or written beyond an end. What is added is never seen.
        own_views = [_view(x, dilation, ROWS) for x in own]
        other_views = [_view(x, dilation, tiling.columns) for x in other]
        if own_ids is not None and other_ids is not None:
            own_views.append(_view(own_ids, dilation, ROWS))
            other_views.append(_view(other_ids, dilation, tiling.columns))
        own_rows, other_rows = own_views[0].shape[1], other_views[0].shape[1]
        padded = dataclasses.replace(walk, length=own_rows * dilation)
        scalars = [x for x in (limits.dropout_streams, spans) if x is not None]

        def output_view(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (batch, heads, dilation, own_rows)
            if len(x.shape) == 4:
                shape = (batch, own_rows, dilation, heads, x.shape[3])
            return jax.ShapeDtypeStruct(shape, x.dtype)

        out_views = [output_view(x) for x in outputs]
        items = padded.programs * heads * batch
        programs = min(self.num_cores, items) if tiling.persistent else items

        def body(*refs: Any) -> None:
            remaining = iter(refs)

            def take(n: int) -> list[Any]:
                return list(itertools.islice(remaining, n))

            own_refs, other_refs, scalar_refs = take(len(own_views)), take(len(other_views)), take(len(scalars))
            out_refs = take(len(out_views))
            own_smem, other_smem, out_smem = take(len(own_views)), take(len(other_views)), take(len(out_views))
            numbers = next(remaining)
            own_full, own_empty, full, empty = take(4)
            own_ring, ring = Ring(own_full, own_empty, tiling.own_stages), Ring(full, empty, tiling.stages)
            wg = lax.axis_index("wg")

            def num_items() -> Any:
                return lax.div(items - lax.axis_index("program") + programs - 1, jnp.int32(programs))

            def item(i: Any) -> tuple[Program, Any]:
                """What this warpgroup has to do as number i of its program's items, and for which batch entry."""
                number = lax.axis_index("program") + i * programs
                block, number = lax.rem(number, jnp.int32(padded.programs)), lax.div(number, jnp.int32(padded.programs))
                head, b = lax.rem(number, jnp.int32(heads)), lax.div(number, jnp.int32(heads))
                stream = scalar_refs[0][b] if limits.dropout_streams is not None else None
                span = None
                if spans is not None:
                    span = scalar_refs[-1][b, 0, 0, block], scalar_refs[-1][b, 0, 1, block]
                walk_block = aligned(padded.block(block, 0, span), tiling.columns)
                first = pl.multiple_of(walk_block.first + wg * ROWS, ROWS)
                program = Program(
                    spec=self.spec, walk=padded, columns=tiling.columns, other_rows=other_rows,
                    own_is_query=self.own_is_query, head=head + self.first_head, stream=stream, block=walk_block,
                    first=first, numbers=numbers.at[wg],
                )  # fmt: skip
                return program, b

            @pl.when(wg < tiling.warpgroups)
            def compute() -> None:
                if tiling.warpgroups in _REGISTERS:
                    plgpu.set_max_registers(_REGISTERS[tiling.warpgroups][0], action="increase")

                store_numbers(numbers.at[wg])

                def work(i, passed):
                    program, b = item(i)
                    own_ring.wait_full(i)
                    own = [smem.at[own_ring.slot(i), wg] for smem in own_smem]
                    sums, state = compute_item(
                        self.kernel, program, own, other_smem, ring, passed, functools.partial(own_ring.release, i),
                        overlap=tiling.overlap, unmasked_loop=tiling.unmasked_loop,
                    )  # fmt: skip
                    results = self.kernel.finish(program, sums, state)
                    program, b = item(in_place(i))  # computed again, so as not to take registers meanwhile
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the item before
                    for x, smem in zip(results, out_smem, strict=True):
                        smem.at[wg][...] = x.astype(smem.dtype)
                    plgpu.commit_smem()

                    @pl.when(program.first < own_rows)  # of a residue's last item not all warpgroups have rows
                    def store() -> None:
                        for ref, smem in zip(out_refs, out_smem, strict=True):
                            head = program.head - self.first_head
                            target = _rows(ref, b, head, program.block.residue, program.first, ROWS)
                            plgpu.copy_smem_to_gmem(smem.at[wg], target)

                    return passed + program.block.count

                lax.fori_loop(0, num_items(), work, jnp.int32(0))
                plgpu.wait_smem_to_gmem(0)

            @pl.when(wg == tiling.warpgroups)
            def load() -> None:
                if tiling.warpgroups in _REGISTERS:
                    plgpu.set_max_registers(_REGISTERS[tiling.warpgroups][1], action="decrease")

                def work(i, passed):
                    program, b = item(i)
                    block = program.block

                    def load_own() -> None:
                        slot = own_ring.slot(i)
                        own_ring.wait_empty(i)
                        for (ref, smem), g in itertools.product(
                            zip(own_refs, own_smem, strict=True), range(tiling.warpgroups)
                        ):
                            first = pl.multiple_of(jnp.minimum(block.first + g * ROWS, own_rows - ROWS), ROWS)
                            source = _rows(ref, b, program.head, block.residue, first, ROWS)
                            plgpu.copy_gmem_to_smem(source, smem.at[slot, g], own_ring.full.at[slot])

                    def fill(n, _) -> None:
                        slot = ring.slot(passed + n)
                        ring.wait_empty(passed + n)
                        for ref, smem in zip(other_refs, other_smem, strict=True):
                            first = program.first_of(n)
                            source = _rows(ref, b, program.head, block.other_residue, first, tiling.columns)
                            plgpu.copy_gmem_to_smem(source, smem.at[slot], ring.full.at[slot])

                    # Where the own rows have to wait for those of the item before, what needs not wait goes first.
                    early = jnp.minimum(block.count, tiling.stages) if tiling.own_stages == 1 else 0
                    lax.fori_loop(0, early, fill, None)
                    load_own()
                    lax.fori_loop(early, block.count, fill, None)
                    return passed + block.count

                ring.drain(lax.fori_loop(0, num_items(), work, jnp.int32(0)))
                own_ring.drain(num_items())

        own_arrivals, other_arrivals = len(own_views) * tiling.warpgroups, len(other_views)
        results = plgpu.kernel(
            body,
            out_type=tuple(out_views),
            scratch_types=[
                *(_shared(x, (tiling.own_stages, tiling.warpgroups), ROWS) for x in own_views),
                *(_shared(x, (tiling.stages,), tiling.columns) for x in other_views),
                *(_shared(x, (tiling.warpgroups,), ROWS) for x in out_views),
                plgpu.SMEM((tiling.warpgroups, tiling.columns), jnp.int32),
                plgpu.Barrier(num_arrivals=own_arrivals, num_barriers=tiling.own_stages),
                plgpu.Barrier(num_arrivals=tiling.warpgroups, num_barriers=tiling.own_stages),
                plgpu.Barrier(num_arrivals=other_arrivals, num_barriers=tiling.stages),
                plgpu.Barrier(num_arrivals=tiling.warpgroups, num_barriers=tiling.stages),
            ],
            grid=(programs,),
            grid_names=("program",),
            num_threads=tiling.warpgroups + 1,
            thread_name="wg",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            interpret=plgpu.InterpretGPUParams(detect_races=True) if self.spec.interpret else None,
            kernel_name=f"banded_attention_{self.kernel.name}",
        )(*own_views, *other_views, *scalars)
        return tuple(_unview(x, walk.length) for x in results)


def _view(x: jax.Array, dilation: int, rows: int) -> jax.Array:
    """Rows of each residue modulo the dilation, filled up to whole blocks.

    [B, length, H, D] becomes [B, R, dilation, H, D], without a copy where nothing is to be filled up. As TMA wants a
    line's numbers side by side, [B, length, H] becomes [B, H, dilation, R], ids [B, length] become [B, dilation, R].
    """
    padding = [(0, 0)] * x.ndim
    padding[1] = 0, -x.shape[1] % (dilation * rows)
    if padding[1][1]:
        x = jnp.pad(x, padding)
    x = x.reshape(len(x), -1, dilation, *x.shape[2:])
    match x.ndim:
        case 5:
            return x
        case 4:
            return x.transpose(0, 3, 2, 1)
        case _:
            return x.transpose(0, 2, 1)


def _unview(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_view` for tiles and lines."""
    if x.ndim == 4:
        x = x.transpose(0, 3, 2, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def _rows(ref: Any, batch: Any, head: Any, residue: Any, first: Any, count: int) -> Any:
    """A tile [count, head_dim] or a line [count] of what `_view` makes."""
    match len(ref.shape):
        case 5:
            return ref.at[batch, pl.ds(first, count), residue, head]
        case 4:
            return ref.at[batch, head, residue, pl.ds(first, count)]
        case _:
            return ref.at[batch, residue, pl.ds(first, count)]


def _shared(view: Any, slots: tuple[int, ...], count: int) -> Any:
    """Room for `count` rows of the view in each slot."""
    if len(view.shape) != 5:
        return plgpu.SMEM((*slots, count), view.dtype)
    transforms = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((*slots, count, view.shape[-1]), view.dtype, transforms=transforms)
