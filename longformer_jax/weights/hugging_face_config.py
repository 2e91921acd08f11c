"""`LongformerConfig` from and to the config.json of Hugging Face."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longformer_jax.checksums import check_sum
from longformer_jax.errors import InputError
from longformer_jax.files import read_json
from longformer_jax.integers import as_integer
from longformer_jax.models import LongformerConfig
from longformer_jax.models.checks import check_bool
from longformer_jax.models.longformer_config import default_labels

_log = logging.getLogger(__name__)

CONFIG = "config.json"

# The model_type of a `CharLM`, which Hugging Face does not have; weights/char_lm.py reads and writes it.
CHAR_LM = "longformer_char_lm"

# What transformers takes for fields that a config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
# Fields that Hugging Face does not have, written where they are not these.
_ROBERTA: dict[str, Any] = {"attention_mode": "full", "global_projections": False, "attention_dilation": 1}
_LONGFORMER: dict[str, Any] = {"attention_mode": "sliding_window", "global_projections": True, "attention_dilation": 1}
_KINDS = ("roberta", "xlm-roberta", "camembert", "longformer")
# The modes of AI2's own code, where a window is that of one side; "n2" is RoBERTa's attention.
_AI2_MODES = {"tvm": "sliding_window", "sliding_chunks": "sliding_window", "n2": "full"}


def read_values(directory: Path) -> dict[str, Any]:
    """The fields of DIRECTORY/config.json; raises InputError where there is none or it is damaged."""
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(f"{directory} has no {CONFIG}; expected the directory of a model")
    check_sum(path)
    return read_json(path)


def read_config(directory: Path, *, global_projections: bool = False) -> LongformerConfig:
    """`config_from_hugging_face` of DIRECTORY/config.json; its errors begin with the file's name."""
    values = read_values(directory)
    try:
        return config_from_hugging_face(values, global_projections=global_projections)
    except InputError as error:
        raise InputError(f"{directory / CONFIG}: {error}") from None


def config_from_hugging_face(values: Mapping[str, Any], *, global_projections: bool = False) -> LongformerConfig:
    """The configuration that Hugging Face's fields describe.

    Longformer becomes sliding-window attention with global projections, RoBERTa and its kin full attention without.
    The fields `attention_mode`, `global_projections` and `attention_dilation`, which Hugging Face does not have, are
    read where `config_to_hugging_face` or AI2's own code wrote them.

    Args:
      values: of a config.json.
      global_projections: whether the tensors have global projections. They make a Longformer of what calls itself a
        RoBERTa, as the checkpoints of AI2's conversion notebook do.

    Raises:
      InputError: it is another kind of model, or has what this one has not, as positions that are not absolute.
    """
    check_bool("global_projections", global_projections)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        hint = " (load_pretrained(source, CharLM) reads this one)" if kind == CHAR_LM else ""
        raise InputError(f"model_type is {kind!r}; expected one of {', '.join(_KINDS)}{hint}")
    if (positions := values.get("position_embedding_type")) not in (None, "absolute"):
        raise InputError(f"position_embedding_type is {positions!r}; expected 'absolute'")
    for name in ("is_decoder", "add_cross_attention", "autoregressive"):
        if values.get(name):
            raise InputError(f"{name} is {values[name]!r}; expected false, as this is an encoder")

    is_longformer = kind == "longformer" or global_projections
    defaults = _DEFAULTS | (_LONGFORMER if is_longformer else _ROBERTA)
    if kind == "roberta":
        defaults["vocab_size"] = 50265
    fields = {name: values.get(name, default) for name, default in defaults.items()}
    window = values.get("attention_window")
    if window is None:
        if is_longformer and kind != "longformer":
            raise InputError(
                f"attention_window is missing; expected it, as the tensors are a Longformer's, though model_type is "
                f"{kind!r}"
            )
        window = 512
    mode = fields["attention_mode"]
    if isinstance(mode, str) and mode in _AI2_MODES:
        fields["attention_mode"] = _AI2_MODES[mode]
        fields["global_projections"] = mode != "n2"
        fields["attention_dilation"] = fields["attention_dilation"] or 1
        window = _both_sides(window)
    elif mode == "longformer":  # so the configs say that AI2 made for transformers
        fields["attention_mode"] = "sliding_window"
    if type(fields["global_projections"]) is not bool:
        raise InputError(f"global_projections is {fields['global_projections']!r}; expected true or false")
    return LongformerConfig(
        **fields,
        attention_window=window,
        sep_token_id=_separator(values, 2 if kind == "longformer" else None),
        classifier_dropout=values.get("classifier_dropout"),
        **_labels(values),
    )


