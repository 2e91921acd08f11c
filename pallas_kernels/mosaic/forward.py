"""The forward kernel: an online softmax over the keys that 64 queries reach, for each warpgroup."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.items import OwnRows
from pallas_kernels.mosaic.kernel import Kernel, Sum, query_key_pairs
from pallas_kernels.mosaic.launch import launch
from pallas_kernels.mosaic.tiles import FOLD, down, empty_tile, filled_line, folded
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.walk import Walk


def forward(
    spec: Spec,
    walk: Walk,
    tiling: Tiling | MmaTiling,
    query: dict[str, jax.Array],
    keys: dict[str, jax.Array],
    limits: Limits,
    gpu: Gpu,
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype, and lse float32 [B, T, H].

    The walk is over queries. Arrays: "query", "key", "value" [B, T or S, H, D], and where there is a shared key
    "query_shared" [B, T, H, R] and "shared_key" [B or 1, S, 1, R].
    """
    value, shape = keys["value"], query["query"].shape[:3]
    out = jax.ShapeDtypeStruct((*shape, value.shape[-1]), value.dtype)
    lse = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = Kernel(
        "forward", (query_key_pairs(query, keys),), (Sum(0, "value", 0, value.shape[-1]),), _start, _weigh, _finish
    )
    out, lse = launch(kernel, spec, walk, tiling, query, keys, limits, (out, lse), gpu, own_is_query=True)
    return out, lse


def _start(own: dict[str, Any]):
    return filled_line(-jnp.inf), empty_tile(FOLD)


def _weigh(
    rows: OwnRows,
    own: dict[str, Any],
    other: dict[str, Any],
    n: Any,
    is_edge: bool,
    scores: tuple[Callable, ...],
    state,
):
    maximum, total = state
    before, factor = rows.spec.factors
    s = scores[0]()
    s = s if before == 1.0 else s * before
    s = rows.hide(s, n, is_edge, own.get("ids"), other.get("ids"))
    new_maximum = jnp.maximum(maximum, s.max(axis=1))
    # A row that has seen nothing yet has no maximum to subtract.
    finite = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
    p = jnp.exp2(s * factor - down(finite * factor, rows.columns))
    rescale = jnp.exp2((maximum - finite) * factor)
    total = total * down(rescale, FOLD) + folded(p)
    keep = rows.keep(n)
    if keep is not None:
        p = jnp.where(keep, p, 0.0)
    return (p,), (new_maximum, total), rescale


def _finish(rows: OwnRows, sums: tuple[jax.Array, ...], state):
    (acc,), (maximum, total) = sums, state
    total = total.sum(axis=1)
    live = maximum != -jnp.inf  # true of NaN, which must not be hidden
    norm = jnp.where(live, 1 / (total * (1 - rows.spec.dropout_rate)), 0.0)
    log_sum_exp = jnp.where(live, maximum * rows.spec.factors[1] + jnp.log2(total), -jnp.inf)
    return acc * down(norm, acc.shape[1]), log_sum_exp / LOG2_E
