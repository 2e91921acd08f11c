"""What the processes of a run agree on before it starts; with a single one, nothing is to be done."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from longformer_jax.errors import InputError


def check_same(**texts: str) -> None:
    """Raises InputError, in every process, unless all processes call this with the same texts; it names one of them."""
    if jax.process_count() == 1:
        return
    digests = [
        np.frombuffer(hashlib.sha256(text.encode(errors="surrogateescape")).digest(), np.uint8)
        for text in texts.values()
    ]
    everywhere = np.asarray(multihost_utils.process_allgather(np.stack(digests)))  # [processes, texts, 32]
    for name, digest in zip(texts, everywhere.swapaxes(0, 1), strict=True):
        others = np.flatnonzero((digest != digest[0]).any(axis=-1))
        if others.size:
            raise InputError(
                f"{name} of process {others[0]} is not that of process 0; expected the same in all processes of a run"
            )


@contextmanager
def together() -> Iterator[None]:
    """A block that fails in every process where it fails in one, instead of leaving the others to wait for it."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
        if failed.size and failure is None:
            failure = InputError(f"process {failed[0]} of the run cannot start, and says why")
    if failure is not None:
        raise failure
