"""Batches of rows of different lengths: each row once an epoch, in few shapes, and a function of the step alone."""

from typing import Any

import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.data.buckets import EpochBatches, bucket_lengths, in_order

LENGTHS = (8, 16, 32)


def rows(count: int = 101, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 33, count)


def epochs(row_lengths: np.ndarray | None = None, **changes: Any) -> EpochBatches:
    arguments = {"lengths": LENGTHS, "batch_size": 8, "seed": (3,)} | changes
    return EpochBatches(rows() if row_lengths is None else row_lengths, **arguments)


def test_the_lengths() -> None:
    assert bucket_lengths(4096) == (384, 512, 768, 1024, 1536, 2048, 3072, 4096)
    assert bucket_lengths(16384) == (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    assert bucket_lengths(100) == (64, 100) and bucket_lengths(64) == (64,) and bucket_lengths(3) == (3,)
    for longest in (5, 63, 65, 500, 1000, 4097, 10_000):
        lengths = bucket_lengths(longest)
        assert lengths[-1] == longest and len(lengths) <= 8 and list(lengths) == sorted(set(lengths))
        assert all(length % 64 == 0 for length in lengths[:-1])


def test_an_epoch_has_every_row_once() -> None:
    batches = epochs()
    assert batches.steps_per_epoch == 13
    orders = []
    for epoch in (0, 1, 7):
        plans = [batches.plan(epoch * 13 + step) for step in range(13)]
        seen = np.concatenate([plan.rows[plan.weights > 0] for plan in plans])
        assert sorted(seen) == list(range(101))
        orders.append(seen.tolist())
        assert sum((plan.weights == 0).sum() for plan in plans) == 13 * 8 - 101
        for plan in plans:
            assert plan.rows.shape == plan.weights.shape == (8,)
            assert rows()[plan.rows].max() <= plan.length
    assert orders[0] != orders[1] != orders[2]


def test_short_rows_are_in_short_batches() -> None:
    """But for those that are left over, fewer than a batch for each length."""
    lengths = rows(1000)
    batches = epochs(lengths)
    plans = [batches.plan(step) for step in range(batches.steps_per_epoch)]
    assert {plan.length for plan in plans} == {8, 16, 32} == {*batches.used_lengths}
    for shortest, longest in ((0, 8), (8, 16), (16, 32)):
        fit = int(((lengths > shortest) & (lengths <= longest)).sum())
        longer = sum((lengths[p.rows[p.weights > 0]] <= longest).sum() for p in plans if p.length > longest)
        assert longer < 8 and fit > 100


def test_a_batch_follows_from_the_seed_and_the_step() -> None:
    one, two, other = epochs(), epochs(), epochs(seed=(4,))
    for step in (40, 0, 13, 12, 26, 5):  # in any order
        for a, b in zip(one.plan(step), two.plan(step), strict=True):
            np.testing.assert_array_equal(a, b)
    assert any((one.plan(step).rows != other.plan(step).rows).any() for step in range(13))


def test_fewer_rows_than_a_batch() -> None:
    batches = epochs(np.array([3, 20, 9]))
    assert (batches.steps_per_epoch, batches.used_lengths) == (1, (32,))
    plan = batches.plan(5)
    assert sorted(plan.rows[:3]) == [0, 1, 2] and plan.weights.tolist() == [1.0] * 3 + [0.0] * 5


def test_all_rows_in_order() -> None:
    lengths = rows(50)
    plans = list(in_order(lengths, lengths=LENGTHS, batch_sizes=(8, 4, 2)))
    assert sorted(np.concatenate([p.rows[p.weights > 0] for p in plans])) == list(range(50))
    assert {(plan.length, len(plan.rows)) for plan in plans} == {(8, 8), (16, 4), (32, 2)}
    for plan in plans:
        shortest = 0 if plan.length == 8 else plan.length // 2
        assert ((lengths[plan.rows] <= plan.length) & (lengths[plan.rows] > shortest)).all()


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"^lengths is \(8, 16\); expected the last to be at least 32, as a row is$"):
        epochs(np.array([32]), lengths=(8, 16))
    with pytest.raises(InputError, match="^row_lengths is empty; expected at least one row$"):
        epochs(np.array([], int))
    with pytest.raises(InputError, match="^batch_size is 0; expected an integer >= 1$"):
        epochs(batch_size=0)
