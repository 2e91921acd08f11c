"""The tokenizer against transformers', made by tests/golden/make_tokenizer.py."""

import json
import shutil
from pathlib import Path

import pytest

from longformer_jax import InputError
from longformer_jax.weights import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
VOCAB = Path(__file__).parents[3] / "shared" / "data" / "vocab"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def test_encodes_as_transformers_does() -> None:
    tokenizer = load_tokenizer(GOLDEN)
    for text, ids in json.loads((GOLDEN / "encodings.json").read_text()):
        found = tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)
        assert found.ids == ids, text


def test_text_comes_back() -> None:
    tokenizer = load_tokenizer(GOLDEN)
    text = "hello  wörld 日本 👩‍👩‍👧 \t\n"
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    # Words without the spaces before them, in characters, for answers and entities.
    word = encoding.tokens.index("rld") if "rld" in encoding.tokens else encoding.char_to_token(10)
    assert text[slice(*encoding.offsets[word])].strip()


def test_tokenizer_json_goes_first(directory: Path) -> None:
    load_tokenizer(directory).save(str(directory / "tokenizer.json"))
    (directory / "vocab.json").write_text("damaged")
    for path in (directory, directory / "tokenizer.json"):
        assert load_tokenizer(path).encode("hello").ids == load_tokenizer(GOLDEN).encode("hello").ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "expected a directory with tokenizer.json, or with vocab.json and merges.txt"),
        ("merges.txt", None, "expected a directory with tokenizer.json"),
        ("vocab.json", '{"<s>": 0', "do not make a tokenizer"),
        ("vocab.json", '{"<s>": 0, "a": 1}', "do not make a tokenizer"),
        ("merges.txt", "h e x\n", "do not make a tokenizer"),
        ("tokenizer.json", "{}", "tokenizer.json is damaged"),
        ("tokenizer.json", "", "tokenizer.json is damaged"),
    ],
)
def test_missing_and_damaged_files(directory: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(directory)
    assert "\n" not in str(raised.value)


def test_special_tokens_are_needed(directory: Path) -> None:
    vocab = json.loads((directory / "vocab.json").read_text())
    del vocab["<mask>"], vocab["<unk>"]
    (directory / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match="has no <unk> and no <mask>"):
        load_tokenizer(directory)


@pytest.mark.skipif(not VOCAB.is_dir(), reason="RoBERTa's own vocabulary is not beside the project")
def test_roberta(tmp_path: Path) -> None:
    shutil.copy(VOCAB / "roberta_vocab.json", tmp_path / "vocab.json")
    shutil.copy(VOCAB / "roberta_merges.txt", tmp_path / "merges.txt")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("Hello world!").ids == [0, 31414, 232, 328, 2]
    assert tokenizer.get_vocab_size() == 50265
