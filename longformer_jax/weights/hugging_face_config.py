"""`LongformerConfig` from and to the config.json of Hugging Face."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.files import read_json
from longformer_jax.models import LongformerConfig

CONFIG = "config.json"

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
}
# Fields that Hugging Face does not have, written where they are not these.
_ROBERTA: dict[str, Any] = {"attention_mode": "full", "global_projections": False, "attention_dilation": 1}
_LONGFORMER: dict[str, Any] = {"attention_mode": "sliding_window", "global_projections": True, "attention_dilation": 1}
_OWN_FIELDS = {"roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA, "longformer": _LONGFORMER}


def read_values(directory: Path) -> dict[str, Any]:
    """The fields of DIRECTORY/config.json; raises InputError where there is none or it is damaged."""
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(f"{directory} has no {CONFIG}; expected the directory of a model")
    return read_json(path)


def read_config(directory: Path) -> LongformerConfig:
    """`config_from_hugging_face` of DIRECTORY/config.json; its errors begin with the file's name."""
    values = read_values(directory)
    try:
        return config_from_hugging_face(values)
    except InputError as error:
        raise InputError(f"{directory / CONFIG}: {error}") from None


def config_from_hugging_face(values: Mapping[str, Any]) -> LongformerConfig:
    """The configuration that Hugging Face's fields describe.

    Longformer becomes sliding-window attention with global projections, RoBERTa and its kin full attention without.
    The fields `attention_mode`, `global_projections` and `attention_dilation`, which Hugging Face does not have, are
    read where `config_to_hugging_face` wrote them.

    Raises:
      InputError: it is another kind of model, or has what this one has not, as positions that are not absolute.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _OWN_FIELDS:
        raise InputError(f"model_type is {kind!r}; expected one of {', '.join(_OWN_FIELDS)}")
    if (positions := values.get("position_embedding_type")) not in (None, "absolute"):
        raise InputError(f"position_embedding_type is {positions!r}; expected 'absolute'")
    for name in ("is_decoder", "add_cross_attention"):
        if values.get(name):
            raise InputError(f"{name} is {values[name]!r}; expected false, as this is an encoder")
    labels = values.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise InputError(f"id2label is {labels!r}; expected a name for each label")

    defaults = _DEFAULTS | _OWN_FIELDS[kind]
    if kind == "roberta":
        defaults["vocab_size"] = 50265
    fields = {name: values.get(name, default) for name, default in defaults.items()}
    if fields["attention_mode"] == "longformer":  # so AI2's own files say
        fields["attention_mode"] = "sliding_window"
    if type(fields["global_projections"]) is not bool:
        raise InputError(f"global_projections is {fields['global_projections']!r}; expected true or false")
    separator = values.get("sep_token_id")
    return LongformerConfig(
        **fields,
        attention_window=values.get("attention_window", 512),
        sep_token_id=values.get("eos_token_id", 2) if separator is None else separator,
        num_labels=len(labels) if labels else values.get("num_labels", 2),
    )


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
    usual = dataclasses.replace(config, **_OWN_FIELDS[kind])
    values |= {name: getattr(config, name) for name in _ROBERTA if getattr(config, name) != getattr(usual, name)}
    if config.num_labels != 2:
        labels = [f"LABEL_{i}" for i in range(config.num_labels)]
        values |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return values
