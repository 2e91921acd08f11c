"""Makes tests/golden/tokenizer: tiny vocabularies, and what transformers' AutoTokenizer makes of texts with them.

python tests/golden/make_tokenizer.py        (an environment with transformers; written with 5.24.0)

vocab.json, merges.txt and encodings.json are of a directory without any other file; variants.json has, for each of some
directories, its files (null for one of the first two that is left out) and the ids of a few texts.
"""

import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import transformers
from tokenizers import pre_tokenizers

ROOT = pathlib.Path(__file__).parent / "tokenizer"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "Ã ©", "Ġ Ġ", "' s", "1 2"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
TEXTS = [
    "",
    " ",
    "hello world",
    " hello  world",
    "Hello world's 123!",
    "tabs\tand\nlines\r\n\n end ",
    "café naïve Ünïcödé",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧 🇫🇮",
    "non-breaking\u00a0space, \u200bzero width, \ufeffBOM",
    "a <mask> b<mask> c",
    "<s>hello</s></s>world</s>",
    "hello<pad><pad><unk>",
    "\x00\x7f\ud7ff\ufffd",
]
PAIRS = [["hello", "world"], ["", "hello"]]
FEW = ["hello world", " hello  Hello <mask> o<mask>", "o <ent> world<ent>r", "</s><pad> <new>", "", ["hello", "<ent>"]]
PIECES = {
    "<unk>": -9.0,
    "▁": -4.0,
    "▁hell": -3.0,
    "o": -3.5,
    "▁world": -3.2,
    "w": -5.0,
    "r": -5.0,
    "▁H": -4.5,
    "e": -4.6,
}
ROBERTA, LONGFORMER, XLM, CAMEMBERT = (
    {"config.json": {"model_type": kind}} for kind in ("roberta", "longformer", "xlm-roberta", "camembert")
)


def token(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content} | usual | flags


