"""Tokens that a tokenizer's files declare beside its vocabulary; how transformers 5 reads and adds them."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longformer_jax.errors import InputError
from longformer_jax.files import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# What transformers' classes call special tokens unless they are told otherwise, in the order in which it adds them.
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclasses.dataclass
class DeclaredTokens:
    """What files say about tokens.

    Attributes:
      by_id: tokens whose ids are given.
      named: special tokens that have a role, by its name: "mask_token", …
      extra: special tokens that have none; None where no file says whether there are any.
    """

    by_id: dict[int, "AddedToken"]
    named: dict[str, "AddedToken | str"]
    extra: list["AddedToken | str"] | None

    def add_to(self, tokenizer: "Tokenizer", source: Path) -> None:
        """Adds what the tokenizer of a file does not have as it is declared.

        Raises:
          InputError: an id would be another.
        """
        there = tokenizer.get_added_tokens_decoder().values()
        tokens: list[Any] = [x for _, x in sorted(self.by_id.items()) if repr(x) not in set(map(repr, there))]
        known = {token.content for token in [*there, *tokens]}
        for token in (*self.named.values(), *(self.extra or ())):
            if content(token) not in known and token not in tokens:  # of two declarations of one token the last counts
                tokens.append(token)
        tokens = [_special(token) for token in tokens]
        roles = {content(token) for token in self.named.values()}
        for token in tokens:
            token.special = token.special or token.content in roles
        tokenizer.add_tokens(tokens)
        for declared_id, token in self.by_id.items():
            found = tokenizer.token_to_id(token.content)
            if found != declared_id:
                raise InputError(
                    f"{source}: the token {token.content!r} has the id {declared_id} in the tokenizer's files, but "
                    f"gets {found}, as in transformers; expected ids that follow the vocabulary's without a gap"
                )


def content(token: "AddedToken | str") -> str:
    """The text of a token."""
    return token if isinstance(token, str) else token.content


def read_declared_tokens(
    directory: Path, config: Mapping[str, Any], stored: Iterable[Mapping[str, Any]], roles: Mapping[str, str]
) -> DeclaredTokens:
    """The tokens of a directory.

    As in transformers, special_tokens_map.json, added_tokens.json and a tokenizer.json's own tokens count only where
    tokenizer_config.json has no `added_tokens_decoder`.

    Args:
      directory: of the tokenizer's files.
      config: its tokenizer_config.json.
      stored: `added_tokens` of its tokenizer.json.
      roles: special tokens as the class has them.

    Raises:
      InputError: the files declare tokens in another way.
    """
    try:
        return _read(directory, config, stored, roles)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"the tokens that the files in {directory} declare are damaged ({error}); expected them as transformers "
            "writes them"
        ) from None


def optional_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, which need not be there."""
    return read_json(path) if path.is_file() else {}


def _read(directory, config, stored, roles) -> DeclaredTokens:
    from tokenizers import AddedToken

    fields = dict(config)
    by_id: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        by_id = {int(key): _token(value) for key, value in config["added_tokens_decoder"].items()}
    else:
        fields |= optional_json(directory / "special_tokens_map.json")
    named = {key: _declared(fields.get(key, token)) for key, token in roles.items()}
    named |= {key: _declared(value) for key, value in fields.items() if _is_role(key, value)}
    extra = _extra(config, fields)
    if isinstance(extra, Mapping):  # with roles of their own
        named |= {key: _declared(value) for key, value in extra.items()}
        extra = fields.get("additional_special_tokens")
    extra = extra if extra is None else [_declared(token) for token in extra]
    named = {key: token for key, token in named.items() if token is not None}
    if "added_tokens_decoder" not in config:
        listed = _extra_of_config(config)
        special = {content(token) for token in named.values()}
        special |= {content(_declared(token)) for token in listed or () if isinstance(listed, list)}
        for text, token_id in optional_json(directory / "added_tokens.json").items():
            is_special = text in special
            by_id[token_id] = AddedToken(text, normalized=not is_special, special=is_special)
        by_id |= {token["id"]: _token(token) for token in stored}
    if not all(type(token_id) is int for token_id in by_id):
        raise ValueError("an id is no integer")
    by_text = {token.content: token for token in by_id.values()}
    return DeclaredTokens(by_id, {key: by_text.get(content(token), token) for key, token in named.items()}, extra)


def _extra_of_config(config: Mapping[str, Any]) -> Any:
    """Special tokens without a standard role, under their new name or their old one; null is none of them."""
    fields = ("extra_special_tokens", "additional_special_tokens")
    found = next((config[field] for field in fields if config.get(field)), None)
    return [] if found is None and any(field in config for field in fields) else found


def _extra(config: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    """The same with those of special_tokens_map.json, whose old name counts only where nothing else does."""
    found, added = _extra_of_config(config), fields.get("extra_special_tokens")
    if added is not config.get("extra_special_tokens") and isinstance(added, list):
        return [*(found or ()), *(token for token in added if token not in (found or ()))]
    return fields.get("additional_special_tokens") if found is None else found


def _is_role(key: str, value: Any) -> bool:
    return key.endswith("_token") and isinstance(value, str | Mapping)


def _declared(value: Any) -> Any:
    """A token of tokenizer_config.json or special_tokens_map.json: text, its settings, or null."""
    if not isinstance(value, Mapping):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"a special token is {value!r}")
        return value
    return _token({**value, "special": True})


def _token(value: Mapping[str, Any]) -> "AddedToken":
    from tokenizers import AddedToken

    return AddedToken(value["content"], **{key: value[key] for key in _FLAGS if key in value})


def _special(token: "AddedToken | str") -> "AddedToken":
    from tokenizers import AddedToken

    return AddedToken(token, special=True) if isinstance(token, str) else token
