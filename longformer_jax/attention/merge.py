"""One exact softmax from attentions over disjoint sets of keys."""

import functools

import jax
import jax.numpy as jnp

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
    outs, lses = (out, other_out, *more[::2]), (lse, other_lse, *more[1::2])
    # Where all are -inf any finite maximum will do; double `where` keeps NaN out of the gradients.
    maximum = jnp.maximum(functools.reduce(jnp.maximum, lses), jnp.finfo(jnp.float32).min)
    maximum = jax.lax.stop_gradient(maximum)
    weights = [jnp.exp(lse - maximum) for lse in lses]
    total = functools.reduce(jnp.add, weights)
    safe = jnp.where(total == 0, 1.0, total)  # NaN must not be hidden
    pairs = zip(outs, weights, strict=True)
    merged = functools.reduce(jnp.add, (out.astype(jnp.float32) * (weight / safe)[..., None] for out, weight in pairs))
    return merged.astype(out.dtype), jnp.where(total == 0, -jnp.inf, maximum + jnp.log(safe))
