"""RoBERTa's tokenizer: byte-level BPE, through the tokenizers library."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.weights.hub import find_directory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def load_tokenizer(source: str | os.PathLike[str]) -> "Tokenizer":
    """The tokenizer of a model; its encodings begin with <s> and end with </s>.

    Args:
      source: a tokenizer.json, a directory with one or with vocab.json and merges.txt, or a model of the hub.

    Raises:
      InputError: the files are missing or damaged, or the vocabulary lacks a token of RoBERTa's.
    """
    path = user_path("source", source)
    if path.is_file():
        return _from_json(path)
    path = find_directory(source)
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json")
    vocab, merges = path / "vocab.json", path / "merges.txt"
    if vocab.is_file() and merges.is_file():
        return _from_vocab(vocab, merges)
    raise InputError(
        f"source is {str(source)!r}; expected a directory with tokenizer.json, or with vocab.json and merges.txt"
    )


def _from_json(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of its own
        raise InputError(
            f"{path} is damaged ({_line(error)}); expected a tokenizer of the tokenizers library"
        ) from None


def _from_vocab(vocab: Path, merges: Path) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:
        raise InputError(
            f"{vocab} and {merges.name} do not make a tokenizer ({_line(error)}); expected those of a byte-level BPE"
        ) from None
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in _SPECIAL if token not in vocabulary]:
        raise InputError(f"{vocab} has no {' and no '.join(missing)}; expected RoBERTa's special tokens in it")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
    )
    # A mask takes the place of a word, with the space before it.
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == "<mask>", special=True) for token in _SPECIAL])
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
