"""The oracle: dense banded attention, in as few obvious lines as it takes. Quadratic in time and memory."""

import functools

import jax
import jax.numpy as jnp

from longformer_jax.attention.band import Band
from pallas_kernels.dropout import Streams, keep_mask


def visible_mask(band: Band, query_length: int, key_length: int) -> jax.Array:
    """Booleans [H, T, S]: the band alone, without key_mask and segment_ids."""
    i = jnp.arange(query_length)[None, :, None]
    j = jnp.arange(key_length)[None, None, :]
    dilation = jnp.array(band.dilation)[:, None, None]
    distance = j - i - band.key_offset
    steps = distance // dilation
    return (distance % dilation == 0) & (-band.left <= steps) & (steps <= band.right)


@functools.partial(jax.jit, static_argnames=("band", "scale", "dropout_rate"), inline=True)
def reference_attention(
    query,
    key,
    value,
    *,
    shared_key,
    band: Band,
    key_mask,
    segment_ids,
    scale: float,
    dropout_rate: float,
    dropout: Streams | None,
) -> tuple[jax.Array, jax.Array]:
    """Shapes as in `banded_attention`; returns (out, lse)."""
    B, T, H, _ = query.shape
    _, S, _, Dk = key.shape
    visible = jnp.broadcast_to(visible_mask(band, T, S), (B, H, T, S))
    if key_mask is not None:
        visible &= key_mask[:, None, None, :]
    if segment_ids is not None:
        visible &= segment_ids[0][:, None, :, None] == segment_ids[1][:, None, None, :]

    scores = jnp.einsum("bthd,bshd->bhts", query[..., :Dk], key, preferred_element_type=jnp.float32)
    if shared_key is not None:
        shared_key = jnp.broadcast_to(shared_key, (B, *shared_key.shape[1:]))
        scores += jnp.einsum("bthr,bsr->bhts", query[..., Dk:], shared_key, preferred_element_type=jnp.float32)
    scores *= scale
    # Where nothing is visible the row's softmax is undefined: compute it over zeros, then blank it.
    any_visible = visible.any(-1)
    scores = jnp.where(visible, scores, jnp.where(any_visible, -jnp.inf, 0.0)[..., None])
    lse = jax.nn.logsumexp(scores, axis=-1)
    probabilities = jnp.where(visible, jnp.exp(scores - lse[..., None]), 0.0)
    if dropout is not None:
        _, h, i, j = jnp.ogrid[:B, :H, :T, :S]
        rows = dropout.rows[:, None, None, None]
        if dropout.first_key is not None:
            j = j + dropout.first_key[:, None, None, None]
        keep = keep_mask(dropout_rate, rows, h, i, j)
        probabilities = jnp.where(keep, probabilities / (1 - dropout_rate), 0.0)
    out = jnp.einsum("bhts,bshd->bthd", probabilities, value.astype(jnp.float32))
    lse = jnp.where(any_visible, lse, -jnp.inf).transpose(0, 2, 1)
    return out.astype(value.dtype), lse
