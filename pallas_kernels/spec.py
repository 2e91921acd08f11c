"""What a kernel is asked for, whatever backend it is written for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.walk import Walk

LOG2_E = 1.4426950408889634

_NO_ID = np.iinfo(np.int32).min


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known when a kernel is traced, besides shapes. left, right, key_offset: of the band, as in Walk."""

    left: int
    right: int
    key_offset: int
    dilations: tuple[int, ...]
    scale: float
    dropout_rate: float
    interpret: bool

    def walk(self, kernel: str, query: jax.Array, key: jax.Array, *, rows: int, columns: int) -> Walk:
        """The walk of one of the kernels "forward", "dq" and "dkdv", with its blocks of own and of the other's rows."""
        length, other_length = query.shape[1], key.shape[1]
        farthest = length + other_length + abs(self.key_offset)  # wider windows see no more, and would overflow
        walk = Walk(
            length=length,
            other_length=other_length,
            left=min(self.left, farthest),
            right=min(self.right, farthest),
            offset=self.key_offset,
            dilations=self.dilations,
            rows=rows,
            columns=columns,
        )
        return walk if kernel != "dkdv" else walk.transposed(rows, columns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """What limits a query's view besides the band, None where it does not apply: arrays, or in a kernel their refs."""

    key_mask: Any = None  # int8 [B, S]
    query_ids: Any = None  # int32 [B, T]
    key_ids: Any = None  # int32 [B, S]
    dropout_streams: Any = None  # uint32 [B]

    def ids(self, query_length: int, batch: int) -> tuple[jax.Array | None, jax.Array | None]:
        """Key mask and documents in one, None without either: int32 [B, T] and [B, S]; a query sees what equals its id.

        The smallest int32 is taken for masked keys; ids of that value count as the next one.
        """
        if self.key_mask is None and self.query_ids is None:
            return None, None
        if self.query_ids is None:
            query_ids = jnp.zeros((batch, query_length), jnp.int32)
            return query_ids, jnp.where(self.key_mask != 0, jnp.int32(0), _NO_ID)
        query_ids, key_ids = jnp.maximum(self.query_ids, _NO_ID + 1), jnp.maximum(self.key_ids, _NO_ID + 1)
        return query_ids, key_ids if self.key_mask is None else jnp.where(self.key_mask != 0, key_ids, _NO_ID)
