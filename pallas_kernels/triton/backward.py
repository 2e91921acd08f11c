"""The backward kernels: dq walks over queries, dk/dv and the shared key's gradient over keys, beside what they reach.

All compute the probabilities anew from lse. No program adds to what another one stores, so there are no atomics, and
the result is the same, bit for bit, however the programs are scheduled.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plt

from pallas_kernels.block_sizes import BlockSizes
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.triton.launch import launch
from pallas_kernels.triton.tiles import Keys, Program, Tile, chunks, empty_tile, load_tile, scores, store_tile, weighted
from pallas_kernels.walk import Walk


def backward_dq(
    spec: Spec, walk: Walk, sizes: BlockSizes, arrays: tuple[Any, ...], limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """dq, and delta = sum(out * dout) - dlse, float32 [B, T, H]: what the softmax's gradient takes off every row.

    The walk is over queries; arrays: query, Keys, value, out, dout [B, T, H, D], lse and dlse [B, T, H].
    """
    query = arrays[0]
    dq = jax.ShapeDtypeStruct(query.shape, query.dtype)
    delta = jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)
    dq, delta = launch(_dq, spec, walk, sizes, arrays, limits, (dq, delta), own_is_query=True)
    return dq, delta


def backward_dkdv(
    spec: Spec, walk: Walk, sizes: BlockSizes, arrays: tuple[Any, ...], limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """dk and dv. The walk is over keys; arrays: query, Keys, value, dout [B, T, H, D], lse and delta [B, T, H]."""
    dk, dv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (arrays[1].own, arrays[2]))
    dk, dv = launch(_dkdv, spec, walk, sizes, arrays, limits, (dk, dv), own_is_query=False)
    return dk, dv


def backward_dshared(spec: Spec, walk: Walk, sizes: BlockSizes, arrays: tuple[Any, ...], limits: Limits) -> jax.Array:
    """The gradient of the shared key for each batch entry, float32 [B, S, R]; the rest as in `backward_dkdv`.

    A program goes through all heads of one dilation, so that no two add to the same numbers. For this, heads lie among
    the positions: head h of position i is row i * H + h of an array with a single head.
    """
    B, _, H, _ = arrays[0].shape
    dshared = jax.ShapeDtypeStruct((B, walk.length, 1, arrays[1].shared.shape[-1]), jnp.float32)

    def rows(x: jax.Array) -> jax.Array:
        return x if x.ndim == 4 and x.shape[2] < H else x.reshape(len(x), -1, 1, *x.shape[3:])

    total = jnp.zeros(dshared.shape, jnp.float32)
    for dilation, heads in itertools.groupby(range(H), lambda head: walk.dilations[head]):
        first, *others = heads

        def _dshared(program: Program, *refs, first: int = first, stop: int = first + 1 + len(others)) -> None:
            _dshared_of_heads(program, first, stop, H, *refs)

        group = dataclasses.replace(walk, dilations=(dilation,))
        total += launch(
            _dshared, spec, group, sizes, jax.tree.map(rows, arrays), limits, (dshared,), own_is_query=False
        )[0]
    return total[:, :, 0]


def _dq(program: Program, query, key: Keys, value, out, dout, lse, dlse, dq, delta) -> None:
    own = program.inside_positions
    q, do, o = load_tile(query, own, key.query_chunks), load_tile(dout, own), load_tile(out, own)
    row_lse = lse[own]
    row_delta = sum((x.astype(jnp.float32) * y.astype(jnp.float32)).sum(1) for x, y in zip(o, do, strict=True))
    # A row that sees nothing takes no part, whatever cotangent its infinite lse brings.
    row_delta = jnp.where(row_lse == -jnp.inf, 0.0, row_delta - dlse[own])
    plt.store(delta.at[program.own_positions], row_delta, mask=program.own_positions < delta.shape[0])

    def attend(acc: Tile, keys, positions, edge) -> Tile:
        k, v = key.load(positions), load_tile(value, positions)
        p = _probabilities(program, scores(q, k), row_lse[:, None], keys, positions, edge)
        _, dp = _dropped(program, p, scores(do, v), positions)
        return _add(acc, weighted(p * (dp - row_delta[:, None]), k))

    acc = program.visit(attend, empty_tile(program.walk.rows, key.query_chunks))
    store_tile(dq, program.own_positions, _times(acc, program.spec.scale), key.query_chunks)


def _dkdv(program: Program, query, key: Keys, value, dout, lse, delta, dk, dv) -> None:
    own, rows = program.inside_positions, program.walk.rows
    k, v = key.load(own), load_tile(value, own)
    empty = empty_tile(rows, key.own_chunks), empty_tile(rows, chunks(dv.shape[-1]))

    def attend(carry, queries, positions, edge):
        dk, dv = carry
        q, do = load_tile(query, positions, key.query_chunks), load_tile(dout, positions)
        # Transposed, [keys, queries], as the products below need them.
        p = _probabilities(program, scores(k, q), lse[positions][None, :], queries, positions, edge)
        dropped, dp = _dropped(program, p, scores(v, do), positions)
        dv = _add(dv, weighted(dropped, do))
        return _add(dk, weighted(p * (dp - delta[positions][None, :]), q[: len(dk)])), dv

    dk_tile, dv_tile = program.visit(attend, empty)
    store_tile(dk, program.own_positions, _times(dk_tile, program.spec.scale))
    store_tile(dv, program.own_positions, _times(dv_tile, 1 / (1 - program.spec.dropout_rate)))


def _dshared_of_heads(
    program: Program, first: int, stop: int, H: int, query, key: Keys, value, dout, lse, delta, dshared
) -> None:
    own = program.inside_positions
    shared = key.load_shared(own)

    def add_head(head, acc: Tile) -> Tile:
        of_head = dataclasses.replace(program, head=head)
        k, v = key.load_own(own * H + head), load_tile(value, own * H + head)

        def attend(acc: Tile, queries, positions, edge) -> Tile:
            rows = positions * H + head
            q, do = load_tile(query, rows, key.query_chunks), load_tile(dout, rows)
            p = _probabilities(of_head, scores(k + shared, q), lse[rows][None, :], queries, positions, edge)
            _, dp = _dropped(of_head, p, scores(v, do), positions)
            return _add(acc, weighted(p * (dp - delta[rows][None, :]), q[len(k) :]))

        return of_head.visit(attend, acc)

    acc = lax.fori_loop(first, stop, add_head, empty_tile(program.walk.rows, key.shared_chunks))
    store_tile(dshared, program.own_positions, _times(acc, program.spec.scale), key.shared_chunks)


def _probabilities(program: Program, s: jax.Array, lse: jax.Array, rows, positions, edge: bool) -> jax.Array:
    p = jnp.exp2(s * (program.spec.scale * LOG2_E) - lse * LOG2_E)
    visible = program.visible(rows, positions, edge)
    return p if visible is None else jnp.where(visible, p, 0.0)


def _dropped(program: Program, p: jax.Array, dp: jax.Array, positions) -> tuple[jax.Array, jax.Array]:
    """The probabilities that dropout keeps, not yet divided by 1 - rate, and the gradients of all."""
    keep = program.keep(positions)
    if keep is None:
        return p, dp
    return jnp.where(keep, p, 0.0), jnp.where(keep, dp / (1 - program.spec.dropout_rate), 0.0)


def _add(x: Tile, y: Tile) -> Tile:
    return tuple(a + b for a, b in zip(x, y, strict=True))


def _times(x: Tile, factor: float) -> Tile:
    return tuple(a * factor for a in x)
