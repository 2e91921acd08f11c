import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax.data import row_batches, train_batches
from longformer_jax.errors import InputError

# Every window of two or more bytes begins with another byte, so a row tells where it was cut.
BYTES = np.random.default_rng(0).permutation(256).astype(np.uint8)
POSITION = np.argsort(BYTES)


def take(count, *args, **kwargs):
    return list(itertools.islice(train_batches(*args, **kwargs), count))


def take_rows(count, *args, **kwargs):
    return list(itertools.islice(row_batches(*args, **kwargs), count))


def test_an_epoch_has_the_window_at_every_position_once():
    data, length = BYTES[:100], 7
    epochs = np.concatenate(take(2 * 93, data, sequence_length=length, batch_size=1, seed=3)).reshape(2, 93, length + 1)
    starts = POSITION[epochs[..., 0]]
    for epoch, epoch_starts in zip(epochs, starts, strict=True):
        assert sorted(epoch_starts) == list(range(93))
        for row, start in zip(epoch, epoch_starts, strict=True):
            np.testing.assert_array_equal(row, data[start : start + length + 1])
    assert not np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], np.arange(93))


def test_batches_are_plain_contiguous_bytes():
    (batch,) = take(1, BYTES, sequence_length=10, batch_size=4, seed=0)
    assert type(batch) is np.ndarray and batch.dtype == np.uint8 and batch.shape == (4, 11)
    assert batch.flags.c_contiguous and batch.flags.writeable


def test_one_window_is_enough():
    for batch in take(3, BYTES[:11], sequence_length=10, batch_size=2, seed=0):
        np.testing.assert_array_equal(batch, np.stack([BYTES[:11]] * 2))


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(3, 256),
    length=st.integers(1, 100),
    local=st.integers(1, 4),
    processes=st.integers(1, 4),
    start=st.integers(0, 50),
    seed=st.integers(0, 2**40),
)
def test_a_batch_depends_on_seed_and_step_alone(size, length, local, processes, start, seed):
    data = BYTES[:size]
    arguments = {"sequence_length": min(length, size - 1), "batch_size": local * processes, "seed": seed}
    one_process = take(start + 3, data, **arguments)[start:]
    hosts = [
        take(3, data, **arguments, start_step=start, process_index=p, process_count=processes) for p in range(processes)
    ]
    for step, batch in enumerate(one_process):
        np.testing.assert_array_equal(np.concatenate([host[step] for host in hosts]), batch)


def test_the_order_is_the_same_in_every_release():
    """A run is resumed by its step, so an upgrade that shuffles otherwise would change the data of a run half-way."""
    batches = take(2, BYTES, sequence_length=1, batch_size=5, seed=7, start_step=10)
    assert POSITION[np.stack(batches)[..., 0]].tolist() == [[4, 246, 65, 230, 126], [2, 204, 53, 226, 219]]


