"""Attention dropout by a counter hash, so that every implementation, pass and blocking draws the same mask."""

import jax
import jax.numpy as jnp

# Odd constants with well-mixed bits; the finalizer is that of MurmurHash3 (public domain).
_BATCH, _HEAD, _QUERY, _KEY = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def keep_mask(rate: float, seed: jax.Array, batch, head, query, key) -> jax.Array:
    """Whether the probability at (batch, head, query position, key position) survives dropout.

    Args:
      rate: the probability of dropping, in [0, 1).
      seed: integer scalar.
      batch, head, query, key: integer arrays that broadcast against each other; positions count from the start of the
        caller's query and key arrays.

    Returns:
      Booleans of the broadcast shape, True with probability 1 - rate.
    """
    seed, batch, head, query, key = (jnp.asarray(x).astype(jnp.uint32) for x in (seed, batch, head, query, key))
    row = _mix(_mix(seed + batch * jnp.uint32(_BATCH)) + head * jnp.uint32(_HEAD) + query * jnp.uint32(_QUERY))
    return _mix(row ^ (key * jnp.uint32(_KEY))) >= jnp.uint32(round(rate * 2**32))
