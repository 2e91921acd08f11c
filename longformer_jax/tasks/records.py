"""Records with named fields in files: JSON lines, CSV, TSV and lists in JSON, each also compressed with gzip."""

import codecs
import csv
import gzip
import io
import json
import lzma
import math
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from longformer_jax.errors import InputError
from longformer_jax.files import read_lines

SUFFIXES = (".jsonl", ".csv", ".tsv")
_DEEPEST = 100  # values within each other
_LONGEST_FIELD = 2**31 - 1  # a document is longer than the 128 KiB that csv takes unless told otherwise


def kind_of(path: Path) -> str | None:
    """The suffix that tells a file's format, that of gzip left out; None where it is no file of records."""
    return suffix if (suffix := suffix_of(path)) in SUFFIXES else None


def suffix_of(path: Path) -> str:
    """The suffix of a file's name in small letters, that of gzip left out."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each record is called in a sentence, "record 3 of FILE", and its fields.

    Raises:
      InputError: the file is missing, is of another format or damaged, or a record is none.
    """
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{str(path)!r} is no file of records; expected one whose name ends in {', '.join(SUFFIXES)}")
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        lines = read_lines(text, str(path))
        yield from _json_lines(path, lines) if kind == ".jsonl" else _table(path, lines, kind)


def read_list(path: Path, where: str = "item") -> Iterator[tuple[str, dict[str, Any]]]:
    """As `read_records`, of a list in a JSON file, which may be larger than memory.

    Args:
      path: of the file.
      where: the list's items by ijson's name: "item" where the file is the list, "Data.item" where it is under "Data".

    Raises:
      InputError: the file is missing or damaged, or a record is none.
    """
    import ijson  # not above: other tasks do not need it

    number = 0
    with opened(path) as file:
        if file.peek(3)[:3] == codecs.BOM_UTF8:
            file.read(3)
        begin = file.peek(64).lstrip()[:1].decode(errors="replace")
        if where == "item" and begin not in ("", "["):
            raise InputError(f"{str(path)!r} begins with {begin!r}; expected a list in JSON")
        try:
            for record in ijson.items(_Shallow(file, path), where, use_float=True):
                number += 1
                place = f"record {number:,} of {str(path)!r}"
                if not isinstance(record, dict):
                    raise InputError(f"{place} is a {type(record).__name__}; expected a JSON object")
                yield place, record
        except ijson.JSONError as error:
            reason = error.args[0] if error.args else ""
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            reason = next(iter(reason.strip().splitlines()), "")
            raise InputError(
                f"{str(path)!r} is damaged after record {number:,} ({reason}); expected a list in JSON"
            ) from None


class _Shallow:
    """The bytes of a file in JSON; raises InputError before a value deep within others is parsed, which would take
    memory that grows with the square of the depth."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        self._file, self._path, self._open = file, path, 0.0

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        content = self._file.read(size)
        self._open += sum(content.count(mark) for mark in b"[{") - sum(content.count(mark) for mark in b"]}")
        if self._open > _DEEPEST:  # unless texts have so many of them
            _check_depth(self._path)
            self._open = -math.inf
        return content


def _check_depth(path: Path) -> None:
    import ijson

    depth = 0
    with opened(path) as file:
        for event, _ in ijson.basic_parse(file, use_float=True):
            depth += event.startswith("start") - event.startswith("end")
            if depth > _DEEPEST:
                raise InputError(f"{str(path)!r} has values within {depth} others; expected a list in JSON")


def text_list(place: str, record: dict[str, Any], name: str) -> list[str]:
    """A field that is a list of texts, at least one; raises InputError where it is none."""
    value = record.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{place}: {name} is {shown(value)}; expected a list of texts, at least one")
    return value


def shown(value: Any) -> str:
    """A value in a sentence, the beginning of a long one."""
    return text if len(text := repr(value)) <= 80 else f"{text[:77]}..."


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked where its name ends in .gz; what is wrong with them is an InputError."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is no file; expected one with data")
    try:
        with path.open("rb") as stored:
            yield cast(io.BufferedReader, gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored)
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is no UTF-8 ({error.reason}); expected text in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); expected a file compressed with gzip") from None


@contextmanager
def opened_archive(path: Path, expected: str) -> Iterator[tarfile.TarFile]:
    """The archive that `data.path` is; what is wrong with it, in the block, too, is an InputError."""
    try:
        with tarfile.open(path, "r:*") as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of the archive's content
            raise
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"data.path {str(path)!r} is damaged ({reason}); expected {expected}") from None


def text_field(place: str, record: dict[str, Any], name: str) -> str:
    """A field that is a text, or a whole number, as text; raises InputError where it is none."""
    if name not in record:
        raise InputError(f"{place} has no field {name!r}; expected it beside {', '.join(map(repr, record))}")
    value = record[name]
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{place}: {name} is {shown(value)}; expected a text")
    return value


def _json_lines(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for line in lines:
        if not line.strip():
            continue
        number += 1
        place = f"record {number:,} of {str(path)!r}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is no JSON ({error}); expected a JSON object in each line") from None
        if not isinstance(record, dict):
            raise InputError(f"{place} is a {type(record).__name__}; expected a JSON object in each line")
        yield place, record


def _table(path: Path, lines: Iterator[str], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    rows = csv.reader(lines, **dialect)  # pyrefly: ignore[bad-argument-type]
    number = 0
    try:
        columns = next(rows, [])
        if len(set(columns)) < len(columns) or not all(columns):
            raise InputError(f"{str(path)!r} has the columns {columns}; expected a name for each, none twice")
        for row in rows:
            if not row:
                continue
            number += 1
            place = f"record {number:,} of {str(path)!r}"
            if len(row) != len(columns):
                raise InputError(f"{place} has {len(row)} columns; expected {len(columns)}: {', '.join(columns)}")
            yield place, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise InputError(
            f"record {number + 1:,} of {str(path)!r} is damaged ({error}); expected {kind[1:].upper()}"
        ) from None
