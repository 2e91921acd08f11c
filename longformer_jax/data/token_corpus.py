"""Corpora of packed tokens, built once and memory-mapped from then on."""

import hashlib
import itertools
import json
import logging
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longformer_jax.data.cache import MANIFEST, cache_directory, open_or_build
from longformer_jax.data.documents import DocumentSource, Paths, TextFiles, document_source
from longformer_jax.data.packing import Packer, batched_by_length
from longformer_jax.errors import InputError
from longformer_jax.files import read_json, replacing
from longformer_jax.integers import check_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_VALIDATION_FRACTION = 0.01

_SPLITS = ("train", "validation")
_FORMAT = 2  # of what is below and in packing.py; another one is another cache
# What an interrupted build loses at most. A row does not reach beyond its shard, so this is no small number.
_SHARD_CHARACTERS = 1 << 25

# By the name of a split: rows `[N, T]`, and the SHA-256 of their bytes.
_Splits = dict[str, np.ndarray]
_Sums = dict[str, str]


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """Documents as rows of tokens, split for training.

    Attributes:
      name: what the documents are called.
      splits: "train" and "validation", each `[N, T]`, uint16 or, for vocabularies of more than 65,536, uint32;
        read-only and memory-mapped. Every row is <s>, lines that each end in </s>, and padding. See `pack_lines`.
      vocab_size: the number of token ids.
      pad_token_id, bos_token_id, sep_token_id, mask_token_id: ids of <pad>, <s>, </s> and <mask>.
      special_token_ids: these and what else the tokenizer calls special, sorted.
      fingerprint: a digest of the splits' contents.
    """

    name: str
    splits: Mapping[str, np.ndarray]
    vocab_size: int
    pad_token_id: int
    bos_token_id: int
    sep_token_id: int
    mask_token_id: int
    special_token_ids: tuple[int, ...]
    fingerprint: str

    @property
    def sequence_length(self) -> int:
        """T."""
        return self.splits["train"].shape[1]

    def split(self, name: str) -> np.ndarray:
        """The rows of split `name`, `[N, T]`; raises InputError where there is no such split or it is empty."""
        if name not in self.splits:
            raise InputError(f"split is {name!r}; expected one of {', '.join(self.splits)}")
        if len(self.splits[name]) == 0:
            raise InputError(f"split is {name!r}, which is empty in {self.name}; expected a split with text")
        return self.splits[name]


def load_token_corpus(
    source: DocumentSource | Paths,
    *,
    tokenizer: "Tokenizer",
    sequence_length: int,
    cache_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float | None = None,
    validation_source: DocumentSource | Paths | None = None,
) -> TokenCorpus:
    """Tokenizes and packs documents for masked-language-model training, or opens what an earlier call has left.

    The first call writes a directory below `cache_dir` that is named after everything the rows depend on: paths, sizes
    and times of the files, the tokenizer, `sequence_length`, `validation_fraction`. An interrupted call loses the shard
    it was at, some 32 million characters; the next call goes on from there. Later calls check SHA-256 sums, and build
    again, with a warning, what is damaged. Processes that want the same rows at the same time wait for the one that
    builds them. A directory that is not needed any more can be deleted at any time.

    Args:
      source: a `TextFiles`, a `TfdsText`, or the short form of one: paths, or "tfds:NAME".
      tokenizer: has <s>, <pad>, </s> and <mask>. Its settings for truncation and padding are ignored, and special
        tokens that are spelt out in a text are text.
      sequence_length: T, in tokens, at least 3.
      cache_dir: None is $XDG_CACHE_HOME/longformer_jax, usually ~/.cache/longformer_jax.
      validation_fraction: the fraction of the documents that validate, in [0, 1), at equal distances: with 0.01 each
        hundredth document. None is 0.01, unless there is a `validation_source`.
      validation_source: documents that validate, in place of a fraction of `source`.

    Returns:
      The corpus. Its arrays stay on disk. "validation" is empty where `validation_fraction` is 0.

    Raises:
      InputError: a source or an argument that is not as described, text that is no UTF-8 or damaged, files that change
        while they are read or are in both sources, or a split that comes out empty.
    """
    source = document_source(source)
    if validation_source is not None:
        validation_source = document_source(validation_source)
        if validation_fraction is not None:
            raise InputError(
                f"validation_fraction is {validation_fraction}; expected None, as validation_source is given"
            )
        both = [{*x.files} for x in (source, validation_source) if isinstance(x, TextFiles)]
        if len(both) == 2 and (shared := sorted(both[0] & both[1])):
            raise InputError(
                f"validation_source has {str(shared[0])!r}, which source has, too; expected files of its own"
            )
        validation_fraction = 0
    if validation_fraction is None:
        validation_fraction = DEFAULT_VALIDATION_FRACTION
    if not 0 <= check_number("validation_fraction", validation_fraction, "a number in [0, 1)") < 1:
        raise InputError(f"validation_fraction is {validation_fraction}; expected a number in [0, 1)")
    packer = Packer.of(tokenizer, sequence_length)

    splits, sums = _cached_rows(source, packer, validation_fraction, cache_dir)
    if validation_source is not None:
        validation_splits, validation_sums = _cached_rows(validation_source, packer, 0, cache_dir)
        splits["validation"], sums["validation"] = validation_splits["train"], validation_sums["train"]
    held_by = {"train": source, "validation": validation_source or source}
    for name, rows in splits.items():
        if len(rows) == 0 and (name == "train" or validation_source is not None or validation_fraction > 0):
            raise InputError(
                f"split {name} is empty: no document of {held_by[name].name} falls to it ({validation_fraction=}); "
                "expected more documents with text, or another fraction"
            )
    return TokenCorpus(
        source.name,
        splits,
        packer.vocab_size,
        pad_token_id=packer.pad_token_id,
        bos_token_id=packer.bos_token_id,
        sep_token_id=packer.sep_token_id,
        mask_token_id=packer.mask_token_id,
        special_token_ids=packer.special_token_ids,
        fingerprint=hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest(),
    )


