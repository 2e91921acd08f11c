"""Names of files, JSON from outside, and files and directories that are written as a whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longformer_jax.errors import InputError


def user_path(field: str, path: str | os.PathLike[str]) -> Path:
    """The path that a user means, ~ being a home; raises InputError naming `field` where it can be none."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise InputError(f"{field} is {path!r}; expected a path")
    if "\0" in text:
        raise InputError(f"{field} is {text!r}; expected a path without a null character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{field} is {text!r}, whose user has no home here; expected another path") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises InputError where there is none in it, and OSError where it cannot be read."""
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `content`; raises InputError, calling it `name`, where it is anything else."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested too deep
        raise InputError(f"{name} is damaged ({error}); expected a JSON object") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} is damaged; expected a JSON object")
    return values


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
