"""IMDB reviews: positive or negative (Maas et al. 2011, the Large Movie Review Dataset, aclImdb_v1.tar.gz)."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from longformer_jax.errors import InputError
from longformer_jax.files import read_file, read_stream
from longformer_jax.tasks.base import Counts, Example
from longformer_jax.tasks.classification import Classification
from longformer_jax.tasks.records import opened_archive

_LABELS = ("neg", "pos")
# Of 2**16: a tenth of the films validates.
_VALIDATES = 2**16 // 10
_FILM = re.compile(r"/title/(tt\d+)/")
_REVIEW = re.compile(r"(\d+)_(\d+)\.txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imdb(Classification):
    """`data.path` is the distributed archive, or the folder aclImdb that it unpacks to.

    The data set has train and test, 25,000 reviews each, of different films. Validation is the reviews of about a tenth
    of the training films, those whose IMDB number has a small SHA-256: 2,632 reviews, which leaves 22,368 for training.
    So no film that is trained on is in another part; one film, tt0406816, is in validation and in test. Some reviews
    are in the data set more than once: 123 of the texts that are trained on are in test, too.
    """

    kind: str = "imdb"

    @property
    def label_names(self) -> tuple[str, ...]:
        return _LABELS

    def files(self, path: Path, split: str) -> list[Path]:
        """The archive, or all reviews of a split and the addresses of their films."""
        if path.is_file():
            return [path]
        folder = _folder(path) / _part(split)
        files = [file for label in _LABELS for file in sorted((folder / label).glob("*.txt"))]
        addresses = [folder / f"urls_{label}.txt" for label in _LABELS if split != "test"]
        if missing := [file for file in addresses if not file.is_file()]:
            raise _lacks(path, f"{_part(split)}/{missing[0].name}")
        return files + addresses

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The reviews, in the order of the archive, or of their names in the folder."""
        walk = _archive if path.is_file() else _files
        part = _part(split)
        films: dict[str, list[str]] = {}
        if split != "test":
            addresses = {f"{part}/urls_{label}.txt": label for label in _LABELS}
            films = {addresses[name]: _films(name, text) for name, text in walk(path, addresses.__contains__)}
            if missing := [name for name, label in addresses.items() if label not in films]:
                raise _lacks(path, missing[0])
        found = set()
        for name, text in walk(path, lambda name: name.startswith((f"{part}/neg/", f"{part}/pos/"))):
            _, label, file = name.split("/")
            number = _REVIEW.fullmatch(file)
            if number is None:
                raise InputError(f"{name} in {str(path)!r} is no review by its name; expected NUMBER_RATING.txt")
            if split != "test":
                if int(number[1]) >= len(films[label]):
                    raise InputError(
                        f"{name} in {str(path)!r} has no line in urls_{label}.txt; expected line {int(number[1]) + 1}"
                    )
                if _validates(films[label][int(number[1])]) != (split == "validation"):
                    continue
            found.add(label)
            yield self.example(f"{name} in {str(path)!r}", name.removesuffix(".txt"), text, label)
        if found != {*_LABELS}:
            raise InputError(
                f"data.path {str(path)!r} has no reviews in {part}/neg or {part}/pos; expected both for {split}"
            )


def _lacks(path: Path, name: str) -> InputError:
    return InputError(f"data.path {str(path)!r} has no {name}; expected the data as it is distributed")


def _part(split: str) -> str:
    return "test" if split == "test" else "train"


def _validates(film: str) -> bool:
    return int.from_bytes(hashlib.sha256(film.encode()).digest()[:2], "big") < _VALIDATES


def _films(name: str, text: str) -> list[str]:
    """The IMDB number of the film of each review, by its line."""
    films = []
    for number, line in enumerate(text.splitlines(), start=1):
        found = _FILM.search(line)
        if found is None:
            raise InputError(f"line {number:,} of {name} is {line!r}; expected the address of a film")
        films.append(found[1])
    return films


def _folder(path: Path) -> Path:
    """aclImdb, or the directory that it is in."""
    for folder in (path, path / "aclImdb"):
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            return folder
    raise InputError(f"data.path is {str(path)!r}; expected aclImdb_v1.tar.gz, or the folder aclImdb")


def _files(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    folder = _folder(path)
    for file in sorted(folder.glob("*/*")):
        for text in sorted(file.glob("*.txt")) if file.is_dir() else [file]:
            name = text.relative_to(folder).as_posix()
            if wanted(name):
                yield name, _decode(name, read_file(text))


def _archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    with opened_archive(path, "aclImdb_v1.tar.gz") as archive:
        for member in archive:
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix()
            content = archive.extractfile(member) if member.isfile() and wanted(name) else None
            if content is not None:
                yield name, _decode(name, read_stream(content, name))


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 at byte {error.start:,}; expected text in UTF-8") from None
