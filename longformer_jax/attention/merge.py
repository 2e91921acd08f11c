"""One exact softmax from attentions over disjoint sets of keys."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.errors import InputError


def merge_attention(
    out: jax.Array, lse: jax.Array, other_out: jax.Array, other_lse: jax.Array, *more: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges attentions of the same queries by their log-sum-exp, as if one softmax had run over all of their keys.

    Args:
      out, other_out: [B, T, H, Dv].
      lse, other_lse: float32 [B, T, H], -inf where a query saw no key.
      more: further outs and their lses, in turn.

    Returns:
      (out, lse) of the union, out in the dtype of `out`, rounded once. Gradients are free of NaN also where some or all
      saw nothing.

    Raises:
      InputError: the arrays are not pairs of these shapes.
    """
    if len(more) % 2:
        raise InputError(f"more has {len(more)} arrays; expected an out and a lse in turn")
    for index, x in enumerate((out, lse, other_out, other_lse, *more)):
        name = ("out", "lse", "other_out", "other_lse")[index] if index < 4 else f"more[{index - 4}]"
        if not hasattr(x, "shape") or (index == 0 and x.ndim != 4):
            found = f"has the shape {list(x.shape)}" if hasattr(x, "shape") else f"is a {type(x).__name__}"
            raise InputError(f"{name} {found}; expected an array {'[B, T, H]' if index % 2 else '[B, T, H, Dv]'}")
        expected = out.shape[:3] if index % 2 else out.shape
        if x.shape != expected:
            raise InputError(
                f"{name} has the shape {list(x.shape)}; expected {list(expected)}, as out is {list(out.shape)}"
            )
    return _merged((out, other_out, *more[::2]), (lse, other_lse, *more[1::2]))


def merge_over(axis_name: str, out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `merge_attention`, of the devices' attentions of the same queries, each over its own keys.

    Args:
      axis_name: the mesh axis, inside of a `jax.shard_map`.
      out: [B, T, H, Dv].
      lse: float32 [B, T, H], -inf where a query saw no key.

    Returns:
      (out, lse) of the union of all keys, on every device.
    """
    return _merged((out,), (lse,), axis_name)


def _merged(outs: Sequence[jax.Array], lses: Sequence[jax.Array], axis_name: str | None = None):
    def total_of(parts: Iterable[jax.Array]) -> jax.Array:
        total = functools.reduce(jnp.add, parts)
        return total if axis_name is None else lax.psum(total, axis_name)

    maximum = lax.stop_gradient(functools.reduce(jnp.maximum, lses))
    maximum = maximum if axis_name is None else lax.pmax(maximum, axis_name)
    # Where all are -inf any finite maximum will do; double `where` keeps NaN out of the gradients.
    maximum = jnp.maximum(maximum, jnp.finfo(jnp.float32).min)
    weights = [jnp.exp(lse - maximum) for lse in lses]
    total = total_of(weights)
    safe = jnp.where(total == 0, 1.0, total)  # NaN must not be hidden
    pairs = zip(outs, weights, strict=True)
    merged = total_of(out.astype(jnp.float32) * (weight / safe)[..., None] for out, weight in pairs)
    return merged.astype(outs[0].dtype), jnp.where(total == 0, -jnp.inf, maximum + jnp.log(safe))
