"""One exact softmax from two attentions over disjoint sets of keys."""

import jax
import jax.numpy as jnp


def merge_attention(
    out: jax.Array, lse: jax.Array, other_out: jax.Array, other_lse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Merges two attentions of the same queries by their log-sum-exp, as if one softmax had run over both sets of keys.

    Args:
      out, other_out: [B, T, H, Dv].
      lse, other_lse: float32 [B, T, H], -inf where a query saw no key.

    Returns:
      (out, lse) of the union, out in the dtype of `out`. Gradients are free of NaN also where one or both saw nothing.
    """
    # Where both are -inf any finite maximum will do; double `where` keeps NaN out of the gradients.
    maximum = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(lse, other_lse), jnp.finfo(jnp.float32).min))
    weight, other_weight = jnp.exp(lse - maximum), jnp.exp(other_lse - maximum)
    total = weight + other_weight
    safe = jnp.where(total > 0, total, 1.0)
    merged = (
        out.astype(jnp.float32) * (weight / safe)[..., None]
        + other_out.astype(jnp.float32) * (other_weight / safe)[..., None]
    )
    return merged.astype(out.dtype), jnp.where(total > 0, maximum + jnp.log(safe), -jnp.inf)
