"""Kernels under vmap and on several devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def over_batches(
    call: Callable, operand_ranks: list[int], output_ranks: list[int], common: frozenset[int] = frozenset()
) -> Callable:
    """`call`, whose operands and outputs all start with the batch, under vmap and on several devices.

    To XLA a kernel is a black box, for which it would gather all operands on every device. This tells it that batches
    can be split. A vmapped axis becomes part of the batch, which JAX's own rule for kernels cannot offer beneath this.

    The operands with the numbers in `common`, not the first, may start with 1 in place of the batch: every device gets
    them as a whole.
    """

    def partition(mesh, operands, results):
        batch_axes = operands[0].sharding.spec[:1]
        split, whole = NamedSharding(mesh, P(*batch_axes)), NamedSharding(mesh, P())
        shardings = tuple(whole if i in common else split for i in range(len(operands)))
        return mesh, call, jax.tree.map(lambda _: split, results), shardings

    factors: list[str] = []  # all but the batch, in the order of their axes

    def axes(rank: int, has_batch: bool = True) -> str:
        new = [f"x{len(factors) + i}" for i in range(rank - has_batch)]
        factors.extend(new)
        return " ".join(["b"] * has_batch + new)

    operand_axes = [axes(rank, i not in common) for i, rank in enumerate(operand_ranks)]
    output_axes = [axes(rank) for rank in output_ranks]
    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=lambda mesh, operands, results: partition(mesh, operands, results)[2],
        sharding_rule=" -> ".join(map(", ".join, (operand_axes, output_axes))),
        need_replication_factors=tuple(factors),
    )
    batched = custom_vmap(partitioned)

    @batched.def_vmap
    def fold(axis_size: int, in_batched: list[bool], *operands: jax.Array):
        batch = operands[0].shape[in_batched[0]]
        still_common = frozenset(i for i in common if not in_batched[i])
        folded = []
        for i, (x, is_batched) in enumerate(zip(operands, in_batched, strict=True)):
            if i not in still_common:
                x = jnp.broadcast_to(x if is_batched else x[None], (axis_size, batch, *x.shape[1 + is_batched :]))
                x = x.reshape(-1, *x.shape[2:])
            folded.append(x)
        results = over_batches(call, operand_ranks, output_ranks, still_common)(*folded)
        return tuple(x.reshape(axis_size, -1, *x.shape[1:]) for x in results), (True,) * len(results)

    return batched
