"""The pipeline that the Hopper kernels share: one warpgroup loads, the others compute.

A program owns rows of one side, 64 for each computing warpgroup. The loading warpgroup sends the other side's rows
through a ring of shared memory, block by block, by TMA; each computing warpgroup takes part in the blocks that its own
rows see.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.batching import over_batches
from pallas_kernels.mosaic.tiles import ROWS, Program, aligned
from pallas_kernels.spans import spans_of_limits
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

# Registers of a thread that computes and of one that loads, by the number of computing warpgroups: there are 512 for
# one thread of each warpgroup together. With one, all may keep the 255 that a thread can have.
_REGISTERS = {2: (232, 40), 3: (160, 32)}


@dataclasses.dataclass(frozen=True)
class Tiling:
    """warpgroups: that compute, 64 rows each. columns: of a block of the other side. stages: blocks in the ring."""

    warpgroups: int
    columns: int
    stages: int

    @property
    def rows(self) -> int:
        return ROWS * self.warpgroups


class Kernel(NamedTuple):
    """What a computing warpgroup does.

    Attributes:
      name: of the compiled kernel.
      start: (program, own) -> carry; `own` are references to its rows in shared memory.
      step: (program, own, other, n, carry) -> carry; `other` are references to block n.
      finish: (program, own, carry) -> one array for each output.
    """

    name: str
    start: Callable
    step: Callable
    finish: Callable


def launch(
    kernel: Kernel,
    spec: Spec,
    walk: Walk,
    tiling: Tiling,
    own: tuple[jax.Array, ...],
    other: tuple[jax.Array, ...],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
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
            parts.append(_launch(kernel, spec, part, tiling, first, own, other, limits, outputs, own_is_query))
            first += count
        return tuple(x[0] if len(x) == 1 else jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))

    operands, tree = jax.tree.flatten((own, other, limits))
    if spec.interpret:  # the interpreter's side effects cannot be partitioned
        return call(*operands)
    return over_batches(call, [x.ndim for x in operands], [len(x.shape) for x in outputs])(*operands)


def _launch(
    kernel: Kernel,
    spec: Spec,
    walk: Walk,
    tiling: Tiling,
    first_head: int,
    own: tuple[jax.Array, ...],
    other: tuple[jax.Array, ...],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    own_is_query: bool,
) -> tuple[jax.Array, ...]:
    """The heads from `first_head` on that the walk has dilations of, all the same."""
    batch, dilation, heads = len(own[0]), walk.dilations[0], len(walk.dilations)
    spans = spans_of_limits(walk, limits, batch, own_is_query)
    own_ids, other_ids = limits.ids(walk.length if own_is_query else walk.other_length, batch)
    if not own_is_query:
        own_ids, other_ids = other_ids, own_ids
    # Whole blocks, so that nothing is read or written beyond an end. What is added is never seen.
    own_views = [_view(x, dilation, tiling.rows) for x in own]
    other_views = [_view(x, dilation, tiling.columns) for x in other]
    if own_ids is not None and other_ids is not None:
        own_views.append(_view(own_ids, dilation, tiling.rows))
        other_views.append(_view(other_ids, dilation, tiling.columns))
    own_rows, other_rows = own_views[0].shape[1], other_views[0].shape[1]
    padded = dataclasses.replace(walk, length=own_rows * dilation)
    scalars = [x for x in (limits.dropout_streams, spans) if x is not None]

    def output_view(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (
            (batch, own_rows, dilation, heads, x.shape[3]) if len(x.shape) == 4 else (batch, heads, dilation, own_rows)
        )
        return jax.ShapeDtypeStruct(shape, x.dtype)

    out_views = [output_view(x) for x in outputs]

    def body(*refs: Any) -> None:
        remaining = iter(refs)

        def take(n: int) -> list[Any]:
            return list(itertools.islice(remaining, n))

        own_refs, other_refs, scalar_refs = take(len(own_views)), take(len(other_views)), take(len(scalars))
        out_refs = take(len(out_views))
        own_smem, other_smem, out_smem = take(len(own_views)), take(len(other_views)), take(len(out_views))
        own_full, full, empty = remaining
        wg, b = lax.axis_index("wg"), lax.axis_index("batch")
        block, head = lax.axis_index("block"), lax.axis_index("head") + first_head
        stream = scalar_refs[0][b] if limits.dropout_streams is not None else None
        span = None
        if spans is not None:
            span = scalar_refs[-1][b, 0, 0, block], scalar_refs[-1][b, 0, 1, block]
        walk_block = aligned(padded.block(block, 0, span), tiling.columns)
        program = Program(
            spec=spec, walk=padded, columns=tiling.columns, other_rows=other_rows, own_is_query=own_is_query,
            head=head, stream=stream, block=walk_block, first=pl.multiple_of(walk_block.first + wg * ROWS, ROWS),
        )  # fmt: skip

        @pl.when(wg < tiling.warpgroups)
        def compute() -> None:
            if tiling.warpgroups in _REGISTERS:
                plgpu.set_max_registers(_REGISTERS[tiling.warpgroups][0], action="increase")
            for ref, smem in zip(own_refs, own_smem, strict=True):
                source = _rows(ref, b, head, walk_block.residue, program.first, ROWS)
                plgpu.copy_gmem_to_smem(source, smem.at[wg], own_full.at[wg])
            plgpu.barrier_wait(own_full.at[wg])
            own = [smem.at[wg] for smem in own_smem]
            begin, end = program.live_blocks

            def skip(n, _) -> None:
                slot = lax.rem(n, jnp.int32(tiling.stages))
                plgpu.barrier_wait(full.at[slot])
                plgpu.barrier_arrive(empty.at[slot])

            def step(n, carry):
                slot = lax.rem(n, jnp.int32(tiling.stages))
                plgpu.barrier_wait(full.at[slot])
                carry = kernel.step(program, own, [smem.at[slot] for smem in other_smem], n, carry)
                plgpu.barrier_arrive(empty.at[slot])
                return carry

            lax.fori_loop(0, begin, skip, None)
            carry = lax.fori_loop(begin, end, step, kernel.start(program, own))
            lax.fori_loop(end, walk_block.count, skip, None)
            for x, smem in zip(kernel.finish(program, own, carry), out_smem, strict=True):
                smem.at[wg][...] = x.astype(smem.dtype)
            plgpu.commit_smem()
            for ref, smem in zip(out_refs, out_smem, strict=True):
                target = _rows(ref, b, lax.axis_index("head"), walk_block.residue, program.first, ROWS)
                plgpu.copy_smem_to_gmem(smem.at[wg], target)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == tiling.warpgroups)
        def load() -> None:
            if tiling.warpgroups in _REGISTERS:
                plgpu.set_max_registers(_REGISTERS[tiling.warpgroups][1], action="decrease")

            def fill(n, _) -> None:
                slot = lax.rem(n, jnp.int32(tiling.stages))
                pl.when(n >= tiling.stages)(lambda: plgpu.barrier_wait(empty.at[slot]))
                for ref, smem in zip(other_refs, other_smem, strict=True):
                    source = _rows(ref, b, head, walk_block.other_residue, program.first_of(n), tiling.columns)
                    plgpu.copy_gmem_to_smem(source, smem.at[slot], full.at[slot])

            def drain(n, _) -> None:
                plgpu.barrier_wait(empty.at[lax.rem(n, jnp.int32(tiling.stages))])

            lax.fori_loop(0, walk_block.count, fill, None)
            lax.fori_loop(jnp.maximum(walk_block.count - tiling.stages, 0), walk_block.count, drain, None)

    results = plgpu.kernel(
        body,
        out_type=tuple(out_views),
        scratch_types=[
            *(_shared(x, tiling.warpgroups, ROWS) for x in own_views),
            *(_shared(x, tiling.stages, tiling.columns) for x in other_views),
            *(_shared(x, tiling.warpgroups, ROWS) for x in out_views),
            plgpu.Barrier(num_arrivals=len(own_views), num_barriers=tiling.warpgroups),
            plgpu.Barrier(num_arrivals=len(other_views), num_barriers=tiling.stages),
            plgpu.Barrier(num_arrivals=tiling.warpgroups, num_barriers=tiling.stages),
        ],
        grid=(padded.programs, heads, batch),
        grid_names=("block", "head", "batch"),
        num_threads=tiling.warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if spec.interpret else None,
        kernel_name=f"banded_attention_{kernel.name}",
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


def _shared(view: Any, slots: int, count: int) -> Any:
    if len(view.shape) != 5:
        return plgpu.SMEM((slots, count), view.dtype)
    transforms = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((slots, count, view.shape[-1]), view.dtype, transforms=transforms)
