"""From arrays to a running kernel: grid, block specs and the program object that the kernels are written against."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plt
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.spans import visible_spans
from pallas_kernels.triton.tiles import Limits, Program, Spec
from pallas_kernels.walk import Walk


def launch(
    kernel: Callable[..., None],
    spec: Spec,
    walk: Walk,
    sizes: BlockSizes,
    arrays: tuple[jax.Array, ...],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    *,
    own_is_query: bool,
) -> tuple[jax.Array, ...]:
    """Runs kernel(program, *array refs, *output refs) for every block of the walk, every head and batch entry.

    Arrays and outputs are [B, length, H, head_dim] or [B, length, H]; a program's refs are those of its own head,
    [length, head_dim] or [length].
    """
    B, _, H, _ = arrays[0].shape
    spans = _spans(walk, limits, B, own_is_query)

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
    return _over_batches(call, [x.ndim for x in operands], [len(x.shape) for x in outputs])(*operands)


def _over_batches(call: Callable, operand_ranks: list[int], output_ranks: list[int]) -> Callable:
    """`call`, whose operands and outputs all start with the batch, under vmap and on several devices.

    To XLA a kernel is a black box, for which it would gather all operands on every device. This tells it that batches
    can be split. A vmapped axis becomes part of the batch, which JAX's own rule for kernels cannot offer beneath this.
    """

    def partition(mesh, operands, results):
        batch_axes = operands[0].sharding.spec[:1]
        sharding = NamedSharding(mesh, P(*batch_axes))
        return mesh, call, jax.tree.map(lambda _: sharding, results), jax.tree.map(lambda _: sharding, operands)

    factors = iter(f"x{i}" for i in range(sum(operand_ranks) + sum(output_ranks)))
    sides = [
        [" ".join(["b", *(next(factors) for _ in range(rank - 1))]) for rank in ranks]
        for ranks in (operand_ranks, output_ranks)
    ]
    others = sum(operand_ranks) + sum(output_ranks) - len(operand_ranks) - len(output_ranks)
    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, operands, results: partition(mesh, operands, results)[2],
        sharding_rule=" -> ".join(map(", ".join, sides)),
        need_replication_factors=tuple(f"x{i}" for i in range(others)),
    )
    batched = custom_vmap(partitioned)

    @batched.def_vmap
    def fold(axis_size: int, in_batched: list[bool], *operands: jax.Array):
        folded = [
            (x if is_batched else jnp.broadcast_to(x, (axis_size, *x.shape))).reshape(-1, *x.shape[1 + is_batched :])
            for x, is_batched in zip(operands, in_batched, strict=True)
        ]
        results = batched(*folded)
        return tuple(x.reshape(axis_size, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return batched


def _block_spec(x) -> pl.BlockSpec:
    """All of what one batch entry and head has, by the number of dimensions."""
    match len(x.shape):
        case 4:
            return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda p, h, b: (b, 0, h, 0))
        case 3:
            return pl.BlockSpec((None, x.shape[1], None), lambda p, h, b: (b, 0, h))
        case 2:
            return pl.BlockSpec((None, x.shape[1]), lambda p, h, b: (b, 0))
        case _:
            return pl.BlockSpec((1,), lambda p, h, b: (b,))


def _spans(walk: Walk, limits: Limits, batch: int, own_is_query: bool) -> jax.Array | None:
    if limits.key_mask is None and limits.query_ids is None:
        return None
    lengths = (walk.length, walk.other_length) if own_is_query else (walk.other_length, walk.length)
    query_ids, key_ids = (
        jnp.zeros((batch, length), jnp.int32) if ids is None else ids
        for ids, length in zip((limits.query_ids, limits.key_ids), lengths, strict=True)
    )
    queries = query_ids, jnp.ones(query_ids.shape, bool)
    keys = key_ids, jnp.ones(key_ids.shape, bool) if limits.key_mask is None else limits.key_mask != 0
    return visible_spans(walk, queries, keys) if own_is_query else visible_spans(walk, keys, queries)
