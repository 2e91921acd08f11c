"""The tokenizer against transformers', made by tests/golden/make_tokenizer.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from longformer_jax import InputError
from longformer_jax.weights import load_tokenizer
from longformer_jax.weights.tokenizer import save_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"
VARIANTS = json.loads((GOLDEN / "variants.json").read_text(encoding="utf-8"))
VOCAB = Path(__file__).parents[3] / "shared" / "data" / "vocab"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def assert_encodes(tokenizer: Tokenizer, expected: list[Any]) -> None:
    for text, ids in expected:
        found = tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)
        assert found.ids == ids, text


def write_files(directory: Path, files: dict[str, Any]) -> None:
    for name, values in files.items():
        if values is None:
            (directory / name).unlink(missing_ok=True)
        else:
            (directory / name).write_text(json.dumps(values), encoding="utf-8")


def test_encodes_as_transformers_does() -> None:
    assert_encodes(load_tokenizer(GOLDEN), json.loads((GOLDEN / "encodings.json").read_text()))


@pytest.mark.parametrize("name", VARIANTS)
def test_files_beside_the_vocabulary(directory: Path, name: str) -> None:
    write_files(directory, VARIANTS[name]["files"])
    assert_encodes(load_tokenizer(directory), VARIANTS[name]["ids"])


@pytest.mark.parametrize("name", ["added_tokens", "special_tokens_map", "as_it_is", "xlm_roberta", "camembert"])
def test_what_is_saved_gives_the_same_ids(directory: Path, name: str) -> None:
    write_files(directory, VARIANTS[name]["files"])
    tokenizer = load_tokenizer(directory)
    tokenizer.enable_truncation(4)
    saved = directory / "saved"
    saved.mkdir()
    save_tokenizer(saved, tokenizer, 4096)
    assert json.loads((saved / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"},
    }
    assert_encodes(load_tokenizer(saved), VARIANTS[name]["ids"])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_byte_order_mark_and_blank_lines(directory: Path, newline: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        text = (directory / name).read_text(encoding="utf-8") + "\n\n"
        (directory / name).write_bytes(text.replace("\n", newline).encode("utf-8-sig"))
    assert_encodes(load_tokenizer(directory), json.loads((GOLDEN / "encodings.json").read_text()))
    load_tokenizer(GOLDEN).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_text().encode("utf-8-sig"))
    assert_encodes(load_tokenizer(directory), json.loads((GOLDEN / "encodings.json").read_text()))


LOWER = VARIANTS["as_it_is"]["files"]["tokenizer.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"added_tokens.json": {"<ent>": 280}},
            "json: the token '<ent>' has the id 280 in the tokenizer's files, but gets 274",
        ),
        ({"added_tokens.json": {"<ent>": "274"}}, "declare are damaged"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "<ent>"}}}}, "declare are damaged"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"274": "<ent>"}}}, "declare are damaged"),
        ({"tokenizer_config.json": {"mask_token": 3}}, "declare are damaged .a special token is 3"),
        ({"tokenizer_config.json": {"sep_token": None}}, "tokenizer_config.json: sep_token is null; expected a token"),
        ({"tokenizer_config.json": {"add_prefix_space": "yes"}}, 'add_prefix_space is "yes"; expected true or false'),
        ({"tokenizer_config.json": {"add_prefix_space": 1}}, "add_prefix_space is 1; expected true or false"),
        ({"tokenizer_config.json": {"trim_offsets": None}}, "trim_offsets is null; expected true or false"),
        (
            VARIANTS["xlm_roberta"]["files"] | {"tokenizer_config.json": {"add_prefix_space": None}},
            "tokenizer_config.json: add_prefix_space is null; expected true or false",
        ),
        (
            VARIANTS["as_it_is"]["files"]
            | {"tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "split_special_tokens": "true"}},
            'split_special_tokens is "true"; expected true or false',
        ),
        ({"tokenizer_config.json": []}, "tokenizer_config.json is damaged; expected a JSON object"),
        ({"special_tokens_map.json": {"mask_token": {"text": "<mask>"}}}, "declare are damaged"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}},
            "has a GPT2Tokenizer; expected one of Roberta",
        ),
        (
            {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
            "but no tokenizer.json; expected one",
        ),
        ({"config.json": {"model_type": ["roberta"]}}, r"is of the model_type \['roberta'\] and names no tokenizer_cl"),
        ({"config.json": {"model_type": "bert"}}, "is of the model_type 'bert' and names no tokenizer_class"),
        ({"config.json": {"model_type": "xlm-roberta"}}, "vocab.json does not make a XLMRobertaTokenizer"),
        (
            {"config.json": {"model_type": "longformer"}, "tokenizer.json": LOWER},
            "tokenizer.json has the normalizer Lowercase, which a RobertaTokenizer has not, so that tr",
        ),
        (
            VARIANTS["xlm_roberta"]["files"]
            | {"tokenizer_config.json": None, "config.json": {"model_type": "roberta"}},
            "tokenizer.json has the model Unigram, which a RobertaTokenizer has not.*expected BPE, or another",
        ),
    ],
)
def test_what_transformers_takes_otherwise_is_refused(directory: Path, files: dict, message: str) -> None:
    write_files(directory, files)
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(directory)
    assert "\n" not in str(raised.value)


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


@pytest.mark.parametrize("tokenizer_class", [None, "RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_json_without_added_tokens(directory: Path, tokenizer_class: str | None) -> None:
    load_tokenizer(GOLDEN).save(str(directory / "tokenizer.json"))
    values = json.loads((directory / "tokenizer.json").read_text())
    files: dict[str, Any] = {
        "tokenizer.json": {name: value for name, value in values.items() if name != "added_tokens"}
    }
    if tokenizer_class:
        files["tokenizer_config.json"] = {"tokenizer_class": tokenizer_class}
    write_files(directory, files)
    assert_encodes(load_tokenizer(directory), [["hello", load_tokenizer(GOLDEN).encode("hello").ids]])


def test_what_only_sentencepiece_reads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x0e")
    for source in (tmp_path, tmp_path / "sentencepiece.bpe.model"):
        with pytest.raises(InputError) as raised:
            load_tokenizer(source)
        assert str(raised.value) == (
            f"source is '{source}', with sentencepiece.bpe.model, which only the library sentencepiece reads; expected "
            "tokenizer.json, which transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…) makes of it"
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "expected a directory with tokenizer.json, or with vocab.json and merges.txt"),
        ("merges.txt", None, "expected a directory with tokenizer.json"),
        ("vocab.json", '{"<s>": 0', "vocab.json is damaged"),
        ("vocab.json", '{"<s>": 0, "a": 1}', "vocab.json does not make a RobertaTokenizer"),
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
