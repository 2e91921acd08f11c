"""Attention probabilities, for those who look at them: dense, T² in time and memory."""

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention.band import make_band
from longformer_jax.attention.reference import visible_mask
from longformer_jax.models.global_attention import GlobalTokens


def attention_probabilities(
    query: jax.Array,
    key: jax.Array,
    query_of_global: jax.Array | None,
    key_for_global: jax.Array | None,
    *,
    window: int | None,
    dilation: int,
    attention_mask: jax.Array | None,
    global_tokens: GlobalTokens | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The probabilities of one layer, before dropout, as Hugging Face arranges them (`EncoderOutput`).

    Args:
      query, key: [B, T, H, D].
      query_of_global, key_for_global: [B, G, H, D] and [B, T, H, D], of the global rows; None where there are none.
      window: one-sided, in steps of `dilation`; None: all tokens.
      attention_mask: booleans [B, T]; None is all True.

    Returns:
      float32 [B, H, T, G + 2 * window + 1] ([B, H, T, T] where `window` is None) and [B, H, T, G] or None.
    """
    B, T, H, _ = query.shape
    seen = jnp.ones((B, T), bool) if attention_mask is None else attention_mask
    if window is None:
        return _softmax(query, key, seen[:, None, None, :]), None
    band = visible_mask(make_band(window, dilation, False, 0, 1), T, T)[None]
    visible = jnp.broadcast_to(band & seen[:, None, None, :], (B, 1, T, T))
    if global_tokens is not None:
        visible |= (global_tokens.mask & seen)[:, None, None, :]
    probabilities = _softmax(query, key, visible)
    blank = ~seen if global_tokens is None else ~seen | global_tokens.mask
    probabilities = jnp.where(blank[:, None, :, None], 0.0, probabilities)

    # The columns of a band: key i + m * dilation for m from -window to window; what is further than T is outside.
    distance = np.clip(dilation * np.arange(-window, window + 1), -T, T)
    column = jnp.arange(T)[:, None] + jnp.asarray(distance, jnp.int32)[None, :]
    in_band = probabilities
    if global_tokens is not None:
        in_band = jnp.where(global_tokens.mask[:, None, None, :], 0.0, probabilities)
    inside = (column >= 0) & (column < T)
    index = jnp.broadcast_to(column.clip(0, T - 1), (B, H, *column.shape))
    local = jnp.where(inside[None, None], jnp.take_along_axis(in_band, index, axis=-1), 0.0)
    if global_tokens is None:
        return local, None
    of_global_keys = global_tokens.gather(probabilities.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    of_global_rows = _softmax(query_of_global, key_for_global, seen[:, None, None, :])
    of_global_rows = jnp.where(global_tokens.valid[:, None, :, None], of_global_rows, 0.0)
    return jnp.concatenate([of_global_keys, local], axis=-1), of_global_rows.swapaxes(2, 3)


def _softmax(query, key, visible) -> jax.Array:
    """float32 [B, H, T, S]; zeros where a row sees nothing."""
    scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    return jnp.where(visible, jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1), 0.0)
