"""Kernels under vmap and on several devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def over_batches(call: Callable, operand_ranks: list[int], output_ranks: list[int]) -> Callable:
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
