"""SHA-256 sums of files, in a checksums.json beside them: neither Orbax nor safetensors notices a changed byte.

An entry is {name: "SUM SIZE"}; the size in bytes tells at once that a file, however large, is another.
"""

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
    """The entry of a file."""
    with path.open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {path.stat().st_size}"


def is_unchanged(path: Path, entry: object) -> bool:
    """Whether a file is there and has this entry, which may be of an earlier version, without a size."""
    if not isinstance(entry, str) or not path.is_file():
        return False
    size = entry.partition(" ")[2]
    if size and size != str(path.stat().st_size):
        return False
    whole = file_sum(path)
    return entry in (whole, whole.partition(" ")[0])


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
    entries = _read(path.parent)
    if path.name in entries and path.is_file() and not is_unchanged(path, entries[path.name]):
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