def test_seeds_differ():
    first, second = (take(1, BYTES, sequence_length=10, batch_size=64, seed=seed)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_a_long_corpus_costs_no_memory_and_a_late_step_no_time(tmp_path):
    file = tmp_path / "text"
    with file.open("wb") as out:
        out.truncate(90_000_000)
    data = np.memmap(file, dtype=np.uint8, mode="r")
    tracemalloc.start()
    take(2, data, sequence_length=2048, batch_size=32, seed=0, start_step=10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000  # the batches in the buffer; a permutation of the windows would be 360 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": BYTES[:0]}, "data is empty; expected at least one window"),
        ({"data": [1, 2, 3]}, "data is list; expected a one-dimensional array of uint8"),
        ({"data": BYTES[:10]}, "data has 10 bytes; expected at least 11"),
        ({"data": BYTES.astype(np.int32)}, "data is int32 of shape .256,.; expected"),
        ({"data": BYTES.reshape(2, 128)}, r"data is uint8 of shape .2, 128.; expected"),
        ({"data": np.broadcast_to(BYTES[:1], 2**32 + 10)}, "data has 4,294,967,296 windows; expected fewer"),
        ({"sequence_length": 0}, "sequence_length is 0; expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer >= 1"),
        ({"seed": -1}, "seed is -1; expected an integer >= 0"),
        ({"start_step": -1}, "start_step is -1; expected an integer >= 0"),
        ({"process_count": 0}, "process_count is 0; expected an integer >= 1"),
        ({"process_count": 3}, "batch_size is 4; expected a multiple of process_count, 3"),
        ({"process_count": 2, "process_index": 2}, "process_index is 2; expected 0 to 1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"data": BYTES, "sequence_length": 10, "batch_size": 4, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        train_batches(arguments.pop("data"), **arguments)


# Every row begins with its number.
ROWS = (np.arange(40, dtype=np.uint16) + 1000 * np.arange(5, dtype=np.uint16)[:, None]).T.copy()


def test_an_epoch_has_every_row_once():
    epochs = np.concatenate(take_rows(2 * 8, ROWS, batch_size=5, seed=3)).reshape(2, 40, 5)
    for epoch in epochs:
        assert sorted(epoch[:, 0]) == list(range(40))
        np.testing.assert_array_equal(epoch, ROWS[epoch[:, 0]])
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], ROWS)


@settings(deadline=None, max_examples=10)
@given(
    count=st.integers(1, 40),
    local=st.integers(1, 4),
    processes=st.integers(1, 4),
    start=st.integers(0, 20),
    seed=st.integers(0, 2**40),
)
def test_a_batch_of_rows_depends_on_seed_and_step_alone(count, local, processes, start, seed):
    rows, arguments = ROWS[:count], {"batch_size": local * processes, "seed": seed}
    one_process = take_rows(start + 3, rows, **arguments)[start:]
    hosts = [
        take_rows(3, rows, **arguments, start_step=start, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for step, batch in enumerate(one_process):
        np.testing.assert_array_equal(np.concatenate([host[step] for host in hosts]), batch)


def test_the_order_of_rows_is_the_same_in_every_release():
    """As that of windows is."""
    batches = take_rows(2, ROWS, batch_size=5, seed=7, start_step=10)
    assert np.stack(batches)[..., 0].tolist() == [[5, 0, 11, 2, 34], [29, 38, 16, 10, 18]]


def test_batches_of_rows_are_plain_arrays_of_their_dtype(tmp_path):
    ROWS.tofile(tmp_path / "rows")
    for rows in (np.memmap(tmp_path / "rows", np.uint16, "r", shape=ROWS.shape), ROWS.astype(np.int64)):
        (batch,) = take_rows(1, rows, batch_size=4, seed=0)
        assert type(batch) is np.ndarray and batch.dtype == rows.dtype and batch.shape == (4, 5)
        assert batch.flags.c_contiguous and batch.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ROWS[:0]}, "rows is empty, of shape .0, 5.; expected at least one row"),
        ({"rows": None}, "rows is NoneType; expected a two-dimensional array of integers"),
        ({"rows": ROWS[0]}, "rows is uint16 of shape .5,.; expected a two-dimensional array of integers"),
        ({"rows": ROWS.astype(np.float32)}, "rows is float32 of shape .40, 5.; expected"),
        ({"rows": np.broadcast_to(ROWS[:1], (2**32, 5))}, "rows has 4,294,967,296 rows; expected fewer"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer >= 1"),
        ({"seed": -1}, "seed is -1; expected an integer >= 0"),
        ({"process_count": 3}, "batch_size is 4; expected a multiple of process_count, 3"),
        ({"process_count": 2, "process_index": 2}, "process_index is 2; expected 0 to 1"),
    ],
)
def test_bad_rows(change, message):
    arguments = {"rows": ROWS, "batch_size": 4, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        row_batches(arguments.pop("rows"), **arguments)
