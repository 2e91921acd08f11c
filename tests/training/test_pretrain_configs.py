"""The configurations of configs/pretrain: what the paper says of them, without computing anything."""

import importlib
import math
from typing import Any

import jax
import pytest

from longformer_jax import ForMaskedLM, InputError
from longformer_jax.training import MaskedLMExperiment
from longformer_jax.training.optimizer import learning_rate_schedule
from longformer_jax.training.step import abstract_params

VARIANTS = ("copied_positions", "random_positions", "positions_only")


def load(name: str, variant: str = "") -> MaskedLMExperiment:
    module = importlib.import_module(f"configs.pretrain.{name}")
    return MaskedLMExperiment.from_config_dict(module.get_config(variant))


def size(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("name", "parameters"), [("roberta_base", 148_711_257), ("roberta_large", 434_653_273)])
def test_size_of_the_paper(name: str, parameters: int) -> None:
    """Of the model that is written; training leaves out the projections of global tokens."""
    config = load(name)
    model = ForMaskedLM(config.model)
    written = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), "int32"))["params"]
    assert size(written) == parameters
    width, layers = config.model.hidden_size, config.model.num_hidden_layers
    assert size(abstract_params(config)) == parameters - 3 * layers * width * (width + 1)
    assert config.model.max_length == 4096
    assert set(config.model.attention_window) == {512} and set(config.model.attention_dilation) == {1}
    assert config.init == name.replace("_", "-")


@pytest.mark.parametrize("name", ["roberta_base", "roberta_large"])
def test_recipe_of_the_paper(name: str) -> None:
    config = load(name)
    (phase,) = config.phases
    assert (phase.steps, phase.sequence_length, phase.batch_size * phase.sequence_length) == (65_000, 4096, 2**18)
    rate_at: Any = learning_rate_schedule(config)
    assert float(rate_at(500)) == pytest.approx(3e-5, rel=1e-6)
    assert float(rate_at(249)) == pytest.approx(1.5e-5, rel=5e-3)
    assert float(rate_at(500 + 64_500 // 2)) == pytest.approx(3e-5 / 8, rel=1e-3)
    optimizer = config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.98, 1e-6, 0.01)
    assert optimizer.clip_norm is None
    assert (config.model.hidden_dropout_prob, config.model.attention_probs_dropout_prob) == (0.1, 0.1)
    assert (config.model.dtype, config.model.remat, config.mask_probability) == ("bfloat16", True, 0.15)
    assert 64 % phase.sequences_per_device == 0


@pytest.mark.parametrize("name", ["roberta_base", "roberta_large", "miniature"])
def test_variants(name: str) -> None:
    copied, random, alone = (load(name, variant) for variant in VARIANTS)
    assert (copied.positions, random.positions, alone.positions) == ("copied", "random", "copied")
    assert [config.optimizer.train_only for config in (copied, random, alone)] == [None, None, "position_embeddings"]
    assert copied.model == random.model == alone.model
    with pytest.raises(InputError, match=r"^config variant is 'large'; expected "):
        load(name, "large")


def test_miniature() -> None:
    short, long = load("miniature", "short"), load("miniature", "copied_positions")
    assert (short.init, long.init) == (None, "runs/miniature_short/model")
    assert long.model.max_length >= 4 * short.model.max_length
    assert (short.model.attention_mode, long.model.attention_mode) == ("full", "sliding_window")
    assert size(abstract_params(short)) < 2e6
    for config in (short, long):
        assert config.tokens_at(config.total_steps) < 2e7
    with pytest.raises(InputError, match=r"^config variant is ''; expected one of short, copied_positions, random_po"):
        load("miniature")
