"""Examples as rows of numbers, made with all cores, kept on disk, and put together to batches."""

import collections
import dataclasses
import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from longformer_jax.data.cache import MANIFEST, cache_directory, open_or_build
from longformer_jax.data.packing import Packer, batched_by_length
from longformer_jax.errors import InputError
from longformer_jax.files import parse_json, read_json, replacing
from longformer_jax.tasks.base import Counts, Example, Field, Task

_FORMAT = 1  # of what is kept; another one is another cache
_EXAMPLES = "examples.jsonl"
# The column that says which example a row is of.
_OWNER = "example"
# Characters that the tokenizer gets at once: work for many threads, while its encodings stay small.
_BATCH_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Column:
    """One of the arrays of all rows: row i has `values[starts[i] : starts[i + 1]]`."""

    values: np.ndarray
    starts: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.starts[row] : self.starts[row + 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """The rows of some examples.

    Attributes:
      name: of the data and the split.
      size: how many examples there are; some may have no row.
      fields: what the rows consist of.
      columns: by the name of a field, and "example", the number of a row's example.
      counts: how often something was cut or dropped, by the reason.
      fingerprint: a digest of the content.
      read_examples: gives the `kept` parts of the examples.
    """

    name: str
    size: int
    fields: Mapping[str, Field]
    columns: Mapping[str, Column]
    counts: Mapping[str, int]
    fingerprint: str
    read_examples: Callable[[], list[Example]]

    def __len__(self) -> int:
        return len(self.columns[_OWNER].values)

    @cached_property
    def examples(self) -> list[Example]:
        """The `kept` parts of the examples, in their order."""
        return self.read_examples()

    @property
    def owners(self) -> np.ndarray:
        """int32 `[rows]`, ascending: the example of each row."""
        return self.columns[_OWNER].values

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 `[rows]`, in tokens."""
        return np.diff(self.columns["input_ids"].starts)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """All arrays of a row, as long as they are."""
        return {name: self.columns[name][index] for name in self.fields}

    def batch(self, rows: Sequence[int] | np.ndarray, length: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Arrays `[B, length]`, or as long as their field says, of these rows and fields, filled up."""
        batch = {}
        for name in names:
            field, column = self.fields[name], self.columns[name]
            array = np.full((len(rows), field.length or length), field.fill, column.values.dtype)
            for padded, row in zip(array, rows, strict=True):
                values = column[row]
                padded[: len(values)] = values
            batch[name] = array
        return batch

    def some(self, count: int) -> "FeatureSet":
        """Only the rows of so many examples, at equal distances, as files are often sorted by their labels.

        What has been cut or dropped is not counted anew, so there are no `counts`.
        """
        if count >= self.size:
            return self
        chosen = np.arange(count) * self.size // count
        rows = np.flatnonzero(np.isin(self.owners, chosen))

        def column(name: str) -> Column:
            values = [self.columns[name][int(row)] for row in rows]
            if name == _OWNER:
                values = [np.searchsorted(chosen, owner).astype(owner.dtype) for owner in values]
            starts = np.cumsum([0, *map(len, values)])
            return Column(np.concatenate([self.columns[name].values[:0], *values]), starts)

        return dataclasses.replace(
            self,
            size=count,
            columns={name: column(name) for name in self.columns},
            counts={},
            read_examples=lambda: [self.examples[i] for i in chosen],
        )


def make_features(task: Task, examples: Iterable[Example], packer: Packer, name: str) -> FeatureSet:
    """The rows of examples, in memory.

    Args:
      task: whose examples they are.
      examples: in any number.
      packer: the tokenizer, and the most tokens of a row.
      name: of the examples.

    Raises:
      InputError: there are none, two have the same id, or where the task says so.
    """
    kept: list[Example] = []
    fields = _fields(task, packer)
    writer = _Writer(fields, lambda _: io.BytesIO())
    counts: Counts = collections.Counter()
    _write(task, examples, packer, writer, counts, kept.append, name)
    columns = {
        field: Column(np.frombuffer(file.getvalue(), writer.dtypes[field]), np.array(writer.starts[field]))  # pyrefly: ignore[missing-attribute]
        for field, file in writer.files.items()
    }
    digest = hashlib.sha256(json.dumps(kept).encode())
    for column in columns.values():
        digest.update(column.values.tobytes())
    return FeatureSet(name, len(kept), fields, columns, dict(counts), digest.hexdigest(), lambda: kept)


def load_features(
    task: Task, path: Path, split: str, packer: Packer, cache_dir: str | os.PathLike[str] | None = None
) -> FeatureSet:
    """The rows of a split, memory-mapped from where an earlier call has left them.

    What is kept depends on the names, sizes and times of the files, in folders, too, the task's settings and code, the
    tokenizer and the most tokens of a row, and is checked by SHA-256 sums; anything else is another directory of the
    cache.

    Args:
      task, packer: as of `make_features`.
      path: where the data is.
      split: one of the task's.
      cache_dir: where rows are kept; None is ~/.cache/longformer_jax.

    Raises:
      InputError: where the task's `read` or `make_features` do, or an example to train on or to validate with has no
        label.
    """
    task.check_split(split)
    name, code = f"{path.name} ({split})", _code(task)
    counts: Counts = collections.Counter()
    if code is None:  # of a class without a file, which may change unseen
        features = make_features(task, _labelled(task, path, split, counts), packer, name)
        return dataclasses.replace(features, counts={**counts, **features.counts})
    files = [described for file in task.files(path, split) for described in _described(file)]
    settings = {field: value for field, value in dataclasses.asdict(task).items()}
    key = [_FORMAT, code, settings, split, str(path.absolute()), files]
    key += [packer.tokenizer.to_str(), packer.sequence_length]
    directory = cache_directory(cache_dir, f"{task.kind}-{split}", key)
    fields = _fields(task, packer)

    def build() -> None:
        with ExitStack() as stack:

            def opened(file: str) -> IO[bytes]:
                partial = stack.enter_context(replacing(directory / file))  # another process may have it mapped
                return stack.enter_context(partial.open("wb"))

            writer = _Writer(fields, lambda field: opened(f"{field}.bin"))
            kept = opened(_EXAMPLES)

            def keep(example: Example) -> None:
                kept.write(json.dumps(example, ensure_ascii=False).encode() + b"\n")

            examples = tqdm(
                _labelled(task, path, split, counts), desc=f"reading {name}", unit=f" {task.unit}", disable=None
            )
            size = _write(task, examples, packer, writer, counts, keep, name)
        sums = {}
        for field, starts in writer.starts.items():
            with replacing(directory / f"{field}.starts") as partial:
                np.array(starts).tofile(partial)
            for file in (f"{field}.bin", f"{field}.starts"):
                sums[file] = _sum(directory / file)
        manifest = {"sums": sums | {_EXAMPLES: _sum(directory / _EXAMPLES)}, "counts": counts, "examples": size}
        with replacing(directory / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=2))

    return open_or_build(directory, lambda: _open(directory, fields, packer, name), build)


