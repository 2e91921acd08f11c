"""Training batches with Grain: shuffled windows of a byte corpus."""

from collections.abc import Iterator

import numpy as np

from longformer_jax.errors import InputError

# Grain's shuffle is a permutation of 32-bit integers, computed index by index: no memory, no set-up time.
_MAX_WINDOWS = 2**32


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
    if data.ndim != 1 or data.dtype != np.uint8:
        raise InputError(f"data is {data.dtype} of shape {data.shape}; expected a one-dimensional array of uint8")
    for field, value, minimum in (
        ("sequence_length", sequence_length, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("process_count", process_count, 1),
    ):
        if value < minimum:
            raise InputError(f"{field} is {value}; expected an integer of at least {minimum}")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index is {process_index}; expected 0 to {process_count - 1} ({process_count=})")
    if batch_size % process_count:
        raise InputError(f"batch_size is {batch_size}; expected a multiple of process_count, {process_count}")
    if len(data) == 0:
        raise InputError("data is empty; expected at least one window of sequence_length + 1 bytes")
    if len(data) <= sequence_length:
        raise InputError(
            f"data has {len(data):,} bytes; expected at least {sequence_length + 1:,}, "
            f"one window of sequence_length {sequence_length:,} and its last target"
        )
    # A view [N - T, T + 1]: nothing is copied before a batch is drawn.
    windows = np.lib.stride_tricks.sliding_window_view(data, sequence_length + 1)
    if len(windows) >= _MAX_WINDOWS:
        raise InputError(f"data has {len(windows):,} windows; expected fewer than {_MAX_WINDOWS:,}")

    import grain  # not above: reading a corpus or a configuration does not need it

    # One thread keeps ahead of any training step; the second hides the page faults of a cold memory map.
    read_options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    starts = grain.MapDataset.range(len(windows)).seed(seed).shuffle().repeat()
    # Batch after batch goes to the processes in turn, so that each step deals one batch_size of windows.
    starts = starts.batch(batch_size // process_count, drop_remainder=True)[process_index::process_count][start_step:]
    return iter(starts.map(lambda rows: windows[rows]).to_iter_dataset(read_options))
