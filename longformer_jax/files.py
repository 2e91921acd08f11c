"""Files and directories that are written as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longformer_jax.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path`, for a file or a directory that takes its place when the block ends, unless by an error."""
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if path.is_dir():  # only a file is replaced in one go
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Writes a file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_unused(field: str, directory: Path) -> None:
    """Raises InputError naming `field` unless a directory is empty or not there yet."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{field} is {str(directory)!r}, which is there already; expected a new or empty directory")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
