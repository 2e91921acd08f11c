"""The forward kernel: an online softmax over the keys that 64 queries reach, for each warpgroup."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.launch import Kernel, Tiling, launch
from pallas_kernels.mosaic.tiles import Program, accumulate, down, empty_tile, filled_line, scores
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.walk import Walk


def forward(
    spec: Spec, walk: Walk, tiling: Tiling, query: jax.Array, key: jax.Array, value: jax.Array, limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype, and lse float32 [B, T, H]; the walk is over queries."""
    out = jax.ShapeDtypeStruct((*query.shape[:3], value.shape[-1]), value.dtype)
    lse = jax.ShapeDtypeStruct(query.shape[:3], jnp.float32)
    start = functools.partial(_start, value_dim=value.shape[-1])
    kernel = Kernel("forward", start, _step, _finish)
    out, lse = launch(kernel, spec, walk, tiling, (query,), (key, value), limits, (out, lse), own_is_query=True)
    return out, lse


def _factors(spec: Spec) -> tuple[float, float]:
    """p = 2 ** (score * factor - maximum * factor) is one multiply-add and one exp2, if the factor keeps the order."""
    return (1.0, spec.scale * LOG2_E) if spec.scale > 0 else (spec.scale * LOG2_E, 1.0)


def _start(program: Program, own: list[Any], value_dim: int):
    return empty_tile(value_dim), filled_line(-jnp.inf), filled_line(0.0)


def _step(program: Program, own: list[Any], other: list[Any], n: Any, carry):
    acc, maximum, total = carry
    (query, *own_ids), (key, value, *key_ids) = own, other
    before, factor = _factors(program.spec)
    s = scores(query, key)
    s = s if before == 1.0 else s * before
    s = program.hide(s, n, own_ids, key_ids)
    new_maximum = jnp.maximum(maximum, s.max(axis=1))
    # A row that has seen nothing yet has no maximum to subtract.
    finite = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
    p = jnp.exp2(s * factor - down(finite * factor, program.columns))
    rescale = jnp.exp2((maximum - finite) * factor)
    total = total * rescale + p.sum(axis=1)
    keep = program.keep(n)
    if keep is not None:
        p = jnp.where(keep, p, 0.0)
    acc = acc * down(rescale, acc.shape[1])
    return accumulate(acc, p, value, program.spec.interpret), new_maximum, total


def _finish(program: Program, own: list[Any], carry):
    acc, maximum, total = carry
    live = maximum != -jnp.inf  # true of NaN, which must not be hidden
    norm = jnp.where(live, 1 / (total * (1 - program.spec.dropout_rate)), 0.0)
    log_sum_exp = jnp.where(live, maximum * _factors(program.spec)[1] + jnp.log2(total), -jnp.inf)
    return acc * down(norm, acc.shape[1]), log_sum_exp / LOG2_E
