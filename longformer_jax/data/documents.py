"""Where documents come from: text files, or a data set of TFDS. TensorFlow is not needed."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from longformer_jax.errors import InputError
from longformer_jax.files import read_lines, user_path

BOUNDARIES = ("blank_line", "file")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Line(NamedTuple):
    """A line that is not blank, without its line ending.

    Attributes:
      document: the document it is of, counted from 0 over the whole source.
      text: what it says.
      position: how much of the source has been read with it, in units of the source's `size`.
    """

    document: int
    text: str
    position: int


class DocumentSource(Protocol):
    """Documents in an order that does not change; a document is a run of lines."""

    @property
    def name(self) -> str:
        """What the documents are called."""
        ...

    @property
    def size(self) -> int:
        """How much there is to read, in units of `unit`."""
        ...

    @property
    def unit(self) -> str:
        """What `size` counts, for a progress bar."""
        ...

    def fingerprint(self) -> Any:
        """JSON values that differ wherever the documents may differ."""
        ...

    def lines(self) -> Iterator[Line]:
        """All lines of all documents; raises InputError where the data is damaged or no UTF-8."""
        ...


@dataclass(frozen=True)
class TextFiles:
    """Documents in files of UTF-8 text, of which those named .gz are compressed with gzip.

    Files come in the order of their absolute paths, each once. A document never goes on in another file.

    Attributes:
      paths: a file, a directory (all files in and under it but hidden ones), a glob pattern (** matches directories of
        any depth), or a list of those.
      boundary: what ends a document. "blank_line" is the convention of RoBERTa's code, one sentence or paragraph a line
        and a blank line after each document; with "file", a file is one document and blank lines mean nothing.

    Raises:
      InputError: on construction, if there is no such boundary, a path matches no file, or a file is empty.
    """

    paths: Paths
    boundary: str = "blank_line"

    unit = "B"

    def __post_init__(self):
        if self.boundary not in BOUNDARIES:
            raise InputError(f"boundary is {self.boundary!r}; expected one of {', '.join(BOUNDARIES)}")
        for file in self.files:
            if file.stat().st_size == 0:
                raise InputError(f"paths has {str(file)!r}, which is empty; expected files with text")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, absolute and sorted."""
        if not isinstance(self.paths, str | os.PathLike | list | tuple):
            raise InputError(f"paths is {self.paths!r}; expected a path, or a list of paths")
        paths = [self.paths] if isinstance(self.paths, str | os.PathLike) else self.paths
        if not paths:
            raise InputError("paths is empty; expected files, directories or glob patterns")
        return tuple(sorted({file.absolute() for path in paths for file in _matches(path)}))

    @property
    def name(self) -> str:
        """The name of the file, or of the directory that all files have in common."""
        return Path(os.path.commonpath(self.files)).name or "text"

    @property
    def size(self) -> int:
        """In bytes on disk."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> Any:
        stats = [(str(file), file.stat()) for file in self.files]
        return ["text_files", self.boundary, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]

    def lines(self) -> Iterator[Line]:
        document, done = -1, 0
        for file in self.files:
            between_documents = True
            for text, position in _read_lines(file):
                if text.strip():
                    document += between_documents
                    between_documents = False
                    yield Line(document, text, done + position)
                elif self.boundary == "blank_line":
                    between_documents = True
            done += file.stat().st_size


@dataclass(frozen=True)
class TfdsText:
    """Documents in the text feature of a TFDS data set; each example is a document, in the order of its storage.

    Attributes:
      dataset: as `tfds.builder` takes it: NAME, NAME/CONFIG or NAME/CONFIG:VERSION. Prepared by TFDS as ArrayRecord at
        the first use, where it is not yet.
      split: of the data set; slices such as "train[:10%]" are fine.
      field: the name of the feature.
      data_dir: where TFDS keeps data sets; None is TFDS's own choice, usually ~/tensorflow_datasets.

    Raises:
      InputError: at the first use, if there is no such data set, split or text feature, or TFDS cannot prepare or read
        the data set here.
    """

    dataset: str
    split: str = "train"
    field: str = "text"
    data_dir: str | os.PathLike[str] | None = None

    unit = " documents"

    @property
    def name(self) -> str:
        return self.dataset

    @property
    def size(self) -> int:
        """In documents."""
        return len(self._examples)

    def fingerprint(self) -> Any:
        info = self._split_info
        stored = [str(self._builder.data_path.absolute()), info.num_examples, info.num_bytes]
        return ["tfds", self._builder.info.full_name, self.split, self.field, stored]

    def lines(self) -> Iterator[Line]:
        for document, example in enumerate(self._examples):
            try:
                text = example[self.field].decode()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{self.field} of example {document:,} of {self.dataset} ({self.split}) is no UTF-8 at byte "
                    f"{error.start:,}; expected UTF-8 text"
                ) from None
            for line in text.split("\n"):
                if line.strip():
                    yield Line(document, line.removesuffix("\r"), document + 1)

    @cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # slow to import

        data_dir = None if self.data_dir is None else user_path("data_dir", self.data_dir)
        try:
            builder = tfds.builder(self.dataset, data_dir=data_dir, file_format="array_record")
        except ValueError as error:  # its first line says why, the others name all data sets that there are
            reason = str(error).splitlines()[0]
            raise InputError(
                f"dataset is {self.dataset!r}; expected one that TFDS has, stored as ArrayRecord ({reason})"
            ) from error
        features = builder.info.features
        texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
        if self.field not in texts:
            expected = ", ".join(texts) or "a data set with text"
            raise InputError(f"field is {self.field!r}, no text feature of {self.dataset}; expected {expected}")
        if not builder.data_path.exists():
            try:
                builder.download_and_prepare()
            except (OSError, ImportError, tfds.download.DownloadError) as error:
                raise InputError(
                    f"dataset is {self.dataset!r}, which TFDS could not prepare here ({error}); expected one that is "
                    f"prepared as ArrayRecord in {builder.data_dir_root}, or that can be without TensorFlow"
                ) from error
        return builder

    @cached_property
    def _split_info(self) -> Any:
        splits = self._builder.info.splits
        try:
            return splits[self.split]
        except ValueError as error:
            raise InputError(
                f"split is {self.split!r}; expected one of {self.dataset}, {', '.join(splits)}, or a part of one"
            ) from error

    @cached_property
    def _examples(self) -> Any:
        assert self._split_info
        return self._builder.as_data_source(self.split)


def document_source(source: DocumentSource | Paths) -> DocumentSource:
    """The source that a short form stands for: `TfdsText` for "tfds:NAME", `TextFiles` for any other path or paths."""
    if isinstance(source, str) and source.startswith("tfds:"):
        return TfdsText(source.removeprefix("tfds:"))
    if isinstance(source, str | os.PathLike | Sequence):
        return TextFiles(source)
    if not hasattr(source, "lines"):
        raise InputError(f"source is {source!r}; expected paths or a DocumentSource")
    return source


def _matches(path: str | os.PathLike[str]) -> list[Path]:
    """The files of one entry of `TextFiles.paths`, in any order."""
    place = user_path("paths", path)
    if place.is_file():
        return [place]
    if place.is_dir():
        inside = [(file, file.relative_to(place).parts) for file in place.rglob("*") if file.is_file()]
        files = [file for file, parts in inside if not any(part.startswith(".") for part in parts)]
    else:
        files = [file for match in glob.glob(str(place), recursive=True) if (file := Path(match)).is_file()]
    if not files:
        holds = "holds" if place.is_dir() else "matches"
        raise InputError(f"paths has {str(path)!r}, which {holds} no file; expected files with text")
    return files


def _read_lines(file: Path) -> Iterator[tuple[str, int]]:
    """Each line without its ending, and the number of bytes of `file` read so far."""
    compressed = file.suffix == ".gz"
    offset = 0
    with file.open("rb") as stored:
        try:
            unpacked = cast(IO[bytes], gzip.GzipFile(fileobj=stored) if compressed else stored)
            for line in read_lines(unpacked, repr(str(file))):
                text = line.decode("utf-8" if offset else "utf-8-sig")  # without a byte order mark
                yield text.removesuffix("\n").removesuffix("\r"), stored.tell()
                offset += len(line)
        except UnicodeDecodeError as error:
            where = "of its unpacked text " if compressed else ""
            raise InputError(
                f"{str(file)!r} is no UTF-8 at byte {offset + error.start:,} {where}({error.reason}); expected text "
                "in UTF-8"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{str(file)!r} is damaged ({error}); expected text compressed with gzip") from error
