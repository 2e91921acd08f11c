"""The tokenizers of RoBERTa's kin, through the tokenizers library: id for id those of transformers' AutoTokenizer.

transformers 5 takes the vocabulary alone from a tokenizer.json where a class of its own is named, as RobertaTokenizer,
or follows from the model; all else is as the class has it. So it is here, and where a file wants to cut texts in
another way, it is refused: what it wants would be passed over. The special tokens around a text are the class's,
whatever post-processor the file has, and whatever `add_bos_token` and `add_eos_token` are in tokenizer_config.json.
"""

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from longformer_jax.checksums import check_sum, recording
from longformer_jax.errors import InputError
from longformer_jax.files import read_file, read_json, user_path
from longformer_jax.weights.added_tokens import (
    SPECIAL_TOKENS,
    DeclaredTokens,
    content,
    optional_json,
    read_declared_tokens,
)
from longformer_jax.weights.hub import TOKENIZER_FILES, find_directory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(source: str | os.PathLike[str]) -> "Tokenizer":
    """The tokenizer of a model: what transformers' AutoTokenizer makes of the same files, id for id.

    Added tokens, `add_prefix_space` and the names of special tokens are read from tokenizer_config.json,
    special_tokens_map.json and added_tokens.json. It neither truncates nor pads, even if a tokenizer.json says so.

    Args:
      source: a tokenizer.json, taken as it is; a directory with one, or with vocab.json and merges.txt; or a model of
        the hub.

    Raises:
      InputError: the files are missing or damaged, the vocabulary lacks a special token, an added token would get
        another id than its file says, or transformers would take it for another kind of tokenizer than RoBERTa's,
        XLM-RoBERTa's, CamemBERT's, or a tokenizer.json as it is (`PreTrainedTokenizerFast`).
    """
    path = user_path("source", source)
    if path.is_file():
        check_sum(path)
        _check_not_sentencepiece(source, path)
        return _parse(path)
    path = find_directory(source)
    for name in TOKENIZER_FILES:
        check_sum(path / name)
    file = path / TOKENIZER
    if not file.is_file() and not all((path / name).is_file() for name in ("vocab.json", "merges.txt")):
        _check_not_sentencepiece(source, *sorted(path.iterdir()))
        raise InputError(
            f"source is {str(source)!r}; expected a directory with {TOKENIZER}, or with vocab.json and merges.txt"
        )
    config = optional_json(path / TOKENIZER_CONFIG)
    if file.is_file():  # beside which transformers drops these fields; text in them would be a token
        config = {name: value for name, value in config.items() if name not in ("add_bos_token", "add_eos_token")}
    _check_flags(path, config, "split_special_tokens")
    name = tokenizer_class(path)
    if name is None and file.is_file() or name in _AS_IT_IS:
        if not file.is_file():
            raise InputError(f"{path} has a {name}, but no {TOKENIZER}; expected one")
        tokenizer = _parse(file)
        read_declared_tokens(path, config, _stored_tokens(file), {}).add_to(tokenizer, file)
    else:
        tokenizer = _build(path, config, name or "RobertaTokenizer")
    tokenizer.encode_special_tokens = config.get("split_special_tokens", False)
    return tokenizer


def _check_flags(directory: Path, config: Mapping[str, Any], *names: str) -> None:
    """Raises InputError where a field is there, but not true or false; null is an error in transformers, too."""
    for name in names:
        if name in config and type(config[name]) is not bool:
            value = json.dumps(config[name], ensure_ascii=False)
            raise InputError(f"{directory / TOKENIZER_CONFIG}: {name} is {value}; expected true or false")


def _check_not_sentencepiece(source: str | os.PathLike[str], *files: Path) -> None:
    for file in files:
        if file.suffix == ".model":
            raise InputError(
                f"source is {str(source)!r}, with {file.name}, which only the library sentencepiece reads; expected "
                f"{TOKENIZER}, which transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…) makes of it"
            )


