"""What a configuration is, what each wrong field is called, and the sizes of the paper's models."""

import dataclasses
import json
import math
import re
from typing import Any

import jax
import numpy as np
import pytest

from longformer_jax.errors import InputError
from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.models.layers import LayerGroup
from tests.models.small import SMALL, abstract_params


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, 41_094_144),  # the paper's 41M
        ({"num_layers": 30}, 102_537_216),  # and 102M
        ({"position_dim": 64}, 38_341_632),
        ({"positions": "rotary"}, 41_094_144 - 12 * (512 * 512 + 2 * 512)),
        ({"tie_embeddings": False}, 41_094_144 + 256 * 512),
    ],
)
def test_parameter_counts(fields: dict[str, Any], parameters: int) -> None:
    shapes = jax.tree.leaves(abstract_params(CharLMConfig(**fields)))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == parameters
    assert all(leaf.dtype == "float32" for leaf in shapes)


def test_parameters_do_not_depend_on_windows_and_dilations() -> None:
    """Phases change them and keep the parameters."""
    other = dataclasses.replace(SMALL, windows=(8, 16, 1000), dilations=1)
    assert abstract_params(other) == abstract_params(SMALL)
    layers = abstract_params(SMALL)["layers"]
    assert all(leaf.shape[0] == SMALL.num_layers for leaf in jax.tree.leaves(layers))


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize("length", [1, 32_256])
def test_any_length_goes_through(positions: str, length: int) -> None:
    config = CharLMConfig(positions=positions)
    tokens = jax.ShapeDtypeStruct((2, length), "uint8")
    logits = jax.eval_shape(CharLM(config).apply, {"params": abstract_params(config)}, tokens)
    assert isinstance(logits, jax.ShapeDtypeStruct)
    assert (logits.shape, logits.dtype) == ((2, length, 256), "float32")


def test_an_integer_means_every_layer() -> None:
    config = CharLMConfig(num_layers=3, windows=7, dilations=2)
    assert (config.windows, config.dilations) == ((7, 7, 7), (2, 2, 2))
    assert config == CharLMConfig(num_layers=3, windows=(7, 7, 7), dilations=(2, 2, 2))
    assert CharLMConfig(num_layers=2, windows=[3, 4]).windows == (3, 4)  # pyrefly: ignore
    assert (config.head_dim, config.sinusoid_dim) == (64, 512)
    assert dataclasses.replace(config, position_dim=32).sinusoid_dim == 32


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = {"num_layers": np.int64(3), "windows": np.array([8, 16, 16]), "dilations": (np.int32(1),) * 3}
    numpy |= {"dilated_heads": np.uint8(1), "position_dim": np.int16(32), "dropout_rate": np.float32(0.5)}
    plain = {"num_layers": 3, "windows": (8, 16, 16), "dilations": 1, "dilated_heads": 1, "position_dim": 32}
    config = CharLMConfig(**numpy)
    assert config == CharLMConfig(**plain, dropout_rate=0.5)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["windows"] == [8, 16, 16]


