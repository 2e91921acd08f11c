"""The backward kernels: dq walks over queries and dk/dv over keys, each beside what its blocks reach.

Both compute the probabilities anew from lse. No program adds to what another one stores, so there are no atomics, and
the result is the same, bit for bit, however the programs are scheduled.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plt

from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.triton.launch import launch
from pallas_kernels.triton.tiles import Program, Tile, empty_tile, load_tile, scores, store_tile, weighted
from pallas_kernels.walk import Walk


def backward_dq(
    spec: Spec, walk: Walk, sizes: BlockSizes, arrays: tuple[jax.Array, ...], limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """dq, and delta = sum(out * dout) - dlse, float32 [B, T, H]: what the softmax's gradient takes off every row.

    The walk is over queries; arrays: query, key, value, out, dout [B, T, H, D], lse and dlse [B, T, H].
    """
    query = arrays[0]
    dq = jax.ShapeDtypeStruct(query.shape, query.dtype)
    delta = jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)
    dq, delta = launch(_dq, spec, walk, sizes, arrays, limits, (dq, delta), own_is_query=True)
    return dq, delta


def backward_dkdv(
    spec: Spec, walk: Walk, sizes: BlockSizes, arrays: tuple[jax.Array, ...], limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """dk and dv. The walk is over keys; arrays: query, key, value, dout [B, T, H, D], lse and delta [B, T, H]."""
    dk, dv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[1:3])
    dk, dv = launch(_dkdv, spec, walk, sizes, arrays, limits, (dk, dv), own_is_query=False)
    return dk, dv


def _dq(program: Program, query, key, value, out, dout, lse, dlse, dq, delta) -> None:
    own = program.inside_positions
    q, do, o = (load_tile(ref, own) for ref in (query, dout, out))
    row_lse = lse[own]
    row_delta = sum((x.astype(jnp.float32) * y.astype(jnp.float32)).sum(1) for x, y in zip(o, do, strict=True))
    # A row that sees nothing takes no part, whatever cotangent its infinite lse brings.
    row_delta = jnp.where(row_lse == -jnp.inf, 0.0, row_delta - dlse[own])
    plt.store(delta.at[program.own_positions], row_delta, mask=program.own_positions < delta.shape[0])

    def attend(acc: Tile, keys, positions, edge) -> Tile:
        k, v = load_tile(key, positions), load_tile(value, positions)
        p = _probabilities(program, scores(q, k), row_lse[:, None], keys, positions, edge)
        dp = scores(do, v)
        keep = program.keep(positions)
        if keep is not None:
            dp = jnp.where(keep, dp / (1 - program.spec.dropout_rate), 0.0)
        return _add(acc, weighted(p * (dp - row_delta[:, None]), k))

    acc = program.visit(attend, empty_tile(program.walk.rows, query.shape[-1]))
    store_tile(dq, program.own_positions, _times(acc, program.spec.scale))


def _dkdv(program: Program, query, key, value, dout, lse, delta, dk, dv) -> None:
    own, rows = program.inside_positions, program.walk.rows
    k, v = load_tile(key, own), load_tile(value, own)
    kept = 1 - program.spec.dropout_rate

    def attend(carry, queries, positions, edge):
        dk, dv = carry
        q, do = load_tile(query, positions), load_tile(dout, positions)
        # Transposed, [keys, queries], as the products below need them.
        p = _probabilities(program, scores(k, q), lse[positions][None, :], queries, positions, edge)
        dp = scores(v, do)
        keep, dropped = program.keep(positions), p
        if keep is not None:
            dropped, dp = jnp.where(keep, p, 0.0), jnp.where(keep, dp / kept, 0.0)
        dv = _add(dv, weighted(dropped, do))
        return _add(dk, weighted(p * (dp - delta[positions][None, :]), q)), dv

    empty = empty_tile(rows, key.shape[-1]), empty_tile(rows, value.shape[-1])
    dk_tile, dv_tile = program.visit(attend, empty)
    store_tile(dk, program.own_positions, _times(dk_tile, program.spec.scale))
    store_tile(dv, program.own_positions, _times(dv_tile, 1 / kept))


def _probabilities(program: Program, s: jax.Array, lse: jax.Array, rows, positions, edge: bool) -> jax.Array:
    p = jnp.exp2(s * (program.spec.scale * LOG2_E) - lse * LOG2_E)
    visible = program.visible(rows, positions, edge)
    return p if visible is None else jnp.where(visible, p, 0.0)


def _add(x: Tile, y: Tile) -> Tile:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _times(x: Tile, factor: float) -> Tile:
    return tuple(a * factor for a in x)
