"""Hyperpartisan news: whether an article argues blindly for one side (Kiesel et al. 2019, SemEval-2019 task 4)."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.resources
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar
from xml.etree import ElementTree

from longformer_jax.errors import InputError
from longformer_jax.files import read_json, replacing, user_path
from longformer_jax.tasks.base import SPLITS, Counts, Example
from longformer_jax.tasks.classification import METRICS, Classification
from longformer_jax.tasks.records import kind_of

_LABELS = ("false", "true")  # hyperpartisan or not, as the ground truth says it
_ARTICLES, _TRUTH = "articles-training-byarticle-20181122", "ground-truth-training-byarticle-20181122"
_SUFFIXES = (".xml", ".xml.gz", ".zip")
_SPLIT = "hyperpartisan_split.json"
_SPLIT_SHA256 = "d936544b7d4134cb6e54512895c8c82cfea5093beaa87a9c5c8be44a9abd88d9"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperpartisan(Classification):
    """The 645 articles that people have labelled; `data.path` is the directory with their two files, as distributed.

    SemEval's own test set was never published, so the 645 are split 516 / 64 / 65, as has become usual. The parts are
    lists of ids that come with the library: they are disjoint, each has 37% of hyperpartisan articles, and articles
    that share more than three tenths of their word 5-grams, or a title, are all in train. Within these bounds, the
    order of the SHA-256 of the ids decides. A document is the title and the paragraphs, a line each, without markup.

    Attributes:
      metric: what selects the best checkpoint, "f1" (of hyperpartisan) or "accuracy".
      split_file: another split, {"train": [ids], "validation": [ids], "test": [ids]} in JSON; None is the library's.
    """

    kind: str = "hyperpartisan"
    metric: str = "f1"
    split_file: str | None = None
    own_suffixes: ClassVar[Sequence[str]] = (*Classification.own_suffixes, ".xml", ".zip")

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"metric is {self.metric!r}; expected one of {', '.join(METRICS)}")

    @property
    def label_names(self) -> tuple[str, ...]:
        return _LABELS

    @property
    def positive(self) -> str | None:
        return "true"

    @property
    def selection(self) -> str:
        return self.metric

    def files(self, path: Path, split: str) -> list[Path]:
        """The articles, the ground truth and, where it is a file of one's own, the split."""
        own = [] if self.split_file is None else [user_path("task.split_file", self.split_file)]
        return [*(_find(path, name) for name in (_ARTICLES, _TRUTH)), *own]

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The articles of a split, in the order of the file."""
        articles, truth, *_ = self.files(path, split)
        parts = self.split_ids()
        labels = dict(_labels(truth))
        known, missing = {i for ids in parts.values() for i in ids}, set(parts[split])
        for name, text in _articles(articles):
            if name not in labels:
                raise InputError(
                    f"article {name} of {str(articles)!r} is not in {truth.name}; expected its label there"
                )
            if name in missing:
                missing.remove(name)
                yield self.example(f"article {name} of {str(articles)!r}", name, text, labels[name])
            elif name not in known and split == "train":
                counts["dropped, as they are in no part of the split"] += 1
        if missing:
            raise InputError(
                f"article {min(missing)} is in the split's part {split}, but not in {str(articles)!r}; expected it"
            )

    def read_own(self, path: Path) -> Iterator[Example]:
        """Articles in SemEval's XML, without labels; or records, as any classification."""
        if kind_of(path):
            yield from super().read_own(path)
            return
        for name, text in _articles(path):
            yield self.example(f"article {name} of {str(path)!r}", name, text, None)

    def split_ids(self) -> dict[str, list[str]]:
        """The ids of each part; raises InputError where a file of one's own has them wrong."""
        if self.split_file is None:
            content = (importlib.resources.files("longformer_jax.tasks") / _SPLIT).read_bytes()
            assert hashlib.sha256(content).hexdigest() == _SPLIT_SHA256, f"{_SPLIT} has been changed"
            parts: dict[str, Any] = json.loads(content)
            assert not _overlap(parts)
            return parts
        file = user_path("task.split_file", self.split_file)
        if not file.is_file():
            raise InputError(f"task.split_file is {self.split_file!r}, which is no file; expected lists of ids in JSON")
        parts = read_json(file)
        if parts.keys() != {*SPLITS} or not all(
            isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in parts.values()
        ):
            raise InputError(
                f"{str(file)!r} is no split; expected lists of ids as {', '.join(SPLITS)}, and nothing else"
            )
        if common := _overlap(parts):
            raise InputError(f"{str(file)!r} has the id {common!r} twice; expected parts that are disjoint")
        return parts

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """SemEval's format: a line of id, label and confidence for each article."""
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for prediction in predictions:
                label = prediction["label"]
                file.write(f"{prediction['id']} {label} {prediction['scores'][label]:.6f}\n")


def _overlap(parts: dict[str, list[str]]) -> str | None:
    """An id that is in two parts, or twice in one; None where there is none."""
    seen: set[str] = set()
    for name in (name for ids in parts.values() for name in ids):
        if name in seen:
            return name
        seen.add(name)
    return None


def _find(path: Path, name: str) -> Path:
    found = next((path / f"{name}{suffix}" for suffix in _SUFFIXES if (path / f"{name}{suffix}").is_file()), None)
    if found is None:
        raise InputError(
            f"data.path is {str(path)!r}, without {name}; expected a directory with it as {', '.join(_SUFFIXES)}"
        )
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".xml")]
            if len(names) != 1:
                raise InputError(f"{str(path)!r} holds {len(names)} files of XML; expected one")
            with archive.open(names[0]) as file:
                yield file
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield file  # pyrefly: ignore[invalid-yield]
    else:
        with path.open("rb") as file:
            yield file


def _elements(path: Path) -> Iterator[ElementTree.Element]:
    """The elements <article> of a file, one at a time."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is no file; expected articles in XML")
    number, seen = 0, set()
    try:
        with _opened(path) as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag != "article":
                    continue
                number += 1
                name = element.get("id")
                if not name:
                    raise InputError(f"article {number:,} of {str(path)!r} has no id; expected one")
                if name.split() != [name]:  # SemEval's predictions have it between spaces
                    raise InputError(
                        f"article {number:,} of {str(path)!r} has the id {name!r}; expected no spaces in it"
                    )
                if name in seen:
                    raise InputError(
                        f"article {number:,} of {str(path)!r} has the id {name}, as another; expected its own"
                    )
                seen.add(name)
                yield element
                element.clear()
    except (
        *(ElementTree.ParseError, LookupError, EOFError, OSError, zlib.error),  # an unknown encoding is a LookupError
        *(zipfile.BadZipFile, RuntimeError),  # as is a password, or a compression that is not implemented
    ) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise InputError(f"{str(path)!r} is damaged after {number:,} articles ({error}); expected XML") from None


def _labels(path: Path) -> Iterator[tuple[str, str]]:
    for element in _elements(path):
        label = element.get("hyperpartisan")
        if label not in _LABELS:
            raise InputError(
                f"article {element.get('id')} of {str(path)!r}: hyperpartisan is {label!r}; expected "
                f"{' or '.join(_LABELS)}"
            )
        yield str(element.get("id")), str(label)


def _articles(path: Path) -> Iterator[tuple[str, str]]:
    """The id and the text of each article: title and paragraphs, a line each."""
    for element in _elements(path):
        pieces = [element.get("title") or "", element.text or ""]
        for paragraph in element:
            pieces += ["".join(paragraph.itertext()), paragraph.tail or ""]
        lines = (" ".join(piece.split()) for piece in pieces)
        yield str(element.get("id")), "\n".join(line for line in lines if line)
