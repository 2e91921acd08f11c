"""Attention dropout by a counter hash, so that every implementation, pass and blocking draws the same mask."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp

# Odd constants with well-mixed bits; the finalizer is that of MurmurHash3 (public domain). The first is where hashes
# begin: from 0, which it leaves 0, the very first probability would be dropped at any rate.
_START, _BATCH, _HEAD, _QUERY, _KEY = 0x165667B1, 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def batch_streams(seed: jax.Array, batch: jax.Array) -> jax.Array:
    """uint32, of the shape of `batch`: where the hashes of an integer `seed` and the batch entries begin."""
    seed, batch = (jnp.asarray(x).astype(jnp.uint32) for x in (seed, batch))
    return _mix(jnp.uint32(_START) + seed + batch * jnp.uint32(_BATCH))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where arrays begin within larger ones, of which they are a part: integers, or traced ones."""

    batch: Any = 0
    head: Any = 0
    query: Any = 0
    key: Any = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streams:
    """What `keep_mask` needs to know besides head and positions.

    Attributes:
      rows: uint32 [B], where the hashes of rows begin.
      first_key: int32 [B], the position of key 0 where the arrays are part of a longer sequence; None is 0.
    """

    rows: Any
    first_key: Any = None

    @classmethod
    def of(cls, seed: Any, batch_size: int, origin: Origin | None = None) -> Self:
        """Of an integer `seed`, for arrays [B, …], which are a part of larger ones if there is an origin."""
        batch = jnp.arange(batch_size)
        if origin is None:
            return cls(batch_streams(seed, batch))
        rows = batch_streams(seed, batch + origin.batch)
        rows += jnp.asarray(origin.query).astype(jnp.uint32) * jnp.uint32(_QUERY)
        first_key = jnp.broadcast_to(jnp.asarray(origin.key, jnp.int32), (batch_size,))
        return cls(rows, first_key).from_head(origin.head)

    def from_head(self, head: Any) -> Self:
        """Of these arrays' heads from this one on."""
        return dataclasses.replace(self, rows=self.rows + jnp.asarray(head).astype(jnp.uint32) * jnp.uint32(_HEAD))


def keep_mask(rate: float, streams: jax.Array, head, query, key) -> jax.Array:
    """Whether the probability at (batch entry, head, query position, key position) survives dropout.

    Args:
      rate: the probability of dropping, in [0, 1).
      streams: `Streams.rows` of the batch entries.
      head, query, key: integer arrays that broadcast against each other and against streams. Heads and queries count
        from the start of the caller's arrays, keys from the start of the whole sequence.

    Returns:
      Booleans of the broadcast shape, True with probability 1 - rate.
    """
    return is_kept(rate, hash_row(streams, head, query), hash_column(key))


# Rows and columns are mixed well each; what is left to do for every pair is little, as it costs most.


def hash_row(streams, head, query) -> jax.Array:
    """uint32, of a query's row of probabilities."""
    head, query = (jnp.asarray(x).astype(jnp.uint32) for x in (head, query))
    return _mix(streams + head * jnp.uint32(_HEAD) + query * jnp.uint32(_QUERY))


def hash_column(key) -> jax.Array:
    """uint32, of a key's column."""
    return _mix(jnp.asarray(key).astype(jnp.uint32) * jnp.uint32(_KEY))


def is_kept(rate: float, row: jax.Array, column: jax.Array) -> jax.Array:
    """Booleans, of hashes that broadcast against each other."""
    x = (row ^ column) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
