"""Training batches with Grain: shuffled windows of a byte corpus, shuffled rows of packed tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.integers import check_integer

# Grain's shuffle is a permutation of 32-bit integers, computed index by index: no memory, no set-up time.
MAX_SEQUENCES = 2**32


def train_batches(
    data: np.ndarray,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[np.ndarray]:
    """Iterates without end over shuffled windows of `data`, from the batch of `start_step` on.

    Windows begin at every position of `data`, each exactly once per epoch, so the cuts differ from epoch to epoch. The
    batch at a step is a function of `data`, `sequence_length`, `batch_size`, `seed` and the step alone. Process p of P
    gets rows `[p * batch_size / P, (p + 1) * batch_size / P)`: concatenated in process order, the rows of all processes
    are the batch that one process alone would get.

    Args:
      data: uint8 `[N]`, usually one split of a `Corpus`; memory-mapped arrays are read where they are needed.
      sequence_length: T, the number of inputs of a sequence, in bytes.
      batch_size: B, the number of sequences of a batch, over all processes.
      seed: the order of the windows, an integer >= 0.
      start_step: the step of the first batch given.
      process_index: this process, counted from 0.
      process_count: P, the number of processes.

    Returns:
      An iterator over uint8 `[B / P, T + 1]`: the inputs are `[:, :-1]`, the targets `[:, 1:]`. Two threads prefetch.

    Raises:
      InputError: `data` is not uint8 `[N]`, is empty or shorter than T + 1, or has 2**32 windows or more; B is not a
        multiple of P; or a number is out of its range.
    """
    if not isinstance(data, np.ndarray) or data.ndim != 1 or data.dtype != np.uint8:
        raise InputError(f"data is {_describe(data)}; expected a one-dimensional array of uint8")
    sequence_length = check_integer("sequence_length", sequence_length)
    if len(data) == 0:
        raise InputError("data is empty; expected at least one window of sequence_length + 1 bytes")
    if len(data) <= sequence_length:
        raise InputError(
            f"data has {len(data):,} bytes; expected at least {sequence_length + 1:,}, "
            f"one window of sequence_length {sequence_length:,} and its last target"
        )
    # A view [N - T, T + 1]: nothing is copied before a batch is drawn.
    windows = np.lib.stride_tricks.sliding_window_view(data, sequence_length + 1)
    if len(windows) >= MAX_SEQUENCES:
        raise InputError(f"data has {len(windows):,} windows; expected fewer than {MAX_SEQUENCES:,}")
    return _shuffled_batches(windows, batch_size, seed, start_step, process_index, process_count)


def row_batches(
    rows: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[np.ndarray]:
    """Iterates without end over shuffled rows, from the batch of `start_step` on.

    Every row comes exactly once per epoch. Batches depend on steps and processes as those of `train_batches` do.

    Args:
      rows: integers `[N, T]`, usually a split of a `TokenCorpus`; memory-mapped arrays are read where they are needed.
      batch_size, seed, start_step, process_index, process_count: as in `train_batches`.

    Returns:
      An iterator over `[B / P, T]` of the dtype of `rows`. Two threads prefetch.

    Raises:
      InputError: `rows` is not `[N, T]` of integers, is empty, or has 2**32 rows or more; B is not a multiple of P; or
        a number is out of its range.
    """
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise InputError(f"rows is {_describe(rows)}; expected a two-dimensional array of integers")
    if rows.size == 0:
        raise InputError(f"rows is empty, of shape {rows.shape}; expected at least one row of one token")
    if len(rows) >= MAX_SEQUENCES:
        raise InputError(f"rows has {len(rows):,} rows; expected fewer than {MAX_SEQUENCES:,}")
    return _shuffled_batches(rows, batch_size, seed, start_step, process_index, process_count)


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__


def _shuffled_batches(
    sequences: np.ndarray, batch_size: int, seed: int, start_step: int, process_index: int, process_count: int
) -> Iterator[np.ndarray]:
    """Batches of `sequences`, `[N, length]`; see `train_batches` for the arguments."""
    batch_size = check_integer("batch_size", batch_size)
    seed = check_integer("seed", seed, 0)
    start_step = check_integer("start_step", start_step, 0)
    process_count = check_integer("process_count", process_count)
    process_index = check_integer("process_index", process_index, 0)
    if process_index >= process_count:
        raise InputError(f"process_index is {process_index}; expected 0 to {process_count - 1} ({process_count=})")
    if batch_size % process_count:
        raise InputError(f"batch_size is {batch_size}; expected a multiple of process_count, {process_count}")

    import grain  # not above: reading a corpus or a configuration does not need it

    # One thread keeps ahead of any training step; the second hides the page faults of a cold memory map.
    read_options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    order = grain.MapDataset.range(len(sequences)).seed(seed).shuffle().repeat()
    # Batch after batch goes to the processes in turn, so that each step deals one batch_size of sequences.
    order = order.batch(batch_size // process_count, drop_remainder=True)[process_index::process_count][start_step:]
    return iter(order.map(lambda indices: sequences[indices]).to_iter_dataset(read_options))