def save_tokenizer(directory: Path, tokenizer: "Tokenizer", max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, from which transformers, too, has this very tokenizer."""
    vocabulary = tokenizer.get_vocab()
    roles = {role: token for role, token in SPECIAL_TOKENS.items() if token in vocabulary}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **roles}
    with recording(directory / TOKENIZER) as partial:
        tokenizer.save(str(partial))
    with recording(directory / TOKENIZER_CONFIG) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_class(directory: Path) -> str | None:
    """The class that transformers' AutoTokenizer takes for a directory; None where it has no config.json.

    Named by tokenizer_config.json, or config.json, or the kind of the model.
    """
    model = optional_json(directory / "config.json")
    name = optional_json(directory / TOKENIZER_CONFIG).get("tokenizer_class") or model.get("tokenizer_class")
    if name is None and not model:
        return None
    kind = model.get("model_type")
    if name is None and isinstance(kind, str):
        name = _CLASS_OF_MODEL.get(kind)
    if not isinstance(name, str):
        raise InputError(
            f"{directory} is of the model_type {kind!r} and names no tokenizer_class (found {name!r}); expected one of "
            f"{', '.join(_CLASS_OF_MODEL)}, or a tokenizer_class in {TOKENIZER_CONFIG}"
        )
    return name.removesuffix("Fast") if name != "PreTrainedTokenizerFast" else name


class _Class(NamedTuple):
    """A class of transformers: how its model and its steps are made, and what else a tokenizer.json may have."""

    build: Callable[[Mapping[str, Any], Mapping[str, Any]], "Tokenizer"]
    template: Callable[["Tokenizer", DeclaredTokens, Mapping[str, Any]], Any]
    model: str
    normalizers: tuple[str, ...]
    pre_tokenizers: tuple[str, ...]


def _build(directory: Path, config: Mapping[str, Any], name: str) -> "Tokenizer":
    if name not in _CLASSES:
        raise InputError(
            f"{directory} has a {name}; expected one of {', '.join(_CLASSES)}, or PreTrainedTokenizerFast for a "
            f"{TOKENIZER} as it is (tokenizer_class in {TOKENIZER_CONFIG})"
        )
    _check_flags(directory, config, "add_prefix_space", "trim_offsets")
    cls = _CLASSES[name]
    file = directory / TOKENIZER
    if file.is_file():
        values = json.loads(_parse(file).to_str())  # as the library's present version writes it
        _check_parts(values, cls, name, file)
    else:
        values = _bare_files(directory)
    source = file if file.is_file() else directory / "vocab.json"
    try:
        tokenizer = cls.build(values, config)
    except Exception as error:  # the library has no class of its own
        raise InputError(f"{source} does not make a {name} ({_line(error)}); expected the files of one") from None
    declared = read_declared_tokens(directory, config, values["added_tokens"], SPECIAL_TOKENS)
    if name == "CamembertTokenizer":
        _refine_camembert(declared)
    vocabulary = tokenizer.get_vocab().keys() | {token.content for token in declared.by_id.values()}
    missing = [token for token in dict.fromkeys(SPECIAL_TOKENS.values()) if token not in vocabulary]
    used = {content(token) for token in declared.named.values()}
    if missing := [token for token in missing if token in used]:
        raise InputError(f"{source} has no {' and no '.join(missing)}; expected RoBERTa's special tokens in it")
    declared.add_to(tokenizer, source)
    try:
        tokenizer.post_processor = cls.template(tokenizer, declared, config)
    except KeyError as error:
        raise InputError(f"{directory / TOKENIZER_CONFIG}: {error.args[0]} is null; expected a token") from None
    return tokenizer


def _check_parts(values: Mapping[str, Any], cls: _Class, name: str, file: Path) -> None:
    """Raises InputError where a tokenizer.json has a step that its class passes over."""
    for field, allowed in (
        ("model", (cls.model,)),
        ("normalizer", cls.normalizers),
        ("pre_tokenizer", cls.pre_tokenizers),
    ):
        if other := _types(values[field]) - set(allowed):
            raise InputError(
                f"{file} has the {field} {' and '.join(sorted(other))}, which a {name} has not, so that transformers "
                f"passes over it; expected {' or '.join(allowed) or 'none'}, or another tokenizer_class in "
                f"{TOKENIZER_CONFIG}, as PreTrainedTokenizerFast, which takes the file as it is"
            )


def _types(part: Any) -> set[str]:
    """The types of a part of a tokenizer.json and of what it is a sequence of."""
    if part is None:
        return set()
    if part["type"] == "Sequence":
        return set().union(*(_types(x) for x in part.get("normalizers") or part.get("pretokenizers") or ()))
    return {part["type"]}


def _byte_level(values: Mapping[str, Any], config: Mapping[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge) for merge in values["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(values["model"]["vocab"], merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_level_template(tokenizer: "Tokenizer", tokens: DeclaredTokens, config: Mapping[str, Any]) -> Any:
    from tokenizers import processors

    sep, cls = (_role(tokenizer, tokens, role) for role in ("sep_token", "cls_token"))
    return processors.RobertaProcessing(
        sep, cls, trim_offsets=config.get("trim_offsets", True), add_prefix_space=config.get("add_prefix_space", False)
    )


def _unigram(values: Mapping[str, Any], config: Mapping[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = [(piece, score) for piece, score in values["model"]["vocab"]]
    pieces = [piece for piece, _ in vocabulary]
    unknown = config.get("unk_token", "<unk>")
    unknown = unknown["content"] if isinstance(unknown, Mapping) else unknown
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=pieces.index(unknown), byte_fallback=False))
    normalizer = values["normalizer"]
    for part in (normalizer or {}).get("normalizers", [normalizer]):
        if part is not None and part["type"] == "Precompiled":
            tokenizer.normalizer = normalizers.Precompiled(base64.b64decode(part["precompiled_charsmap"]))
    scheme = "always" if config.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def _unigram_template(tokenizer: "Tokenizer", tokens: DeclaredTokens, config: Mapping[str, Any]) -> Any:
    from tokenizers import processors

    bos, eos = (_role(tokenizer, tokens, role) for role in ("bos_token", "eos_token"))
    single = [bos[0], "$A", eos[0]]
    return processors.TemplateProcessing(
        single=single, pair=[*single, eos[0], "$B", eos[0]], special_tokens=list(dict.fromkeys([bos, eos]))
    )


def _role(tokenizer: "Tokenizer", tokens: DeclaredTokens, role: str) -> Any:
    """The token of a role, and its id."""
    text = content(tokens.named[role])
    return text, tokenizer.token_to_id(text)


def _refine_camembert(tokens: DeclaredTokens) -> None:
    """What CamembertTokenizer adds on its own account."""
    from tokenizers import AddedToken

    mask = tokens.named.get("mask_token")
    if isinstance(mask, str):
        tokens.named["mask_token"] = AddedToken(mask, lstrip=True, special=True)
    if tokens.extra is None:
        tokens.extra = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]


def _parse(path: Path) -> "Tokenizer":
    """A tokenizer.json as it is, but that it neither cuts nor pads."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(read_file(path).decode("utf-8-sig"))
    except Exception as error:  # the library has no class of its own
        raise InputError(
            f"{path} is damaged ({_line(error)}); expected a tokenizer of the tokenizers library"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _stored_tokens(file: Path) -> list[dict[str, Any]]:
    return read_json(file).get("added_tokens") or []


def _bare_files(directory: Path) -> dict[str, Any]:
    """vocab.json and merges.txt, in the form of a tokenizer.json."""
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    try:
        lines = read_file(merges).decode("utf-8-sig").split("\n")
        pairs = [tuple(line.strip().split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
        if wrong := [pair for pair in pairs if len(pair) != 2]:
            raise ValueError(f"{' '.join(wrong[0])!r} in {merges.name} is no pair of tokens")
    except ValueError as error:  # no UTF-8, too
        raise InputError(
            f"{vocab} and {merges.name} do not make a tokenizer ({_line(error)}); expected those of a byte-level BPE"
        ) from None
    return {"model": {"vocab": read_json(vocab), "merges": pairs}, "added_tokens": []}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


_ROBERTA = _Class(_byte_level, _byte_level_template, "BPE", (), ("ByteLevel",))
_XLM_ROBERTA = _Class(
    *(_unigram, _unigram_template, "Unigram"), ("Precompiled", "Strip", "Replace"), ("WhitespaceSplit", "Metaspace")
)
_CLASSES = {
    "RobertaTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _XLM_ROBERTA,
    "CamembertTokenizer": _XLM_ROBERTA,
}
_CLASS_OF_MODEL = {
    "roberta": "RobertaTokenizer",
    "longformer": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
_AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
