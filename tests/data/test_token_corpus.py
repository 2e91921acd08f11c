import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from longformer_jax.data import TextFiles, load_token_corpus, token_corpus
from longformer_jax.data.documents import Line
from longformer_jax.data.packing import Packer
from longformer_jax.errors import InputError
from tests.data.tiny_tokenizer import WORDS, tiny_tokenizer

LENGTH = 32


def write_documents(file, count, seed=0):
    """Documents of one to four lines; their first lines begin with their numbers."""
    rng = np.random.default_rng(seed)

    def sentence():
        return " ".join(rng.choice(WORDS, rng.integers(1, 15)))

    texts = [[f"{i} {sentence()}", *(sentence() for _ in range(rng.integers(0, 4)))] for i in range(count)]
    file.write_text("\n\n".join("\n".join(lines) for lines in texts))
    return texts


def lines_of(texts, documents):
    return [Line(i, line, 0) for i in documents for line in texts[i]]


def contents(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def load(source, cache_dir, **arguments):
    arguments = {"tokenizer": tiny_tokenizer(), "sequence_length": LENGTH, "validation_fraction": 0.1} | arguments
    return load_token_corpus(source, cache_dir=cache_dir, **arguments)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text"
    write_documents(file, 200)
    return file


@pytest.fixture
def packed(monkeypatch):
    """The lines of every call that packs, in order."""
    calls, pack = [], Packer.pack

    def recorded(self, lines):
        lines = list(lines)
        calls.append([line.text for line in lines])
        return pack(self, lines)

    monkeypatch.setattr(Packer, "pack", recorded)
    return calls


def test_rows_are_the_packed_documents(tmp_path):
    texts = write_documents(tmp_path / "text", 95)
    corpus = load(tmp_path / "text", tmp_path / "cache")
    packer = Packer.of(tiny_tokenizer(), LENGTH)
    validation = list(range(9, 95, 10))
    train = [i for i in range(95) if i not in validation]
    np.testing.assert_array_equal(corpus.splits["train"], packer.pack(lines_of(texts, train)))
    np.testing.assert_array_equal(corpus.splits["validation"], packer.pack(lines_of(texts, validation)))
    for rows in corpus.splits.values():
        assert isinstance(rows, np.memmap) and rows.dtype == np.uint16 and not rows.flags.writeable
    assert corpus.name == "text" and corpus.sequence_length == LENGTH
    assert corpus.vocab_size == packer.vocab_size and corpus.special_token_ids == (0, 1, 2, 3, corpus.mask_token_id)
    assert (corpus.bos_token_id, corpus.pad_token_id, corpus.sep_token_id) == (0, 1, 2)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.5, 0.9, 0.999])
def test_the_fraction_is_spread_evenly(fraction):
    chosen = np.array([token_corpus._validates(document, fraction) for document in range(10_000)])
    assert not chosen[0]
    expected = np.arange(1, 10_001) * fraction
    assert (np.abs(np.cumsum(chosen) - expected) <= 1).all()


def test_validation_from_a_source_of_its_own(tmp_path, text):
    texts = write_documents(tmp_path / "validation", 20, seed=1)
    arguments = {"tokenizer": tiny_tokenizer(), "sequence_length": LENGTH, "cache_dir": tmp_path / "cache"}
    corpus = load_token_corpus(text, validation_source=TextFiles(tmp_path / "validation"), **arguments)
    whole = load_token_corpus(text, validation_fraction=0, **arguments)
    np.testing.assert_array_equal(corpus.splits["train"], whole.splits["train"])
    packer = Packer.of(tiny_tokenizer(), LENGTH)
    np.testing.assert_array_equal(corpus.splits["validation"], packer.pack(lines_of(texts, range(20))))
    assert whole.splits["validation"].shape == (0, LENGTH)
    assert whole.split("train") is whole.splits["train"]
    with pytest.raises(InputError, match="^split is 'validation', which is empty in text"):
        whole.split("validation")
    with pytest.raises(InputError, match="^split is 'test'; expected one of train, validation$"):
        whole.split("test")


def test_a_second_call_packs_nothing(tmp_path, text, packed):
    first = load(text, tmp_path / "cache")
    assert packed
    packed.clear()
    second = load(str(text), str(tmp_path / "cache"))
    assert not packed
    for split, rows in first.splits.items():
        np.testing.assert_array_equal(second.splits[split], rows)


