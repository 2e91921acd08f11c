"""The backward kernels, which recompute the probabilities from lse: dq, whose items are blocks of queries, and dk and
dv, whose items are blocks of keys.

Nothing is added up across items, so there are no atomics, and results repeat bit for bit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic.items import OwnRows
from pallas_kernels.mosaic.kernel import Kernel
from pallas_kernels.mosaic.launch import launch
from pallas_kernels.mosaic.tiles import across, down, in_place, load_per_column, load_per_row, load_tile
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.walk import Walk


def row_terms(out: jax.Array, dout: jax.Array, lse: jax.Array, dlse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What both kernels know of every row, float32 [B, T, H]: lse in bits, and what the softmax's gradient takes off.

    Of a row that sees nothing they are inf, which makes its probabilities 0, and 0.
    """
    # Where dout was float32 before, XLA may compute delta with that; the kernels' products have what was rounded.
    dout, bits = lax.optimization_barrier(dout), _bits(lse)
    return bits, _delta(out, dout, bits, dlse)


def _bits(lse: jax.Array) -> jax.Array:
    return jnp.where(lse == -jnp.inf, jnp.inf, lse * LOG2_E)


def _delta(out: jax.Array, dout: jax.Array, bits: jax.Array, dlse: jax.Array) -> jax.Array:
    """Of whole arrays, or inside a kernel of 64 rows."""
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1) - dlse
    return jnp.where(bits == jnp.inf, 0.0, delta)


def backward_dq(
    spec: Spec, walk: Walk, tiling: Tiling | MmaTiling, arrays: tuple[jax.Array, ...], limits: Limits, gpu: Gpu
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq and, for dkdv, `row_terms`, of which the kernel computes delta where the tiling says so.

    The walk is over queries; arrays: query, key, value, out, dout [B, T, H, D], lse and dlse [B, T, H].
    """
    query, key, value, out, dout, lse, dlse = arrays
    shapes = jax.ShapeDtypeStruct(query.shape, query.dtype), jax.ShapeDtypeStruct(lse.shape, jnp.float32)

    def run(kernel: Kernel, own: tuple[jax.Array, ...], outputs: tuple[jax.ShapeDtypeStruct, ...]):
        return launch(kernel, spec, walk, tiling, own, (key, value), limits, outputs, gpu, own_is_query=True)

    if tiling.delta_inside:
        bits = _bits(lse)
        dq, delta = run(_DQ_AND_DELTA, (query, dout, out, bits, dlse), shapes)
    else:
        bits, delta = row_terms(out, dout, lse, dlse)
        (dq,) = run(_DQ, (query, dout, bits, delta), shapes[:1])
    return dq, bits, delta


def backward_dkdv(
    spec: Spec, walk: Walk, tiling: Tiling | MmaTiling, arrays: tuple[jax.Array, ...], limits: Limits, gpu: Gpu
) -> tuple[jax.Array, jax.Array]:
    """dk and dv. The walk is over keys; arrays: query, key, value, dout [B, T, H, D] and `row_terms`."""
    query, key, value, dout, bits, delta = arrays
    own, other = (key, value), (query, dout, bits, delta)
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own)
    dk, dv = launch(_DKDV, spec, walk, tiling, own, other, limits, outputs, gpu, own_is_query=False)
    return dk, dv


def _start_dq(own: list[Any]):
    return load_per_row(own[2]), load_per_row(own[3])


def _start_dq_and_delta(own: list[Any]):
    _, dout, out, *lines = own
    bits, dlse = map(load_per_row, lines[:2])
    return bits, _delta(load_tile(out), load_tile(dout), bits, dlse)


def _weigh_dq(
    rows: OwnRows, own: list[Any], other: list[Any], n: Any, is_edge: bool, scores: tuple[Callable, ...], state
):
    bits, delta = state
    _, _, *key_ids = other
    query_ids = own[len(own) - len(key_ids) :]
    s, dp = scores
    p = _probabilities(rows, s(), down(bits, rows.columns), n, is_edge, query_ids, key_ids)
    p, _, dp = _dropped(rows, p, dp())
    return (p * (dp - down(delta, rows.columns)),), state, None


def _finish_dq(rows: OwnRows, sums: tuple[jax.Array, ...], state):
    return (sums[0] * rows.spec.scale,)


def _finish_dq_and_delta(rows: OwnRows, sums: tuple[jax.Array, ...], state):
    return *_finish_dq(rows, sums, state), state[1]


def _start_dkdv(own: list[Any]):
    return ()


def _weigh_dkdv(
    rows: OwnRows, own: list[Any], other: list[Any], n: Any, is_edge: bool, scores: tuple[Callable, ...], state
):
    (_, _, *key_ids), (_, _, bits, delta, *query_ids) = own, other
    s, dp = scores
    bits = in_place(load_per_column(bits))  # beside the products, which is why it has to come before their wait
    p = _probabilities(rows, s(), across(bits), n, is_edge, key_ids, query_ids)
    p, kept, dp = _dropped(rows, p, dp())
    return (p * (dp - across(load_per_column(delta))), kept), state, None


def _finish_dkdv(rows: OwnRows, sums: tuple[jax.Array, ...], state):
    dk, dv = sums
    return dk * rows.spec.scale, dv / (1 - rows.spec.dropout_rate)


def _probabilities(
    rows: OwnRows, s: jax.Array, bits: jax.Array, n: Any, is_edge: bool, own_ids: list[Any], other_ids: list[Any]
) -> jax.Array:
    """Negative where dropout drops them: to remember that otherwise would take a register for each."""
    p = jnp.exp2(rows.hide(s * (rows.spec.scale * LOG2_E), n, is_edge, own_ids, other_ids) - bits)
    keep = rows.keep(n)
    return p if keep is None else in_place(jnp.where(keep, p, -p))


def _dropped(rows: OwnRows, p: jax.Array, dp: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The probabilities, those that are kept, not scaled up, and the gradient of the former."""
    if rows.item.stream is None:
        return p, p, dp
    return jnp.maximum(p, -p), jnp.maximum(p, 0.0), jnp.where(p > 0, dp / (1 - rows.spec.dropout_rate), 0.0)


_DQ = Kernel("dq", scores=((0, 0), (1, 1)), sums=(0,), start=_start_dq, weigh=_weigh_dq, finish=_finish_dq)
_DQ_AND_DELTA = _DQ._replace(start=_start_dq_and_delta, finish=_finish_dq_and_delta)
# Transposed, [keys, queries], as the sums need them.
_DKDV = Kernel("dkdv", scores=((0, 0), (1, 1)), sums=(0, 1), start=_start_dkdv, weigh=_weigh_dkdv, finish=_finish_dkdv)