def _validates(document: int, fraction: float) -> bool:
    """Whether document number `document` is one of the `fraction`, spread evenly, that validate."""
    return int((document + 1) * fraction) > int(document * fraction)


def _cached_rows(
    source: DocumentSource, packer: Packer, validation_fraction: float, cache_dir: str | os.PathLike[str] | None
) -> tuple[_Splits, _Sums]:
    """What `_open` returns of the cache, where the rows are written if they are not there."""
    fingerprint = source.fingerprint()
    key = [_FORMAT, _SHARD_CHARACTERS, fingerprint, packer.tokenizer.to_str(), packer.sequence_length]
    directory = cache_directory(cache_dir, source.name, [*key, float(validation_fraction)])
    return open_or_build(
        directory,
        lambda: _open(directory, packer),
        lambda: _build(directory, source, fingerprint, packer, validation_fraction),
    )


def _open(directory: Path, packer: Packer) -> tuple[_Splits, _Sums] | None:
    """The rows of each split of a finished build, mapped, and their sums; None if it is not finished or damaged."""
    splits: _Splits = {}
    try:
        manifest = read_json(directory / MANIFEST)
        for split in _SPLITS:
            shape = (manifest[split]["rows"], packer.sequence_length)
            with (directory / f"{split}.bin").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest[split]["sha256"]:
                    return None
                if file.tell() != math.prod(shape) * packer.dtype.itemsize:
                    return None
            if shape[0]:
                splits[split] = np.memmap(file.name, packer.dtype, "r", shape=shape)
            else:  # an empty file cannot be mapped
                splits[split] = np.empty(shape, packer.dtype)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return splits, {split: manifest[split]["sha256"] for split in _SPLITS}


def _build(directory: Path, source: DocumentSource, fingerprint: Any, packer: Packer, fraction: float) -> None:
    """Writes the rows of shard after shard, each to a file of its own, then all of them to one file a split."""
    from tqdm import tqdm

    shards = []
    with tqdm(total=source.size, unit=source.unit, unit_scale=True, disable=None, desc=f"packing {source.name}") as bar:
        for lines in batched_by_length(source.lines(), lambda line: len(line.text), _SHARD_CHARACTERS):
            shards.append(directory / f"shard-{len(shards):06d}")
            if _read_shard(shards[-1], packer) is None:
                validates = [_validates(line.document, fraction) for line in lines]
                train = packer.pack(itertools.compress(lines, map(operator.not_, validates)))
                validation = packer.pack(itertools.compress(lines, validates))
                _write_shard(shards[-1], train, validation)
            bar.update(lines[-1].position - bar.n)
    if source.fingerprint() != fingerprint:
        for shard in shards:
            shard.unlink()
        raise InputError(f"{source.name} changed while it was read; expected data that stays as it is")

    manifest = {}
    for split in _SPLITS:
        digest, count = hashlib.sha256(), 0
        with replacing(directory / f"{split}.bin") as partial, partial.open("wb") as file:
            for shard in shards:
                rows = _read_shard(shard, packer)
                if rows is None:
                    raise OSError(f"{shard} does not hold what has just been written to it")
                file.write(rows[split].data)
                digest.update(rows[split].data)
                count += len(rows[split])
        manifest[split] = {"rows": count, "sha256": digest.hexdigest()}
    with replacing(directory / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2))
    for shard in shards:
        shard.unlink()


def _write_shard(file: Path, train: np.ndarray, validation: np.ndarray) -> None:
    """Writes the SHA-256 sum of what follows, the number of rows for training, and the rows of both splits."""
    contents = len(train).to_bytes(8, "little") + train.tobytes() + validation.tobytes()
    with replacing(file) as partial:
        partial.write_bytes(hashlib.sha256(contents).digest() + contents)


def _read_shard(file: Path, packer: Packer) -> dict[str, np.ndarray] | None:
    """The rows of each split; None if the shard is not finished or damaged."""
    try:
        data = memoryview(file.read_bytes())
    except FileNotFoundError:
        return None
    digest, contents = data[:32], data[32:]
    if hashlib.sha256(contents).digest() != digest:
        logging.getLogger(__name__).warning("%s is damaged; building it again", file)
        return None
    count, rows = int.from_bytes(contents[:8], "little"), np.frombuffer(contents[8:], packer.dtype)
    return dict(zip(_SPLITS, np.split(rows.reshape(-1, packer.sequence_length), [count]), strict=True))
