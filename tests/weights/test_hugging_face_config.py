"""config.json in and out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint import config_of

from longformer_jax import InputError, LongformerConfig
from longformer_jax.weights import config_from_hugging_face, config_to_hugging_face, load_pretrained

# As on the hub.
ROBERTA_BASE = {
    "architectures": ["RobertaForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
LONGFORMER_BASE = ROBERTA_BASE | {
    "attention_mode": "longformer",
    "attention_window": [512] * 12,
    "gradient_checkpointing": False,
    "ignore_attention_mask": False,
    "max_position_embeddings": 4098,
    "model_type": "longformer",
    "sep_token_id": 2,
}
TINY = LongformerConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, attention_window=8
)


def test_published_models() -> None:
    assert config_from_hugging_face(LONGFORMER_BASE) == LongformerConfig()
    assert config_from_hugging_face(ROBERTA_BASE) == LongformerConfig(
        attention_mode="full", global_projections=False, max_position_embeddings=514
    )


@pytest.mark.parametrize(
    ("model_type", "vocab_size"), [("roberta", 50265), ("xlm-roberta", 30522), ("longformer", 30522)]
)
def test_fields_left_out_are_those_of_transformers(model_type: str, vocab_size: int) -> None:
    config = config_from_hugging_face({"model_type": model_type})
    assert (config.vocab_size, config.type_vocab_size) == (vocab_size, 2)
    assert (config.layer_norm_eps, config.max_position_embeddings, config.sep_token_id) == (1e-12, 512, 2)
    assert config.attention_window == (512,) * 12


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_window": (4, 8), "num_labels": 7, "hidden_act": "gelu_new", "sep_token_id": 5},
        {"attention_dilation": (1, 3)},
        {"global_projections": False},
        {"attention_mode": "full"},
        {"attention_mode": "full", "global_projections": False},
        {"attention_mode": "full", "global_projections": False, "attention_dilation": 2, "num_labels": 1},
        {"id2label": ("neg", "pos"), "classifier_dropout": 0.25, "hidden_act": "swish"},
        {"num_labels": 3, "id2label": ("neg", "neu", "pos"), "bos_token_id": None, "tie_word_embeddings": False},
    ],
)
def test_round_trip(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes)
    values = config_to_hugging_face(config, "ForMaskedLM")
    found = config_from_hugging_face(json.loads(json.dumps(values)))
    if config.attention_mode == "full" and not config.global_projections:  # has no windows
        found = dataclasses.replace(found, attention_window=config.attention_window)
    assert found == config
    own = {"attention_mode", "global_projections", "attention_dilation"} & values.keys()
    usual = (TINY.attention_mode, TINY.global_projections), ("full", False)
    assert ("attention_dilation" in own) == (config.attention_dilation != (1, 1))
    assert bool(own - {"attention_dilation"}) == ((config.attention_mode, config.global_projections) not in usual)


def test_settings_of_the_computation_are_not_stored() -> None:
    config = dataclasses.replace(TINY, dtype="bfloat16", remat=True, implementation="xla")
    assert config_to_hugging_face(config, "Model") == config_to_hugging_face(TINY, "Model")


def test_separator() -> None:
    roberta = config_of("RobertaModel") | {"eos_token_id": 7}
    assert config_from_hugging_face(roberta).sep_token_id == 7
    assert config_from_hugging_face(roberta | {"sep_token_id": 3}).sep_token_id == 3
    longformer = {name: x for name, x in config_of("LongformerModel").items() if name != "sep_token_id"}
    assert config_from_hugging_face(longformer | {"eos_token_id": 7}).sep_token_id == 2  # transformers' default


def test_ids_that_are_a_list_or_null() -> None:
    roberta = config_of("RobertaModel")
    assert config_from_hugging_face(roberta | {"eos_token_id": [7]}).sep_token_id == 7
    assert config_from_hugging_face(roberta | {"eos_token_id": [7, 8], "sep_token_id": 3}).sep_token_id == 3
    assert config_from_hugging_face(roberta | {"eos_token_id": None}).sep_token_id == 2
    assert config_from_hugging_face(roberta | {"bos_token_id": None}).bos_token_id is None


def test_names_of_labels(caplog) -> None:
    longformer = config_of("LongformerForSequenceClassification")
    assert config_from_hugging_face(longformer).id2label is None  # LABEL_0, …
    names = {"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}
    config = config_from_hugging_face(longformer | {"id2label": names, "label2id": None, "num_labels": 3})
    assert config.num_labels == 11 and config.id2label == tuple("abcdefghijk")
    values = config_to_hugging_face(config, "Model")
    assert values["id2label"] == {int(i): name for i, name in names.items()}
    assert values["label2id"] == {name: int(i) for i, name in names.items()}
    assert not caplog.records
    other = config_from_hugging_face(longformer | {"id2label": {"1": "a", "2": "b"}})
    assert (other.num_labels, other.id2label) == (2, None)
    config_from_hugging_face(longformer | {"label2id": {"LABEL_0": 1}})
    assert [record.getMessage() for record in caplog.records] == [
        "id2label is {'1': 'a', '2': 'b'}, whose ids are not 0 to 1; the names are left out",
        "label2id is {'LABEL_0': 1}, not the inverse of id2label; it is left out",
    ]


def test_configs_of_ai2s_own_code() -> None:
    """Their windows are of one side; https://github.com/allenai/longformer, longformer/longformer.py."""
    ai2 = ROBERTA_BASE | {
        "attention_window": [256] * 12,
        "attention_dilation": [1] * 12,
        "autoregressive": False,
        "max_position_embeddings": 4098,
    }
    for mode in ("tvm", "sliding_chunks"):
        found = config_from_hugging_face(ai2 | {"attention_mode": mode}, global_projections=True)
        assert found == LongformerConfig()
    for window in (np.int64(256), [np.int64(256)] * 12):
        values = ai2 | {"attention_mode": "tvm", "attention_window": window}
        assert config_from_hugging_face(values) == LongformerConfig()
    no_dilation = ai2 | {"attention_mode": "tvm", "attention_window": 256, "attention_dilation": None}
    assert config_from_hugging_face(no_dilation) == LongformerConfig()
    full = config_from_hugging_face(ai2 | {"attention_mode": "n2"})
    assert (full.attention_mode, full.global_projections) == ("full", False)


