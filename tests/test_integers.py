"""What counts as an integer, in functions of every package."""

import jax
import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.attention.band import make_band
from longformer_jax.data import train_batches
from longformer_jax.integers import as_integer, check_integer


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7), np.intp(7)])
def test_integers(value: object) -> None:
    assert as_integer(value) == 7 and type(as_integer(value)) is int
    assert check_integer("steps", value, 7, 7) == 7


@pytest.mark.parametrize("value", [True, np.True_, 7.0, np.float32(7), "7", None, np.array([7]), [7]])
def test_what_is_none(value: object) -> None:
    assert as_integer(value) is None
    with pytest.raises(InputError, match="^steps is .*; expected an integer >= 1$"):
        check_integer("steps", value)


def test_limits() -> None:
    with pytest.raises(InputError, match="^steps is 6; expected an integer >= 7$"):
        check_integer("steps", 6, 7)
    with pytest.raises(InputError, match="^steps is 9; expected at most 8$"):
        check_integer("steps", np.int64(9), 7, 8)


def test_a_traced_one_is_none() -> None:
    found = []
    jax.eval_shape(lambda x: found.append(as_integer(x)), 7)
    assert found == [None]


def test_bands_and_batches_take_those_of_numpy() -> None:
    assert make_band(np.int64(3), np.array([1, 2]), True, np.int8(4), 2) == make_band(3, (1, 2), True, 4, 2)
    data = np.arange(100, dtype=np.uint8)
    plain = next(train_batches(data, sequence_length=9, batch_size=4, seed=1, start_step=2))
    numbers = {
        "sequence_length": np.int64(9),
        "batch_size": np.int32(4),
        "seed": np.int64(1),
        "start_step": np.uint8(2),
    }
    np.testing.assert_array_equal(next(train_batches(data, **numbers)), plain)
