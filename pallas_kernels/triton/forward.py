"""The forward kernel: a program for each block of queries, with an online softmax over the keys that it reaches."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.triton.launch import launch
from pallas_kernels.triton.tiles import Keys, Program, chunks, empty_tile, load_tile, scores, store_tile, weighted
from pallas_kernels.walk import Walk


def forward(
    spec: Spec, walk: Walk, sizes: BlockSizes, query: jax.Array, key: Keys, value: jax.Array, limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype, and lse float32 [B, T, H]; the walk is over queries."""
    out = jax.ShapeDtypeStruct((*query.shape[:3], value.shape[-1]), value.dtype)
    lse = jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)
    out, lse = launch(_forward, spec, walk, sizes, (query, key, value), limits, (out, lse), own_is_query=True)
    return out, lse


def _forward(program: Program, query, key: Keys, value, out, lse) -> None:
    spec, rows = program.spec, program.walk.rows
    q = load_tile(query, program.inside_positions, key.query_chunks)
    before, factor = spec.factors

    def attend(carry, keys, positions, edge):
        acc, maximum, total = carry
        s = scores(q, key.load(positions))
        s = s if before == 1.0 else s * before
        visible = program.visible(keys, positions, edge)
        new_maximum = jnp.maximum(maximum, (s if visible is None else jnp.where(visible, s, -jnp.inf)).max(1))
        # A row that has seen nothing yet, or keys of -inf only, has no maximum to subtract.
        finite = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
        p = jnp.exp2(s * factor - finite[:, None] * factor)
        if visible is not None:
            p = jnp.where(visible, p, 0.0)
        rescale = jnp.exp2((maximum - finite) * factor)
        total = total * rescale + p.sum(1)
        keep = program.keep(positions)
        if keep is not None:
            p = jnp.where(keep, p, 0.0)
        new = weighted(p, load_tile(value, positions))
        acc = tuple(x * rescale[:, None] + y for x, y in zip(acc, new, strict=True))
        return acc, new_maximum, total

    empty = empty_tile(rows, chunks(value.shape[-1]))
    nothing = jnp.full(rows, -jnp.inf, jnp.float32), jnp.zeros(rows, jnp.float32)
    acc, maximum, total = program.visit(attend, (empty, *nothing))
    live = maximum != -jnp.inf  # true of NaN, which must not be hidden
    norm = jnp.where(live, 1 / (total * (1 - spec.dropout_rate)), 0.0)
    store_tile(out, program.own_positions, tuple(x * norm[:, None] for x in acc))
    log_sum_exp = jnp.where(live, (maximum * factor + jnp.log2(total)) / LOG2_E, -jnp.inf)
    plt.store(lse.at[program.own_positions], log_sum_exp, mask=program.own_positions < lse.shape[0])