def test_what_the_rows_depend_on_names_the_directory(tmp_path, text):
    cache = tmp_path / "cache"
    load(text, cache)
    load(text, cache, sequence_length=LENGTH + 1)
    load(text, cache, validation_fraction=0.2)
    load(text, cache, tokenizer=tiny_tokenizer(merges=20))
    load(TextFiles(text, boundary="file"), cache, validation_fraction=0)
    assert len(list(cache.iterdir())) == 5
    os.utime(text, ns=(0, 0))
    load(text, cache)
    assert len(list(cache.iterdir())) == 6


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(token_corpus, "_SHARD_CHARACTERS", 1000)


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_all_lines_in_order(tmp_path):
    texts = write_documents(tmp_path / "text", 200)
    corpus = load(tmp_path / "text", tmp_path / "cache")
    wanted = {"validation": range(9, 200, 10), "train": [i for i in range(200) if i % 10 != 9]}
    for split, documents in wanted.items():
        lines = [line.text for line in lines_of(texts, documents)]
        tokens = [t for line in lines for t in tiny_tokenizer().encode(line, add_special_tokens=False).ids]
        rows = corpus.splits[split]
        assert rows[~np.isin(rows, corpus.special_token_ids)].tolist() == tokens


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_goes_on(tmp_path, text, packed, monkeypatch, interruption):
    uninterrupted = load(text, tmp_path / "whole")
    calls = packed.copy()
    packed.clear()
    assert len(calls) > 12

    recorded = Packer.pack

    def interrupted(self, lines):
        if len(packed) == 7:  # the second split of the fourth shard
            raise interruption
        return recorded(self, lines)

    monkeypatch.setattr(Packer, "pack", interrupted)
    with pytest.raises(interruption):
        load(text, tmp_path / "cache")
    (directory,) = (tmp_path / "cache").iterdir()
    assert sorted(file.name for file in directory.glob("shard-*")) == [f"shard-{i:06d}" for i in range(3)]
    # What a process leaves that dies while it writes.
    (directory / ".shard-000003.partial").write_bytes(b"half")
    (directory / ".train.bin.partial").write_bytes(b"half")

    monkeypatch.setattr(Packer, "pack", recorded)
    packed.clear()
    resumed = load(text, tmp_path / "cache")
    assert packed == calls[6:]
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    for split, rows in uninterrupted.splits.items():
        np.testing.assert_array_equal(resumed.splits[split], rows)
    assert sorted(file.name for file in directory.iterdir()) == ["lock", "manifest.json", "train.bin", "validation.bin"]


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_shard_is_built_again(tmp_path, text, packed, monkeypatch, caplog):
    load(text, tmp_path / "whole")
    calls = packed.copy()
    finish = token_corpus.replacing

    def fail_at_the_end(file):
        if file.name == "train.bin":
            raise KeyboardInterrupt
        return finish(file)

    monkeypatch.setattr(token_corpus, "replacing", fail_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        load(text, tmp_path / "cache")
    monkeypatch.setattr(token_corpus, "replacing", finish)
    (directory,) = (tmp_path / "cache").iterdir()
    flip_byte(directory / "shard-000002", 300)
    (directory / "shard-000004").write_bytes((directory / "shard-000004").read_bytes()[:100])
    (directory / "shard-000005").write_bytes(b"")
    packed.clear()
    with caplog.at_level(logging.WARNING):
        load(text, tmp_path / "cache")
    assert packed == [*calls[4:6], *calls[8:12]]
    assert [record.getMessage().split("/")[-1] for record in caplog.records] == [
        f"shard-{i:06d} is damaged; building it again" for i in (2, 4, 5)
    ]
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def flip_byte(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_no_flipped_byte_of_a_shard_goes_unnoticed(tmp_path):
    packer = Packer.of(tiny_tokenizer(), 20)
    rows = {"train": np.arange(60, dtype=np.uint16).reshape(3, 20), "validation": np.ones((1, 20), np.uint16)}
    file = tmp_path / "shard"
    token_corpus._write_shard(file, **rows)
    for position in range(file.stat().st_size):
        flip_byte(file, position)
        assert token_corpus._read_shard(file, packer) is None
        flip_byte(file, position)
    read = token_corpus._read_shard(file, packer)
    for split in rows:
        np.testing.assert_array_equal(read[split], rows[split])


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: flip_byte(directory / "train.bin", 1000),
        lambda directory: flip_byte(directory / "validation.bin", 0),
        lambda directory: (directory / "train.bin").write_bytes((directory / "train.bin").read_bytes()[:-2]),
        lambda directory: (directory / "validation.bin").unlink(),
        lambda directory: (directory / "manifest.json").write_text("{"),
        lambda directory: (directory / "manifest.json").write_text("[]"),
        lambda directory: (directory / "manifest.json").write_text('{"train": {}}'),
        lambda directory: (directory / "manifest.json").write_bytes(b"\xff"),
        lambda directory: rewrite_rows(directory / "manifest.json", 10**6),
        lambda directory: rewrite_rows(directory / "manifest.json", 3),
        lambda directory: (directory / "manifest.json").write_text("[" * 200_000),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path, text, caplog, damage):
    load(text, tmp_path / "cache")
    whole = contents(tmp_path / "cache")
    (directory,) = (tmp_path / "cache").iterdir()
    damage(directory)
    with caplog.at_level(logging.WARNING):
        load(text, tmp_path / "cache")
    assert [record.getMessage() for record in caplog.records] == [f"{directory} is damaged; building it again"]
    assert contents(tmp_path / "cache") == whole


def rewrite_rows(manifest, rows):
    values = json.loads(manifest.read_text())
    values["train"]["rows"] = rows
    manifest.write_text(json.dumps(values))


@pytest.mark.usefixtures("small_shards")
def test_caches_do_not_depend_on_the_number_of_threads(tmp_path, text, monkeypatch):
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        load(text, tmp_path / parallel)
    assert contents(tmp_path / "true") == contents(tmp_path / "false") and contents(tmp_path / "true")


def test_builders_at_the_same_time_build_once(tmp_path, text, packed):
    together = threading.Barrier(4)

    def build(_):
        together.wait()
        return load(text, tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(build, range(4))
    assert len(packed) == 2  # the two splits of one shard
    for other in others:
        np.testing.assert_array_equal(other.splits["train"], first.splits["train"])


def test_files_that_change_while_they_are_read(tmp_path, text, monkeypatch):
    pack = Packer.pack

    def pack_and_touch(self, lines):
        os.utime(text, ns=(0, 0))
        return pack(self, lines)

    stat = text.stat()
    with monkeypatch.context() as patch:
        patch.setattr(Packer, "pack", pack_and_touch)
        with pytest.raises(InputError, match="^text changed while it was read; expected data that stays as it is$"):
            load(text, tmp_path / "cache")
    (directory,) = (tmp_path / "cache").iterdir()
    assert [file.name for file in directory.iterdir()] == ["lock"]
    os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(load(text, tmp_path / "cache").splits["train"])


def test_where_the_cache_is(tmp_path, text, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(text, None)
    assert (tmp_path / "xdg" / "longformer_jax").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(text, None)
    load(text, "~/mine")
    caches = [tmp_path / "xdg/longformer_jax", tmp_path / "home/.cache/longformer_jax", tmp_path / "home/mine"]
    assert contents(caches[0]) == contents(caches[1]) == contents(caches[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "missing"}, "^paths has '.*missing', which matches no file"),
        ({"source": "blank"}, "^split train is empty: no document of blank falls to it"),
        ({"source": "one"}, r"^split validation is empty: no document of one falls to it .validation_fraction=0.1.;"),
        ({"validation_source": "one"}, "^validation_fraction is 0.1; expected None, as validation_source is given"),
        (
            {"validation_source": "blank", "validation_fraction": None},
            "^split validation is empty: no document of blank falls to it",
        ),
        (
            {"validation_source": "text", "validation_fraction": None},
            "^validation_source has '.*text', which source has, too; expected files of its own",
        ),
        ({"validation_fraction": 1}, r"^validation_fraction is 1; expected a number in \[0, 1\)$"),
        ({"validation_fraction": "0.1"}, "^validation_fraction is '0.1'; expected a number"),
        ({"validation_fraction": float("nan")}, "^validation_fraction is nan; expected"),
        ({"sequence_length": 2}, "^sequence_length is 2; expected an integer of at least 3"),
        ({"tokenizer": "roberta"}, "^tokenizer is a str; expected a tokenizers.Tokenizer"),
        ({"cache_dir": "text"}, "^cache_dir is '.*text', which cannot be written to .Not a directory.; expected"),
        ({"source": "latin1"}, "^'.*latin1' is no UTF-8 at byte 3 "),
    ],
)
def test_bad_input(tmp_path: Path, text, arguments, message):
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "one").write_text("A single document.\n")
    (tmp_path / "latin1").write_bytes(b"caf\xe9")
    arguments = {"source": "text", "cache_dir": "cache"} | arguments
    for name in ("source", "cache_dir", "validation_source"):
        if name in arguments:
            arguments[name] = tmp_path / arguments[name]
    with pytest.raises(InputError, match=message):
        load(arguments.pop("source"), **arguments)
