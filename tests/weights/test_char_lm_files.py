"""Character LMs as files: round trips, and what is said of files that are none."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from longformer_jax import (
    CharLM,
    CharLMConfig,
    InputError,
    Longformer,
    LongformerConfig,
    load_pretrained,
    save_pretrained,
)

# Nothing is at its default, so that nothing can be lost unseen.
CONFIG = CharLMConfig(
    vocab_size=40,
    embed_dim=8,
    num_layers=2,
    num_heads=2,
    mlp_dim=12,
    windows=(3, 5),
    dilations=(1, 2),
    dilated_heads=1,
    position_dim=6,
    tie_embeddings=False,
    dropout_rate=0.1,
    attention_dropout_rate=0.3,
    dtype="float32",
    remat=True,
    implementation="xla",
)
ROTARY = dataclasses.replace(CONFIG, positions="rotary", position_dim=None, tie_embeddings=True, dtype="bfloat16")


def init(config: CharLMConfig) -> Any:
    return jax.jit(CharLM(config).init)(jax.random.key(3), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def params() -> Any:
    return init(CONFIG)


@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["transformer_xl", "rotary"])
def test_round_trip(tmp_path: Path, config: CharLMConfig) -> None:
    params = init(config)
    save_pretrained(tmp_path / "model", config, params)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "checksums.json", "config.json", "model.safetensors"
    ]  # fmt: skip
    found, loaded = load_pretrained(tmp_path / "model", CharLM)
    assert found == dataclasses.replace(config, remat=False, implementation=None)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert set(load_file(tmp_path / "model" / "model.safetensors")) >= {"embed.embedding", "layers.qkv.kernel"}


def test_config_json_says_what_it_is(tmp_path: Path, params: Any) -> None:
    save_pretrained(tmp_path, CONFIG, params, CharLM)
    values = json.loads((tmp_path / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == ("longformer_char_lm", ["CharLM"])
    assert values["windows"] == [3, 5] and "remat" not in values and "implementation" not in values


def test_each_kind_names_the_other(tmp_path: Path, params: Any) -> None:
    save_pretrained(tmp_path / "char", CONFIG, params)
    with pytest.raises(
        InputError, match=r"model_type is 'longformer_char_lm'; expected one of .* \(load_pretrained\(source, CharLM\) "
    ):
        load_pretrained(tmp_path / "char")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "longformer"}')
    with pytest.raises(InputError, match=r"config\.json: model_type is 'longformer'; expected 'longformer_char_lm'$"):
        load_pretrained(tmp_path / "encoder", CharLM)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": "8"}, r"config\.json: embed_dim is '8'; expected an integer >= 1$"),
        ({"widht": 8}, r"config\.json: widht is 8; expected no such field of a CharLMConfig$"),
        ({"windows": [3]}, r"config\.json: windows has 1 entries; expected one for each of the 2 layers$"),
        (
            {"mlp_dim": 13},
            r"the weights in .* are not what its config\.json describes: 3 tensors differ: layers/mlp_in/bias is "
            r"\(2, 12\) instead of \(2, 13\); ",
        ),
        ({"tie_embeddings": True}, r"1 tensors differ: head is \(8, 40\) instead of absent$"),
    ],
)
def test_a_config_json_that_does_not_fit(tmp_path: Path, params: Any, fields: dict[str, Any], message: str) -> None:
    save_pretrained(tmp_path, CONFIG, params)
    (tmp_path / "checksums.json").unlink()  # as the changes are meant
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path, CharLM)


def test_weights_that_do_not_fit(tmp_path: Path, params: Any) -> None:
    save_pretrained(tmp_path, CONFIG, params)
    (tmp_path / "checksums.json").unlink()
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"embed.embedding": tensors["embed.embedding"].astype(np.float16)}, path)
    with pytest.raises(InputError, match=r"^embed/embedding in .* is of float16; expected float32$"):
        load_pretrained(tmp_path, CharLM)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_pretrained(tmp_path, CharLM)
    path.unlink()
    with pytest.raises(InputError, match="holds no weights"):
        load_pretrained(tmp_path, CharLM)


def test_what_cannot_be_saved_is_not(tmp_path: Path, params: Any) -> None:
    wider = dataclasses.replace(CONFIG, mlp_dim=13)
    with pytest.raises(InputError, match=r"^params are not those of the CharLM: 3 tensors differ: layers/mlp_in/bias"):
        save_pretrained(tmp_path / "model", wider, params)
    with pytest.raises(InputError, match="^model is .*Longformer.*; expected CharLM, as config is a CharLMConfig$"):
        save_pretrained(tmp_path / "model", CONFIG, params, Longformer)
    with pytest.raises(InputError, match="^model is .*CharLM.*; expected one of Longformer, "):
        save_pretrained(tmp_path / "model", LongformerConfig(), params, CharLM)
    with pytest.raises(InputError, match="^num_labels is 3; expected None, as a CharLM has no such head$"):
        load_pretrained(tmp_path / "model", CharLM, num_labels=3)  # pyrefly: ignore[no-matching-overload]
    assert not (tmp_path / "model").exists()
