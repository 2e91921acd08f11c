"""What a kernel is asked for, whatever backend it is written for."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.walk import Walk

LOG2_E = 1.4426950408889634

NO_ID = np.int32(np.iinfo(np.int32).min)  # of masked keys, and of nothing else


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

    @property
    def factors(self) -> tuple[float, float]:
        """(before, factor): of scores s times before, p = 2 ** (s * factor - maximum * factor).

        That is one multiply-add and one exp2, if the factor keeps the order and is a number of float32.
        """
        factor = self.scale * LOG2_E
        return (1.0, factor) if factor >= np.finfo(np.float32).tiny else (factor, 1.0)

    def walk(self, kernel: str, query: jax.Array, key: jax.Array, *, rows: int, columns: int) -> Walk:
        """The walk of "forward", "dq", "dkdv" or "dshared", with its blocks of own rows and of the other side's."""
        walk = Walk(
            length=query.shape[1],
            other_length=key.shape[1],
            left=self.left,
            right=self.right,
            offset=self.key_offset,
            dilations=self.dilations,
            rows=rows,
            columns=columns,
        )
        return walk if kernel in ("forward", "dq") else walk.transposed(rows, columns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """What limits a query's view besides the band, None where it does not apply: arrays, or in a kernel their refs.

    Key mask and documents are one: a query sees the keys that have its own id, and no query has NO_ID.
    """

    query_ids: Any = None  # int32 [B, T]
    key_ids: Any = None  # int32 [B, S]
    dropout: Any = None  # Streams

    @classmethod
    def of(
        cls, query_shape: tuple[int, int], key_mask: Any = None, segment_ids: Any = None, dropout: Any = None
    ) -> Self:
        """Of queries [B, T]; key_mask as in `banded_attention`, segment_ids a pair of int32, none of them NO_ID."""
        if key_mask is None and segment_ids is None:
            return cls(dropout=dropout)
        if segment_ids is None:
            query_ids, key_ids = jnp.zeros(query_shape, jnp.int32), jnp.zeros(key_mask.shape, jnp.int32)
        else:
            query_ids, key_ids = segment_ids
        if key_mask is not None:
            key_ids = jnp.where(key_mask, key_ids, NO_ID)
        return cls(query_ids, key_ids, dropout)

    def ids(self, own_is_query: bool) -> tuple[Any, Any]:
        """The own side's and the other side's."""
        return (self.query_ids, self.key_ids) if own_is_query else (self.key_ids, self.query_ids)
