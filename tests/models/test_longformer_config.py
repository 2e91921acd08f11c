"""Bad settings take one sentence that names the field, its value and what was expected."""

import dataclasses
import json

import numpy as np
import pytest

from longformer_jax import InputError, LongformerConfig
from longformer_jax.models.layers import LayerGroup


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden_size": 0}, "hidden_size is 0; expected an integer >= 1"),
        ({"num_labels": "3"}, "num_labels is '3'; expected an integer >= 1"),
        ({"pad_token_id": -1}, "pad_token_id is -1; expected an integer >= 0"),
        ({"attention_window": 0}, "attention_window is 0; expected integers >= 1"),
        ({"attention_window": 511}, "attention_window is 511; expected even numbers"),
        ({"attention_window": (512, 512)}, "attention_window has 2 entries; expected one for each of the 12 layers"),
        ({"attention_dilation": (1,) * 11}, "attention_dilation has 11 entries; expected one for each of the 12"),
        ({"attention_dilation": 1.5}, "attention_dilation is 1.5; expected integers >= 1"),
        ({"hidden_size": 100}, "hidden_size is 100; expected a multiple of num_attention_heads, 12"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2; expected at least 3"),
        ({"attention_mode": "sparse"}, "attention_mode is 'sparse'; expected one of sliding_window, full"),
        ({"hidden_act": "glu"}, "hidden_act is 'glu'; expected one of gelu"),
        ({"bos_token_id": -1}, "bos_token_id is -1; expected an integer >= 0"),
        ({"classifier_dropout": 1}, "classifier_dropout is 1; expected a number in [0, 1)"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None; expected True or False"),
        ({"id2label": ("a", "b", "c")}, "id2label has 3 names; expected 2, one for each of num_labels"),
        ({"id2label": "ab"}, "id2label is 'ab'; expected the names of classes 0, 1, …"),
        ({"id2label": {1: "a", 2: "b"}}, "id2label is {1: 'a', 2: 'b'}; expected the names of classes 0, 1, …"),
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float32"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; expected a number in [0, 1)"),
        ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob is None; expected a number in [0, 1)"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; expected a number in (0, 1)"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']; expected one of gelu"),
        ({"global_projections": None}, "global_projections is None; expected True or False"),
        ({"remat": "yes"}, "remat is 'yes'; expected True or False"),
        ({"implementation": ["xla"]}, "implementation is ['xla']; expected the name of one, or None"),
        *(
            ({field: 10**12}, f"{field} is 1000000000000; expected at most 16777216")
            for field in (
                *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
                *("max_position_embeddings", "type_vocab_size", "sep_token_id", "num_labels", "attention_window"),
            )
        ),
    ],
)
def test_bad_settings(settings: dict, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        LongformerConfig(**settings)
    assert str(error.value).startswith(sentence)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = {"num_hidden_layers": np.int64(2), "attention_window": np.array([4, 8]), "num_labels": np.int8(3)}
    numpy |= {"hidden_dropout_prob": np.float32(0.5), "layer_norm_eps": np.float64(1e-6)}
    plain = {"num_hidden_layers": 2, "attention_window": (4, 8), "num_labels": 3, "hidden_dropout_prob": 0.5}
    config = LongformerConfig(**numpy)
    assert config == LongformerConfig(**plain, layer_norm_eps=1e-6)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["attention_window"] == [4, 8]
    with pytest.raises(InputError, match="num_labels is False; expected an integer >= 1"):
        LongformerConfig(num_labels=False)


def test_layers_that_share_window_and_dilation_are_one_group() -> None:
    config = LongformerConfig(num_hidden_layers=5, attention_window=(4, 4, 8, 8, 8), attention_dilation=(1, 1, 1, 2, 2))
    assert config.layer_groups == (LayerGroup(0, 2, 2, 1), LayerGroup(2, 3, 4, 1), LayerGroup(3, 5, 4, 2))
    full = dataclasses.replace(config, attention_mode="full")
    assert full.layer_groups == (LayerGroup(0, 5, None, 1),)


def test_longest_sequence_leaves_out_the_reserved_positions() -> None:
    assert LongformerConfig().max_length == 4096
    assert LongformerConfig(max_position_embeddings=514).max_length == 512


def test_label_names_are_a_tuple_whatever_they_were_given_as() -> None:
    config = LongformerConfig(id2label={1: "pos", 0: "neg"})  # pyrefly: ignore
    assert config.id2label == ("neg", "pos")
    assert config == LongformerConfig(id2label=["neg", "pos"])  # pyrefly: ignore
    assert hash(config) != hash(LongformerConfig())
    assert LongformerConfig(id2label=("LABEL_0", "LABEL_1")) == LongformerConfig()  # what they are called anyway