def test_tensors_of_a_longformer_need_a_window() -> None:
    with pytest.raises(InputError, match="attention_window is missing; expected it, as the tensors are a Longformer's"):
        config_from_hugging_face(ROBERTA_BASE, global_projections=True)
    with pytest.raises(InputError, match="global_projections is 'no'; expected True or False"):
        config_from_hugging_face(ROBERTA_BASE, global_projections="no")  # pyrefly: ignore


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'; expected one of roberta, xlm-roberta, camembert, longformer"),
        ({"model_type": None}, "model_type is None; expected one of"),
        ({"model_type": ["roberta"]}, "model_type is"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; expected 'absolute'"),
        ({"hidden_act": "glu"}, "hidden_act is 'glu'; expected one of gelu, "),
        ({"autoregressive": True}, "autoregressive is True; expected false, as this is an encoder"),
        ({"eos_token_id": [2, 3], "sep_token_id": None}, r"eos_token_id is \[2, 3\]; expected one id, or sep_token_id"),
        ({"is_decoder": True}, "is_decoder is True; expected false"),
        ({"hidden_size": "768"}, "hidden_size is '768'; expected an integer"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None; expected a number"),
        ({"id2label": ["a"]}, "id2label is .*; expected a name for each label"),
        ({"id2label": {"0": 0}}, "id2label is .*; expected a name for each label"),
        (
            {"attention_mode": "sliding_chunks_no_overlap"},
            "attention_mode is 'sliding_chunks_no_overlap'; expected one of sliding_window, full",
        ),
        ({"attention_mode": ["tvm"]}, "attention_mode is "),
        ({"attention_mode": "tvm", "attention_window": "256"}, "attention_window is '256'; expected integers"),
        ({"attention_window": 7}, "attention_window is 7; expected even numbers"),
        ({"attention_window": "512"}, "attention_window is '512'; expected integers"),
        ({"global_projections": "yes"}, "global_projections is 'yes'; expected true or false"),
        ({"vocab_size": [1]}, "vocab_size is "),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000; expected at most 16777216"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; expected at most 16777216"),
        ({"attention_dilation": 10**12}, "attention_dilation is 1000000000000; expected at most 16777216"),
    ],
)
def test_other_models(tmp_path: Path, changes: dict, message: str) -> None:
    values = config_of("LongformerModel") | changes
    with pytest.raises(InputError, match=message):
        config_from_hugging_face(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"config.json: {message}"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json is damaged"):
        load_pretrained(tmp_path)