def saved(tokenizer: Any) -> dict[str, Any]:
    """The files that transformers writes."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        paths = pathlib.Path(directory).iterdir()
        return {path.name: json.loads(path.read_text()) for path in paths if path.suffix == ".json"}


def sentencepiece(cls: type, first: list[str]) -> dict[str, Any]:
    vocabulary = [(piece, 0.0) for piece in first] + list(PIECES.items())[1:] + [("<mask>", 0.0)]
    return saved(cls(vocab=vocabulary))


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    size = len(json.loads((ROOT / "vocab.json").read_text()))
    mask = token("<mask>", lstrip=True)
    plain = {key: x for key, x in mask.items() if key != "special"} | {"normalized": True}
    yield "bare", ROBERTA
    yield "added_tokens", ROBERTA | {"added_tokens.json": {"<ent>": size, "<new>": size + 1}}
    yield "prefix_space", LONGFORMER | {"tokenizer_config.json": {"add_prefix_space": True}}
    yield (
        "special_tokens_map",  # as transformers 3 and 4 wrote it
        LONGFORMER
        | {
            "special_tokens_map.json": {
                "mask_token": plain,
                "cls_token": "<s>",
                "additional_special_tokens": ["<ent>"],
            },
            "added_tokens.json": {"<ent>": size},
            "tokenizer_config.json": {"model_max_length": 4096, "tokenizer_class": "LongformerTokenizer"},
        },
    )
    yield (
        "other_roles",
        ROBERTA
        | {
            "tokenizer_config.json": {"sep_token": "<unk>", "mask_token": {"__type": "AddedToken"} | mask},
            "special_tokens_map.json": {"cls_token": "</s>", "an_own_token": "<new>"},
        },
    )
    yield (
        "added_tokens_decoder",  # the other files do not count beside it
        ROBERTA
        | {
            "tokenizer_config.json": {
                "added_tokens_decoder": {str(size): token("<ent>", lstrip=True), str(size - 1): mask},
                "extra_special_tokens": ["<new>"],
            },
            "added_tokens.json": {"<other>": size},
            "special_tokens_map.json": {"sep_token": "<unk>"},
        },
    )
    small = [*SPECIAL, *sorted({x for merge in MERGES[:9] for x in merge.replace(" ", "")}), "H"]
    small += [merge.replace(" ", "") for merge in MERGES[:9]] + ["<mask>"]
    made = transformers.RobertaTokenizer(
        vocab={x: i for i, x in enumerate(small)},
        merges=[tuple(merge.split()) for merge in MERGES[:9]],
        mask_token=transformers.AddedToken("<mask>", lstrip=True, special=True),
    )
    made.add_tokens(["<ent>"])
    files = {"vocab.json": None, "merges.txt": None, **saved(made)}
    yield "saved", LONGFORMER | files
    file = files["tokenizer.json"]
    cut = file | {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"},
        },
    }
    alone = ROBERTA | files | {"tokenizer.json": cut, "tokenizer_config.json": None}
    yield "stored_truncation", alone
    yield "prefix_space_beside_a_file", alone | {"tokenizer_config.json": {"add_prefix_space": True}}
    yield "added_beside_a_file", alone | {"added_tokens.json": {"<new>": len(small) + 1}}
    lower = file | {"normalizer": {"type": "Lowercase"}, "post_processor": None}
    generic = {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>", "add_prefix_space": True}
    yield "as_it_is", LONGFORMER | files | {"tokenizer.json": lower, "tokenizer_config.json": generic}
    # transformers drops these fields beside a tokenizer.json; else a class's own template replaces what they ask for.
    flags = {"add_bos_token": False, "add_eos_token": True}
    yield "bos_and_eos_flags", ROBERTA | {"tokenizer_config.json": flags}
    yield "bos_and_eos_flags_beside_a_file", alone | {"tokenizer_config.json": flags | {"add_bos_token": "o"}}
    flags = flags | {"add_prefix_space": None, "bos_token": "<s>", "eos_token": "</s>"}
    yield (
        "as_it_is_with_flags",
        alone | {"tokenizer.json": file | {"post_processor": None}, "tokenizer_config.json": generic | flags},
    )
    # As tokenizers trained from scratch have them.
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    bert = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    yield "byte_level_post_processor", alone | {"tokenizer.json": file | {"post_processor": byte_level}}
    yield "bert_post_processor", alone | {"tokenizer.json": file | {"post_processor": bert}}
    yield (
        "bert_post_processor_as_it_is",
        alone | {"tokenizer.json": file | {"post_processor": bert}, "tokenizer_config.json": generic},
    )
    xlm = sentencepiece(transformers.XLMRobertaTokenizer, SPECIAL)
    none = {"vocab.json": None, "merges.txt": None}
    yield "xlm_roberta", XLM | none | xlm
    yield "xlm_roberta_in_a_longformer", LONGFORMER | none | xlm
    small_config = {"tokenizer_class": "XLMRobertaTokenizerFast", "additional_special_tokens": ["<ent>"]}
    yield "xlm_roberta_by_name", LONGFORMER | none | xlm | {"tokenizer_config.json": small_config}
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    camembert = sentencepiece(transformers.CamembertTokenizer, first)
    yield "camembert", CAMEMBERT | none | camembert
    yield "camembert_by_kind", CAMEMBERT | none | camembert | {"tokenizer_config.json": None}


def encode(tokenizer: Any, text: str | list[str]) -> list[int]:
    return (tokenizer(text) if isinstance(text, str) else tokenizer(*text))["input_ids"]


def load(files: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name in ("vocab.json", "merges.txt"):
            (root / name).write_text((ROOT / name).read_text())
        for name, values in files.items():
            if values is not None:
                (root / name).write_text(json.dumps(values))
            else:
                (root / name).unlink(missing_ok=True)
        return transformers.AutoTokenizer.from_pretrained(root)


def main() -> None:
    ROOT.mkdir(exist_ok=True)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<mask>"]
    (ROOT / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (ROOT / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    bare = load(ROBERTA)
    (ROOT / "encodings.json").write_text(json.dumps([[text, encode(bare, text)] for text in [*TEXTS, *PAIRS]]) + "\n")
    found = {}
    for name, files in variants():
        tokenizer = load(files)
        found[name] = {"files": files, "ids": [[text, encode(tokenizer, text)] for text in FEW]}
        print(name, type(tokenizer).__name__, found[name]["ids"])
    (ROOT / "variants.json").write_text(json.dumps(found, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
