import hashlib
import importlib.resources
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax.data import Corpus, check_vocab, load_corpus
from longformer_jax.errors import InputError

EXCERPT = Path(__file__).parents[3] / "shared/data/char_lm/enwik8_first_1071051_bytes"


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(bytes(range(100)))
    return file


def test_tiny_shakespeare_is_the_text_and_the_split_of_nanogpt():
    corpus = load_corpus("tiny_shakespeare")
    # The counts that nanoGPT's data/shakespeare_char/prepare.py prints.
    assert {name: len(split) for name, split in corpus.splits.items()} == {
        "train": 1_003_854,
        "validation": 111_540,
        "test": 111_540,
    }
    assert len(np.unique(np.concatenate([corpus.splits["train"], corpus.splits["validation"]]))) == 65
    assert corpus.splits["train"][:14].tobytes() == b"First Citizen:"
    assert corpus.splits["validation"][:9].tobytes() == b"?\n\nGREMIO"
    np.testing.assert_array_equal(corpus.splits["test"], corpus.splits["validation"])
    assert corpus.name == "tiny_shakespeare" and corpus.vocab_size == 256


def test_a_damaged_tiny_shakespeare_is_refused(tmp_path, monkeypatch):
    text = (importlib.resources.files("longformer_jax.data") / "tiny_shakespeare.txt").read_bytes()
    (tmp_path / "tiny_shakespeare.txt").write_bytes(text[:-1])
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match="tiny_shakespeare.txt has MD5 .*; expected 6fb458f1"):
        load_corpus("tiny_shakespeare")


def test_text_file_is_mapped_and_cut_in_order(text_file):
    corpus = load_corpus("text_file", path=text_file, split=(0.7, 0.1, 0.2))
    assert corpus.name == "text"
    assert [split.tolist() for split in corpus.splits.values()] == [[*range(70)], [*range(70, 80)], [*range(80, 100)]]
    for split in corpus.splits.values():
        assert isinstance(split, np.memmap) and split.filename == text_file
        assert split.dtype == np.uint8 and not split.flags.writeable


def test_text_file_accepts_a_home_directory(text_file, monkeypatch):
    monkeypatch.setenv("HOME", str(text_file.parent))
    assert len(load_corpus("text_file", path="~/text").split("train")) == 90


@settings(deadline=None)
@given(size=st.integers(1, 2000), parts=st.tuples(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100)))
def test_text_file_splits_cover_the_file(tmp_path_factory, size, parts):
    fractions = [part / sum(parts) for part in parts]
    file = tmp_path_factory.mktemp("cut") / "text"
    file.write_bytes(np.random.default_rng(size).bytes(size))
    try:
        splits = load_corpus("text_file", path=file, split=fractions).splits
    except InputError as error:
        assert "is empty" in str(error) and min(f for f in fractions if f) * size < 2
        return
    assert b"".join(split.tobytes() for split in splits.values()) == file.read_bytes()
    for split, fraction in zip(splits.values(), fractions, strict=True):
        assert abs(len(split) - fraction * size) <= 1
        assert (len(split) == 0) == (fraction == 0)