def _both_sides(window: Any) -> Any:
    """The window of one side, or those of all layers, doubled."""
    several = isinstance(window, list | tuple)
    sides = [as_integer(entry) for entry in (window if several else [window])]
    doubled = [2 * side for side in sides if side is not None]
    if len(doubled) != len(sides):
        return window  # which LongformerConfig refuses
    return doubled if several else doubled[0]


def _separator(values: Mapping[str, Any], default: int | None) -> Any:
    """`sep_token_id`, the default where it is not named; where that is None `eos_token_id`, maybe a list of one."""
    found = values.get("sep_token_id", default)
    if found is not None:
        return found
    found = values.get("eos_token_id")
    if isinstance(found, list):
        if len(found) != 1:
            raise InputError(f"eos_token_id is {found!r}; expected one id, or sep_token_id beside it")
        found = found[0]
    return 2 if found is None else found


def _labels(values: Mapping[str, Any]) -> dict[str, Any]:
    """`num_labels` and `id2label`; in transformers, too, the names decide how many there are."""
    names = values.get("id2label")
    if names is None:
        return {"num_labels": 2 if values.get("num_labels") is None else values["num_labels"]}
    if not isinstance(names, Mapping) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"id2label is {names!r}; expected a name for each label")
    by_id = {str(key): name for key, name in names.items()}
    if by_id.keys() != {str(i) for i in range(len(names))}:
        _log.warning("id2label is %s, whose ids are not 0 to %d; the names are left out", dict(names), len(names) - 1)
        return {"num_labels": len(names)}
    labels = tuple(by_id[str(i)] for i in range(len(names)))
    if values.get("label2id") not in (None, _ids(labels)):
        _log.warning("label2id is %s, not the inverse of id2label; it is left out", values["label2id"])
    return {"num_labels": len(names), "id2label": labels}


def _ids(labels: Sequence[str]) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels)}


def config_to_hugging_face(config: LongformerConfig, ending: str) -> dict[str, Any]:
    """The fields of config.json for transformers' classes.

    Settings of the computation (`dtype`, `remat`, `implementation`) are left out. transformers passes over the fields
    `attention_mode`, `global_projections` and `attention_dilation`, which are written only where they are not RoBERTa's
    or Longformer's.

    Args:
      config: full attention without global projections is RoBERTa, all else Longformer.
      ending: of the class: "Model", "ForMaskedLM", …
    """
    is_roberta = config.attention_mode == "full" and not config.global_projections
    kind = "roberta" if is_roberta else "longformer"
    values: dict[str, Any] = {
        "architectures": [f"{kind.capitalize()}{ending}"],
        "model_type": kind,
        **{name: getattr(config, name) for name in _DEFAULTS},
        "eos_token_id": config.sep_token_id,
    }
    if not is_roberta:
        values |= {"sep_token_id": config.sep_token_id, "attention_window": config.attention_window}
    usual = dataclasses.replace(config, **(_ROBERTA if is_roberta else _LONGFORMER))
    values |= {name: getattr(config, name) for name in _ROBERTA if getattr(config, name) != getattr(usual, name)}
    if config.classifier_dropout is not None:
        values["classifier_dropout"] = config.classifier_dropout
    if config.num_labels != 2 or config.id2label:
        labels = config.id2label or default_labels(config.num_labels)
        values |= {"id2label": dict(enumerate(labels)), "label2id": _ids(labels)}
    return values
