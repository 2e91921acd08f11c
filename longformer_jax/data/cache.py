"""Directories that hold what was made of data, named after all that it depends on: made once, by one process."""

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.files import user_cache, user_path

MANIFEST = "manifest.json"  # written last: what is in it is whole


def cache_directory(cache_dir: str | os.PathLike[str] | None, name: str, key: Any) -> Path:
    """Where something is kept.

    Args:
      cache_dir: where the caches are; None is $XDG_CACHE_HOME/longformer_jax, usually ~/.cache/longformer_jax.
      name: what the data is called, for people.
      key: JSON values that differ wherever what is kept may differ.
    """
    place = user_cache() if cache_dir is None else user_path("cache_dir", cache_dir)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return place / f"{re.sub(r'[^\w.-]+', '_', name)[:64]}-{digest[:16]}"


def open_or_build[T](directory: Path, open_: Callable[[], T | None], build: Callable[[], None]) -> T:
    """What `open_` finds in a directory; where it finds nothing whole, `build` writes it first.

    Processes that want the same at the same time wait for the one that builds it. What is damaged is built again, with
    a warning.

    Raises:
      InputError: the directory cannot be written to.
      OSError: nothing whole is found where it has just been written.
    """
    opened = open_()
    if opened is not None:
        return opened
    with _locked(directory):
        opened = open_()  # another process may just have built it
        if opened is None:
            if (directory / MANIFEST).exists():
                logging.getLogger(__name__).warning("%s is damaged; building it again", directory)
                (directory / MANIFEST).unlink()
            build()
            opened = open_()
    if opened is None:
        raise OSError(f"{directory} does not hold what has just been written to it")
    return opened


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Makes `directory` and keeps other processes from building in it; the lock goes with the process that holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"cache_dir is {str(directory.parent)!r}, which cannot be written to ({error.strerror}); expected another"
        ) from error
    with lock:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
