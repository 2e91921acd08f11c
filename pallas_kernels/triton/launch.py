"""From arrays to a running kernel: grid, block specs and the program object that the kernels are written against."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.batching import over_batches
from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.spans import visible_spans
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.triton.tiles import Program
from pallas_kernels.walk import Walk


def launch(
    kernel: Callable[..., None],
    spec: Spec,
    walk: Walk,
    sizes: BlockSizes,
    arrays: tuple[Any, ...],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    *,
    own_is_query: bool,
) -> tuple[jax.Array, ...]:
    """Runs kernel(program, *array refs, *output refs) for every block of the walk, every head and batch entry.

    Arrays, or trees of them, and outputs are [B, length, H, head_dim] or [B, length, H]; a program's refs are those of
    its own head, [length, head_dim] or [length]. What all heads share has 1 in place of H, what the whole batch
    shares 1 in place of B.
    """
    H = arrays[0].shape[2]
    own_ids, other_ids = limits.ids(own_is_query)
    spans = None if own_ids is None else visible_spans(walk, own_ids, other_ids)

    def guarded(array_refs, limit_refs, span_ref, *output_refs):
        program = Program.here(spec, walk, limit_refs, span_ref, own_is_query)
        pl.when(program.block.live)(lambda: kernel(program, *array_refs, *output_refs))

    def call(*operands):
        arrays, limits, spans = jax.tree.unflatten(tree, operands)
        batch = len(arrays[0])
        shapes = tuple(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in outputs)
        span_spec = None if spans is None else pl.BlockSpec((None, *spans.shape[1:]), lambda p, h, b: (b, 0, 0, 0))
        return pl.pallas_call(
            guarded,
            grid=(walk.programs, H, batch),
            in_specs=(jax.tree.map(_block_spec, arrays), jax.tree.map(_block_spec, limits), span_spec),
            out_specs=tuple(map(_block_spec, shapes)),
            out_shape=shapes,
            compiler_params=plt.CompilerParams(num_warps=sizes.num_warps, num_stages=sizes.num_stages),
            interpret=spec.interpret,
            name=f"banded_attention{kernel.__name__}",
        )(arrays, limits, spans)

    operands, tree = jax.tree.flatten((arrays, limits, spans))
    common = frozenset(i for i, x in enumerate(operands) if len(x) < len(operands[0]))
    return over_batches(call, [x.ndim for x in operands], [len(x.shape) for x in outputs], common)(*operands)


def _block_spec(x) -> pl.BlockSpec:
    """All of what one batch entry and head has, by the number of dimensions."""
    match len(x.shape):
        case 4:
            own_batch, own_head = x.shape[0] > 1, x.shape[2] > 1
            return pl.BlockSpec(
                (None, x.shape[1], None, x.shape[3]), lambda p, h, b: (b * own_batch, 0, h * own_head, 0)
            )
        case 3:
            return pl.BlockSpec((None, x.shape[1], None), lambda p, h, b: (b, 0, h))
        case 2:
            return pl.BlockSpec((None, x.shape[1]), lambda p, h, b: (b, 0))
        case _:
            return pl.BlockSpec((1,), lambda p, h, b: (b,))
