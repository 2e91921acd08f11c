"""Makes tests/golden/tokenizer: a tiny vocabulary, and what transformers' RobertaTokenizer makes of texts with it.

python tests/golden/make_tokenizer.py        (an environment with transformers; written with 5.24.0)
"""

import json
import pathlib

import transformers
from tokenizers import pre_tokenizers

ROOT = pathlib.Path(__file__).parent / "tokenizer"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "Ã ©", "Ġ Ġ", "' s", "1 2"]
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


def main() -> None:
    ROOT.mkdir(exist_ok=True)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<mask>"]
    (ROOT / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (ROOT / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    # As in roberta-base's tokenizer.json: a mask stands for a word and the space before it.
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    tokenizer = transformers.RobertaTokenizer.from_pretrained(ROOT, mask_token=mask)
    ids = [[text, tokenizer(text)["input_ids"]] for text in TEXTS] + [
        [pair, tokenizer(*pair)["input_ids"]] for pair in PAIRS
    ]
    (ROOT / "encodings.json").write_text(json.dumps(ids) + "\n")


if __name__ == "__main__":
    main()
