"""Positions: Transformer-XL's relative term in factorised form, and rotary embeddings.

Angles are counted in 2**-32 turns with wrapping integers, so that the angle between two positions depends on their
distance alone, exactly, however long the stream; only the frequencies are rounded (by less than 1e-9 radians a step).
"""

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10_000.0


def angles(positions: jax.Array, width: int) -> jax.Array:
    """Angles position * 10000 ** (-2k / width), k < width / 2, reduced to [-pi, pi).

    Args:
      positions: integers [...].
      width: of the sinusoid, even.

    Returns:
      float32 [..., width // 2], radians.
    """
    radians_per_step = _BASE ** (-np.arange(0, width, 2) / width)
    turns_per_step = np.round(radians_per_step / (2 * np.pi) * 2**32).astype(np.uint32)
    turns = positions.astype(jnp.uint32)[..., None] * turns_per_step
    return turns.astype(jnp.int32).astype(jnp.float32) * (2 * np.pi / 2**32)


def relative_query(query: jax.Array, positions: jax.Array) -> jax.Array:
    """The query's half of Transformer-XL's position term (Dai et al. 2019, section 3.3, terms b and d).

    With R(m) = [sin(m w), cos(m w)] over the frequencies w, and sin and cos of a difference split into products,
    query . R(i - j) = relative_query(query, i) . relative_key(j).

    Args:
      query: [..., T, H, R], W_r^T (q + v): the query seen from the sinusoid's side.
      positions: integers [T].

    Returns:
      [..., T, H, R] of query's dtype.
    """
    sine_part, cosine_part = jnp.split(query.astype(jnp.float32), 2, axis=-1)
    angle = angles(positions, query.shape[-1])[:, None, :]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    rotated = [sine_part * sine + cosine_part * cosine, cosine_part * sine - sine_part * cosine]
    return jnp.concatenate(rotated, axis=-1).astype(query.dtype)


def relative_key(positions: jax.Array, width: int) -> jax.Array:
    """The key's half of the position term: integers [S] -> float32 [S, width]."""
    angle = angles(positions, width)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), pairs (k, k + D / 2): [..., T, H, D] at integers [T]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    angle = angles(positions, x.shape[-1])[:, None, :]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)