def _open(directory: Path, fields: Mapping[str, Field], packer: Packer, name: str) -> FeatureSet | None:
    """What a finished build has left; None if it is not finished or damaged."""
    columns = {}
    try:
        manifest = read_json(directory / MANIFEST)
        sums, counts, size = manifest["sums"], manifest["counts"], int(manifest["examples"])
        if any(_sum(directory / file) != found for file, found in sums.items()):
            return None
        for field, dtype in _dtypes(fields, packer).items():
            starts = np.fromfile(directory / f"{field}.starts", np.int64)
            values = np.memmap(directory / f"{field}.bin", dtype, "r") if starts[-1] else np.empty(0, dtype)
            columns[field] = Column(values, starts)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None

    def examples() -> list[Example]:
        lines = (directory / _EXAMPLES).read_bytes().splitlines()
        return [parse_json(line, str(directory / _EXAMPLES)) for line in lines]

    digest = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    return FeatureSet(name, size, fields, columns, counts, digest, examples)


def _labelled(task: Task, path: Path, split: str, counts: Counts) -> Iterator[Example]:
    """The examples of a split, each with a label where it is needed: without one, rows would have a wrong one."""
    for example in task.read(path, split, counts):
        if split in ("train", "validation") and not task.is_labelled(example):
            raise InputError(f"{example['id']!r} in {str(path)!r} has no label; expected one in all of {split}")
        yield example


