"""Batches of rows of different lengths: each batch of rows of about one length, padded to one of a few lengths."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.integers import check_integer

# What lengths are multiples of, so that the attention's tiles are full.
_TILE = 64
# Up to here lengths lie so close that rows are padded by a third at most.
_FINE = 4096


def bucket_lengths(longest: int, count: int = 8) -> tuple[int, ...]:
    """At most `count` lengths in ascending order, the last of which is `longest`.

    The others are multiples of 64, each about half of the next, and up to 4096 three quarters of these, too: 384, 512,
    768, 1024, 1536, 2048, 3072 and 4096.
    """
    halves = [longest / 2**i for i in range(count)]
    parts = (1, 0.75) if longest <= _FINE else (1,)
    candidates = [math.ceil(half * part / _TILE) * _TILE for half in halves for part in parts]
    shorter = sorted({length for length in candidates if length < longest}, reverse=True)
    return tuple(sorted([longest, *shorter[: count - 1]]))


class BatchPlan(NamedTuple):
    """A batch before it is made.

    Attributes:
      length: to which its rows are padded.
      rows: int64 `[B]`, which rows.
      weights: float32 `[B]`, 1, or 0 for rows that only fill up the last batch of an epoch.
    """

    length: int
    rows: np.ndarray
    weights: np.ndarray


def bucket_of(row_lengths: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """For each row the number of the first of the ascending `lengths` that it fits; raises InputError where none is."""
    if len(row_lengths) and row_lengths.max() > lengths[-1]:
        longest = row_lengths.max()
        raise InputError(f"lengths is {tuple(lengths)}; expected the last to be at least {longest}, as a row is")
    return np.searchsorted(np.asarray(lengths), row_lengths)


class EpochBatches:
    """The batches of every epoch, each a function of (row_lengths, lengths, batch_size, seed) and its step alone.

    An epoch has every row exactly once. Rows are shuffled, and dealt to batches bucket by bucket, from short to long;
    those that are left when a bucket's batches are full join the next longer bucket. The batches are then shuffled. The
    last batch of the longest bucket is filled up with rows of weight 0, so that an epoch has ceil(N / B) batches.
    """

    def __init__(
        self, row_lengths: np.ndarray, *, lengths: Sequence[int], batch_size: int, seed: Sequence[int]
    ) -> None:
        """Raises InputError where there are no rows, or one is longer than the last of `lengths`."""
        if len(row_lengths) == 0:
            raise InputError("row_lengths is empty; expected at least one row")
        self.batch_size = check_integer("batch_size", batch_size)
        self._seed = tuple(check_integer("seed", number, 0) for number in seed)
        self._lengths = tuple(lengths)
        self._buckets = bucket_of(row_lengths, self._lengths)
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """ceil(N / B)."""
        return -(-len(self._buckets) // self.batch_size)

    @property
    def used_lengths(self) -> tuple[int, ...]:
        """Those of the lengths that batches have: they are the same in every epoch."""
        return tuple(sorted({plan.length for plan in self._epoch(0)}))

    def plan(self, step: int) -> BatchPlan:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def _make_epoch(self, epoch: int) -> list[BatchPlan]:
        rng = np.random.default_rng([*self._seed, epoch])
        order = rng.permutation(len(self._buckets))
        plans, waiting = [], np.empty(0, order.dtype)
        size = self.batch_size
        for bucket, length in enumerate(self._lengths):
            waiting = np.concatenate([waiting, order[self._buckets[order] == bucket]])
            full = len(waiting) // size * size
            plans += [BatchPlan(length, rows, np.ones(size, np.float32)) for rows in waiting[:full].reshape(-1, size)]
            waiting = waiting[full:]
        if len(waiting):
            length = self._lengths[self._buckets[waiting].max()]
            weights = (np.arange(size) < len(waiting)).astype(np.float32)
            plans.append(BatchPlan(length, np.resize(waiting, size), weights))
        return [plans[i] for i in rng.permutation(len(plans))]


def in_order(row_lengths: np.ndarray, *, lengths: Sequence[int], batch_sizes: Sequence[int]) -> Iterator[BatchPlan]:
    """All rows once, for evaluation: batches bucket by bucket, each last one filled up with rows of weight 0.

    Args:
      row_lengths: integers `[N]`.
      lengths: ascending.
      batch_sizes: for each of them, the rows of a batch.
    """
    buckets = bucket_of(row_lengths, lengths)
    for bucket, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
        rows = np.flatnonzero(buckets == bucket)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            yield BatchPlan(length, np.resize(part, size), (np.arange(size) < len(part)).astype(np.float32))