@pytest.mark.skipif(not EXCERPT.exists(), reason="the excerpt of enwik8 is not beside the repository")
def test_text_file_reads_an_excerpt_of_enwik8():
    corpus = load_corpus("text_file", path=EXCERPT)
    assert corpus.splits["train"][:10].tobytes() == b"<mediawiki"
    whole = np.concatenate(list(corpus.splits.values()))
    assert len(whole) == 1_071_051
    assert hashlib.md5(whole).hexdigest() == "3c6c4f4e40848ce04aa11a01492b1bc1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "wikitext"}, "source is 'wikitext'; expected one of enwik8, text8, text_file, tiny_shakespeare"),
        ({"path": None}, "path is None; expected the file"),
        ({"path": "missing"}, "path is '.*missing', which is missing; expected a file"),
        ({"path": "."}, "path is '.*', which is no file; expected a file"),
        ({"path": "empty"}, "path is '.*empty', which is empty; expected a file with text"),
        ({"split": (0.5, 0.5)}, "split is .0.5, 0.5.; expected three fractions >= 0 with sum 1"),
        ({"split": (0.9, 0.2, -0.1)}, "split is .0.9, 0.2, -0.1.; expected three fractions"),
        ({"split": (0.9, 0.05, 0.06)}, "split is .0.9, 0.05, 0.06.; expected three fractions"),
        ({"split": (float("nan"), 0.5, 0.5)}, "split is .nan, 0.5, 0.5.; expected three fractions"),
        ({"split": (0, 0.5, 0.5)}, "split is .0, 0.5, 0.5.; expected a fraction for train greater than 0"),
        ({"split": (0.998, 0.001, 0.001)}, "split validation is empty: 0.001 of the 100 bytes of"),
        ({"source": "tiny_shakespeare"}, "path is '.*'; expected None for tiny_shakespeare"),
        ({"data_dir": "/x"}, "data_dir is '/x'; expected None for text_file, which TFDS does not keep"),
        (
            {"source": "tiny_shakespeare", "path": None, "split": (0.8, 0.1, 0.1)},
            "split is .0.8, 0.1, 0.1.; expected the default, as the splits of tiny_shakespeare are fixed",
        ),
        ({"source": "enwik8", "split": (0.8, 0.1, 0.1)}, "expected the default, as the splits of enwik8 are fixed"),
    ],
)
def test_bad_input(arguments, message, text_file):
    (text_file.parent / "empty").touch()
    arguments = {"source": "text_file", "path": text_file} | arguments
    if isinstance(arguments["path"], str):
        arguments["path"] = text_file.parent / arguments["path"]
    with pytest.raises(InputError, match=message):
        load_corpus(**arguments)


def test_split_names_a_split_with_text(text_file):
    corpus = load_corpus("text_file", path=text_file, split=(0.5, 0.5, 0))
    assert corpus.split("validation") is corpus.splits["validation"]
    with pytest.raises(InputError, match="split is 'dev'; expected one of train, validation, test"):
        corpus.split("dev")
    with pytest.raises(InputError, match="split is 'test', which is empty in text"):
        corpus.split("test")


@pytest.mark.parametrize("position", [0, 2**20 - 1, 2**20, 2**21 + 5])
def test_check_vocab_names_the_first_id_out_of_range(position):
    tokens = np.full(2**21 + 10, 27, dtype=np.uint8)
    check_vocab(tokens, 28)
    tokens[position] = 28
    tokens[-1] = 100
    check_vocab(tokens, 101)
    with pytest.raises(InputError, match=f"vocab_size is 28, but the token id at position {position:,} of data is 28;"):
        check_vocab(tokens, 28)


def test_check_vocab_looks_into_every_split():
    good, bad = np.zeros(5, np.uint8), np.array([0, 0, 200], np.uint8)
    corpus = Corpus("words", {"train": good, "validation": good[:0], "test": bad})
    check_vocab(corpus, 256)
    check_vocab(corpus, 201)
    with pytest.raises(InputError, match="at position 2 of test is 200; expected ids from 0 to vocab_size - 1"):
        check_vocab(corpus, 200)


def test_check_vocab_at_the_limits_of_the_dtype():
    check_vocab(np.array([255], np.uint8), 256)
    with pytest.raises(InputError, match="at position 0 of data is 255"):
        check_vocab(np.array([255], np.uint8), 255)
    check_vocab(np.array([0, 127], np.int8), 128)
    with pytest.raises(InputError, match="at position 1 of data is -1"):
        check_vocab(np.array([0, -1], np.int8), 256)


def test_the_embedded_text_needs_no_tfds_and_readers_end_with_the_process():
    script = (
        "import sys\n"
        "from longformer_jax.data import load_corpus, train_batches\n"
        "data = load_corpus('tiny_shakespeare').splits['train']\n"
        "batches = train_batches(data, sequence_length=64, batch_size=2, seed=0)\n"
        "assert next(batches).shape == (2, 65)\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=300)