def test_layer_groups_are_runs_of_equal_layers() -> None:
    config = CharLMConfig(num_layers=4, windows=(3, 5, 5, 5), dilations=(1, 2, 2, 3))
    assert config.layer_groups == (LayerGroup(0, 1, 3, 1), LayerGroup(1, 3, 5, 2), LayerGroup(3, 4, 5, 3))
    assert [group.reach for group in config.layer_groups] == [3, 10, 15]
    undilated = dataclasses.replace(config, dilated_heads=0)
    assert [group.reach for group in undilated.layer_groups] == [3, 5, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; expected an integer >= 1"),
        ({"embed_dim": -8}, "embed_dim is -8; expected an integer >= 1"),
        ({"num_layers": 0, "windows": (1,)}, "num_layers is 0; expected an integer >= 1"),
        ({"num_heads": 0}, "num_heads is 0; expected an integer >= 1"),
        ({"mlp_dim": 2.5}, "mlp_dim is 2.5; expected an integer >= 1"),
        ({"embed_dim": 100}, "embed_dim is 100; expected a multiple of num_heads, 8"),
        ({"windows": (8, 8)}, "windows has 2 entries; expected one for each of the 12 layers"),
        ({"dilations": (1,) * 13}, "dilations has 13 entries; expected one for each of the 12 layers"),
        ({"windows": 0}, "windows is 0; expected integers >= 1"),
        ({"windows": None}, "windows is None; expected integers >= 1"),
        ({"dilations": (1.5,) * 12}, "dilations is (1.5, 1.5"),
        ({"windows": (True,) * 12}, "windows is (True, True"),
        ({"dilated_heads": 9}, "dilated_heads is 9; expected 0 to num_heads, 8"),
        ({"dilated_heads": -1}, "dilated_heads is -1; expected 0 to num_heads, 8"),
        ({"positions": "absolute"}, "positions is 'absolute'; expected one of transformer_xl, rotary"),
        ({"position_dim": 63}, "position_dim is 63; expected an even integer >= 2"),
        ({"position_dim": 0}, "position_dim is 0; expected an integer >= 1"),
        ({"position_dim": "64", "positions": "rotary"}, "position_dim is '64'; expected an integer >= 1"),
        ({"embed_dim": 9, "num_heads": 3}, "position_dim is 9; expected an even integer >= 2"),
        ({"embed_dim": 24, "positions": "rotary"}, "embed_dim / num_heads is 3; expected an even number"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a number in [0, 1)"),
        ({"dropout_rate": None}, "dropout_rate is None; expected a number in [0, 1)"),
        ({"attention_dropout_rate": -0.1}, "attention_dropout_rate is -0.1; expected a number in [0, 1)"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
        ({"dtype": ["float32"]}, "dtype is ['float32']; expected one of float32, bfloat16"),
        ({"dilated_heads": 2.0}, "dilated_heads is 2.0; expected 0 to num_heads, 8"),
        ({"tie_embeddings": 1}, "tie_embeddings is 1; expected True or False"),
        ({"qk_norm": "yes"}, "qk_norm is 'yes'; expected True or False"),
        ({"activation": "relu3"}, "activation is 'relu3'; expected one of gelu, "),
        ({"logit_softcap": 0}, "logit_softcap is 0.0; expected a number from 0.001 to 1,000,000, or None"),
        ({"logit_softcap": 1e39}, "logit_softcap is 1e+39; expected a number from 0.001 to 1,000,000, or None"),
        ({"logit_softcap": "15"}, "logit_softcap is '15'; expected a number from 0.001 to"),
        ({"remat": None}, "remat is None; expected True or False"),
        ({"implementation": ["xla"]}, "implementation is ['xla']; expected the name of one, or None"),
        *(
            ({field: size}, f"{field} is {size}; expected at most 16777216")
            for field in ("vocab_size", "embed_dim", "num_layers", "num_heads", "mlp_dim", "windows", "dilations")
            for size in (2**24 + 1, 10**12, 10**30)
        ),
        ({"position_dim": 10**12}, "position_dim is 1000000000000; expected at most 16777216"),
    ],
)
def test_errors_name_the_field_and_the_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        CharLMConfig(**fields)


@pytest.mark.parametrize(("shape", "dtype"), [((5,), "int32"), ((2, 5, 3), "int32"), ((2, 5), "float32")])
def test_tokens_are_integers_of_two_dimensions(shape: tuple[int, ...], dtype: str) -> None:
    message = re.escape(f"tokens is {dtype} {list(shape)}; expected an array of integers [batch, length]")
    with pytest.raises(InputError, match=message):
        jax.eval_shape(CharLM(SMALL).apply, {"params": abstract_params(SMALL)}, jax.ShapeDtypeStruct(shape, dtype))


def test_an_unknown_implementation_is_refused() -> None:
    config = dataclasses.replace(SMALL, implementation="fastest")
    with pytest.raises(NotImplementedError, match="implementation is 'fastest'"):
        abstract_params(config)
