"""The backward kernels, which recompute the probabilities from lse: dq, a program for each block of queries, and dk and
dv, a program for each block of keys.

Nothing is added up across programs, so there are no atomics, and results repeat bit for bit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.launch import Kernel, Tiling, launch
from pallas_kernels.mosaic.tiles import (
    Program,
    accumulate,
    across,
    down,
    empty_tile,
    load_per_column,
    load_per_row,
    scores,
)
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.walk import Walk


def row_terms(out: jax.Array, dout: jax.Array, lse: jax.Array, dlse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What both kernels know of every row, float32 [B, T, H]: lse in bits, and what the softmax's gradient takes off.

    Of a row that sees nothing they are inf, which makes its probabilities 0, and 0.
    """
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1) - dlse
    dead = lse == -jnp.inf
    return jnp.where(dead, jnp.inf, lse * LOG2_E), jnp.where(dead, 0.0, delta)


def backward_dq(spec: Spec, walk: Walk, tiling: Tiling, arrays: tuple[jax.Array, ...], limits: Limits) -> jax.Array:
    """dq. The walk is over queries; arrays: query, key, value, dout [B, T, H, D] and `row_terms`."""
    query, key, value, dout, bits, delta = arrays
    start = functools.partial(_start_dq, key_dim=query.shape[-1])
    kernel = Kernel("dq", start, _step_dq, _finish_dq)
    own, other = (query, dout, bits, delta), (key, value)
    outputs = (jax.ShapeDtypeStruct(query.shape, query.dtype),)
    return launch(kernel, spec, walk, tiling, own, other, limits, outputs, own_is_query=True)[0]


def backward_dkdv(
    spec: Spec, walk: Walk, tiling: Tiling, arrays: tuple[jax.Array, ...], limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """dk and dv. The walk is over keys; arrays as `backward_dq`'s."""
    query, key, value, dout, bits, delta = arrays
    start = functools.partial(_start_dkdv, dims=(key.shape[-1], value.shape[-1]))
    kernel = Kernel("dkdv", start, _step_dkdv, _finish_dkdv)
    own, other = (key, value), (query, dout, bits, delta)
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in own)
    dk, dv = launch(kernel, spec, walk, tiling, own, other, limits, outputs, own_is_query=False)
    return dk, dv


def _start_dq(program: Program, own: list[Any], key_dim: int):
    return empty_tile(key_dim), load_per_row(own[2]), load_per_row(own[3])


def _step_dq(program: Program, own: list[Any], other: list[Any], n: Any, carry):
    dq, bits, delta = carry
    (query, dout, _, _, *own_ids), (key, value, *key_ids) = own, other
    s = program.hide(scores(query, key) * (program.spec.scale * LOG2_E), n, own_ids, key_ids)
    p = jnp.exp2(s - down(bits, program.columns))
    dp = scores(dout, value)
    keep = program.keep(n)
    if keep is not None:
        dp = jnp.where(keep, dp / (1 - program.spec.dropout_rate), 0.0)
    dq = accumulate(dq, p * (dp - down(delta, program.columns)), key, program.spec.interpret)
    return dq, bits, delta


def _finish_dq(program: Program, own: list[Any], carry):
    return (carry[0] * program.spec.scale,)


def _start_dkdv(program: Program, own: list[Any], dims: tuple[int, int]):
    return tuple(map(empty_tile, dims))


def _step_dkdv(program: Program, own: list[Any], other: list[Any], n: Any, carry):
    dk, dv = carry
    (key, value, *own_ids), (query, dout, bits, delta, *query_ids) = own, other
    # Transposed, [keys, queries], as the products below need them.
    s = program.hide(scores(key, query) * (program.spec.scale * LOG2_E), n, own_ids, query_ids)
    p = jnp.exp2(s - across(load_per_column(bits)))
    dp, dropped = scores(value, dout), p
    keep = program.keep(n)
    if keep is not None:
        dropped, dp = jnp.where(keep, p, 0.0), jnp.where(keep, dp / (1 - program.spec.dropout_rate), 0.0)
    dv = accumulate(dv, dropped, dout, program.spec.interpret)
    dk = accumulate(dk, p * (dp - across(load_per_column(delta))), query, program.spec.interpret)
    return dk, dv


def _finish_dkdv(program: Program, own: list[Any], carry):
    dk, dv = carry
    return dk * program.spec.scale, dv / (1 - program.spec.dropout_rate)