def _described(path: Path) -> Iterator[list[Any]]:
    """What tells a file, or each file in a folder, from what it was earlier."""
    if path.is_dir():
        for name in sorted(os.listdir(path)):
            yield from ([path.name, *each] for each in _described(path / name))
    else:
        stat = path.stat()
        yield [path.name, stat.st_size, stat.st_mtime_ns]


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _code(task: Task) -> str | None:
    """A digest of the files that define the task, and of all beside this one; None where one cannot be had."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for cls in type(task).__mro__:
        if issubclass(cls, Task):
            try:
                digest.update(Path(inspect.getfile(cls)).read_bytes())
            except (OSError, TypeError):
                return None
    return digest.hexdigest()


def _fields(task: Task, packer: Packer) -> dict[str, Field]:
    """The fields of rows, with what the tokenizer says of "input_ids"."""
    ids = dataclasses.replace(task.fields()["input_ids"], dtype=packer.dtype.name, fill=packer.pad_token_id)
    return {**task.fields(), "input_ids": ids}


def _dtypes(fields: Mapping[str, Field], packer: Packer) -> dict[str, np.dtype]:
    return {name: np.dtype(field.dtype) for name, field in fields.items()} | {_OWNER: np.dtype(np.int32)}


class _Writer:
    """Takes rows one at a time, and writes the values of each field to a file of its own."""

    def __init__(self, fields: Mapping[str, Field], open_file: Callable[[str], IO[bytes]]) -> None:
        self._fields = {**fields, _OWNER: Field(length=1)}
        self.dtypes = {name: np.dtype(field.dtype) for name, field in self._fields.items()}
        self.files = {name: open_file(name) for name in self._fields}
        self.starts = {name: [0] for name in self._fields}

    def add(self, row: Mapping[str, Any], optional: Sequence[str]) -> None:
        """A row; it may lack the fields that are optional."""
        for name, field in self._fields.items():
            if name not in row and name not in optional:
                raise ValueError(f"a row has no {name}; expected all of {', '.join(self._fields)}")
            values = np.asarray(row.get(name, ()), self.dtypes[name])
            if field.length is not None and len(values) > field.length:
                raise ValueError(f"a row has {len(values)} entries of {name}; expected at most {field.length}")
            self.files[name].write(values.tobytes())
            self.starts[name].append(self.starts[name][-1] + len(values))


def _write(
    task: Task,
    examples: Iterable[Example],
    packer: Packer,
    writer: _Writer,
    counts: Counts,
    keep: Callable[[Example], Any],
    name: str,
) -> int:
    """Writes the rows of all examples, gives `keep` what is kept of these, and returns their number."""
    ids: set[str] = set()
    for batch in _tokenized(task, examples, packer):
        for example, encodings in batch:
            if example["id"] in ids:
                raise InputError(
                    f"id {example['id']!r} is of two {task.unit} in {name}; expected one of its own for each"
                )
            optional = () if task.is_labelled(example) else task.targets
            for row in task.rows(example, encodings, packer, counts):
                writer.add({**row, _OWNER: [len(ids)]}, optional)
            ids.add(example["id"])
            keep({field: example[field] for field in task.kept if field in example})
    if not ids:
        raise InputError(f"{name} has no {task.unit}; expected at least one")
    return len(ids)


def _tokenized(
    task: Task, examples: Iterable[Example], packer: Packer
) -> Iterator[Iterable[tuple[Example, Sequence[Any]]]]:
    """Lists of examples with the encodings of their texts; the tokenizer's threads work in parallel."""

    def size(item: tuple[Example, list[str]]) -> int:
        return sum(map(len, item[1]))

    with_texts = ((example, whole_texts(task, example)) for example in examples)
    for batch in batched_by_length(with_texts, size, _BATCH_CHARACTERS):
        encodings = iter(packer.tokenizer.encode_batch([t for _, ts in batch for t in ts], add_special_tokens=False))
        yield [(example, [next(encodings) for _ in texts]) for example, texts in batch]


def whole_texts(task: Task, example: Example) -> list[str]:
    """What is tokenized of an example.

    Raises:
      InputError: there or in its id is half of a character, which JSON may hold but no UTF-8.
    """
    texts = task.texts(example)
    for what, text in (("its id", example["id"]), *(("a text", text) for text in texts)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{example['id']!r} has {text[error.start]!r} at character {error.start:,} of {what}, which is half of "
                "a character; expected whole ones"
            ) from None
    return texts
