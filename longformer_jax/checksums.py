"""SHA-256 sums of files, in a checksums.json beside them: neither Orbax nor safetensors notices a changed byte."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.files import read_json, replacing, write_text

CHECKSUMS = "checksums.json"


def file_sum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(directory: Path, sums: Mapping[str, Any]) -> None:
    """Writes DIRECTORY/checksums.json."""
    write_text(directory / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


@contextmanager
def recording(path: Path) -> Iterator[Path]:
    """As `replacing` of a file, whose sum is noted beside it: none as long as there is neither the old nor the new."""
    _note(path, None)
    with replacing(path) as partial:
        yield partial
        new = file_sum(partial)
    _note(path, new)


def check_sum(path: Path) -> None:
    """Raises InputError where a file is not what `recording` has written; a file without a sum passes."""
    expected = _read(path.parent).get(path.name)
    if isinstance(expected, str) and path.is_file() and file_sum(path) != expected:
        raise InputError(
            f"{path} has changed since it was written, by the {CHECKSUMS} beside it; expected the file as it was (if "
            f"the change is meant, remove {CHECKSUMS})"
        )


def _note(path: Path, new: str | None) -> None:
    try:
        before = _read(path.parent)
    except InputError:  # damaged, and about to be of files that were before
        before = {}
    sums = {name: old for name, old in before.items() if name != path.name} | ({path.name: new} if new else {})
    if sums != before:
        write_sums(path.parent, sums)


def _read(directory: Path) -> dict[str, Any]:
    return read_json(directory / CHECKSUMS) if (directory / CHECKSUMS).exists() else {}
