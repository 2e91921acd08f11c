"""Byte corpora: Wikipedia text through TFDS, anyone's own file, and a small text that ships with the package."""

import functools
import hashlib
import importlib.resources
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.integers import as_number

SOURCES = ("enwik8", "text8", "text_file", "tiny_shakespeare")
SPLITS = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.90, 0.05, 0.05)

_TINY_SHAKESPEARE_MD5 = "6fb458f1232090904fb40fe944165e91"
_SCAN_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text as bytes, split for training.

    Attributes:
      name: what the text is called.
      splits: "train", "validation" and "test", each uint8 `[N]`, read-only and, but for the embedded text,
        memory-mapped. A split whose fraction was set to 0 is empty.
      vocab_size: the number of token ids: bytes are tokens.
    """

    name: str
    splits: Mapping[str, np.ndarray]
    vocab_size: int = 256

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the splits' contents."""
        digests = [hashlib.sha256(self.splits[name]).hexdigest() for name in SPLITS]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def parts(self) -> dict[str, str]:
        """Digests of what may change by itself: here, of the whole text."""
        return {"text": self.fingerprint}

    def split(self, name: str) -> np.ndarray:
        """The bytes of split `name`, uint8 `[N]`; raises InputError where there is no such split or it is empty."""
        if name not in self.splits:
            raise InputError(f"split is {name!r}; expected one of {', '.join(self.splits)}")
        if len(self.splits[name]) == 0:
            raise InputError(f"split is {name!r}, which is empty in {self.name}; expected a split with text")
        return self.splits[name]


def load_corpus(
    source: str,
    *,
    path: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    split: Sequence[float] = DEFAULT_FRACTIONS,
    download: bool = True,
) -> Corpus:
    """Loads a corpus and checks that it is whole.

    Sources:
      enwik8, text8: the first 100,000,000 bytes of the English Wikipedia of 2006, as XML or as the letters a to z and
        spaces; in order, 90M bytes train, 5M validate, 5M test, as in the paper. The first call prepares the TFDS
        dataset and, next to its records, the file that is memory-mapped; later calls check that file's MD5.
      text_file: the file `path`, any bytes, cut into three contiguous splits in their order. Never copied.
      tiny_shakespeare: 1,115,394 bytes that ship with the package. As customary for this text, the first 90% train and
        the last 10% validate; nothing is left for a test, so "test" is the validation split under another name.

    Args:
      source: one of `SOURCES`.
      path: text_file: the file. enwik8, text8: a directory that holds NAME or NAME.zip, used in place of a download.
      data_dir: where TFDS keeps enwik8 and text8; None is TFDS's own choice, usually ~/tensorflow_datasets.
      split: text_file: the fractions of train, validation and test, >= 0 with sum 1 and a train fraction > 0.
      download: enwik8, text8: whether the network may be used where the data is neither prepared nor found in `path`
        or DATA_DIR/downloads/manual.

    Returns:
      The corpus. Its arrays stay on disk.

    Raises:
      InputError: an unknown source, an argument that the source has no use for, a file that is missing, short or
        corrupt, fractions that are none, or a split that comes out empty though its fraction is not 0.
    """
    if not isinstance(source, str) or source not in SOURCES:
        raise InputError(f"source is {source!r}; expected one of {', '.join(SOURCES)}")
    if isinstance(split, str) or not isinstance(split, Iterable):
        raise InputError(f"split is {split!r}; expected three fractions >= 0 with sum 1")
    split = tuple(split)
    if data_dir is not None and source in ("text_file", "tiny_shakespeare"):
        raise InputError(f"data_dir is {str(data_dir)!r}; expected None for {source}, which TFDS does not keep")
    if source == "text_file":
        return _load_text_file(path, split)
    if split != DEFAULT_FRACTIONS:
        raise InputError(f"split is {split}; expected the default, as the splits of {source} are fixed")
    if source == "tiny_shakespeare":
        if path is not None:
            raise InputError(f"path is {str(path)!r}; expected None for tiny_shakespeare (text_file reads a file)")
        return _load_tiny_shakespeare()
    return _load_large_text(source, path, data_dir, download)


def check_vocab(data: Corpus | np.ndarray, vocab_size: int) -> None:
    """Raises InputError if a token id of `data` (a corpus, or an array of integers) is outside [0, `vocab_size`)."""
    for name, tokens in data.splits.items() if isinstance(data, Corpus) else [("data", data)]:
        if vocab_size > np.iinfo(tokens.dtype).max and np.iinfo(tokens.dtype).min == 0:
            continue  # no id of this dtype can be out of range
        for start in range(0, len(tokens), _SCAN_BYTES):
            chunk = np.asarray(tokens[start : start + _SCAN_BYTES])
            if chunk.max() >= vocab_size or chunk.min() < 0:
                offset = np.flatnonzero((chunk >= vocab_size) | (chunk < 0))[0]
                raise InputError(
                    f"vocab_size is {vocab_size}, but the token id at position {start + offset:,} of {name} is "
                    f"{chunk[offset]}; expected ids from 0 to vocab_size - 1"
                )


def _cut(data: np.ndarray, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """The three splits, contiguous and in order, as views of `data`."""
    return dict(zip(SPLITS, np.split(data, np.cumsum(sizes)[:2]), strict=True))


def _load_text_file(path: str | os.PathLike[str] | None, fractions: tuple[float, ...]) -> Corpus:
    if path is None:
        raise InputError("path is None; expected the file that text_file is to read")
    path = user_path("path", path)
    if not path.is_file():
        raise InputError(
            f"path is {str(path)!r}, which is {'no file' if path.exists() else 'missing'}; expected a file"
        )
    if path.stat().st_size == 0:
        raise InputError(f"path is {str(path)!r}, which is empty; expected a file with text")
    parts = [number for fraction in fractions if (number := as_number(fraction)) is not None and number >= 0]
    if not len(parts) == len(fractions) == 3 or not math.isclose(sum(parts), 1):
        raise InputError(f"split is {fractions}; expected three fractions >= 0 with sum 1")
    if fractions[0] == 0:
        raise InputError(f"split is {fractions}; expected a fraction for train greater than 0")

    data = np.memmap(path, dtype=np.uint8, mode="r")
    ends = np.rint(np.cumsum(fractions) * len(data)).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    for name, fraction, size in zip(SPLITS, fractions, sizes, strict=True):
        if fraction > 0 and size == 0:
            raise InputError(
                f"split {name} is empty: {fraction:g} of the {len(data):,} bytes of {str(path)!r}; expected a longer "
                "file or another fraction"
            )
    return Corpus(path.name, _cut(data, sizes))


def _load_tiny_shakespeare() -> Corpus:
    file = importlib.resources.files("longformer_jax.data") / "tiny_shakespeare.txt"
    data = np.frombuffer(file.read_bytes(), dtype=np.uint8)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != _TINY_SHAKESPEARE_MD5:
        raise InputError(f"{file} has MD5 {md5}; expected {_TINY_SHAKESPEARE_MD5}")
    train, validation = np.split(data, [int(len(data) * 0.9)])
    return Corpus("tiny_shakespeare", {"train": train, "validation": validation, "test": validation})


def _load_large_text(
    name: str, path: str | os.PathLike[str] | None, data_dir: str | os.PathLike[str] | None, download: bool
) -> Corpus:
    from longformer_jax.data import tfds_builders  # imports tensorflow_datasets, which no other source needs

    builder = tfds_builders.prepare(name, path=path, data_dir=data_dir, download=download)
    return Corpus(name, _cut(builder.memory_map(), list(builder.SPLIT_SIZES.values())))
