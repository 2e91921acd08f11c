"""The configurations of configs/: what the paper says of them, without computing anything."""

import importlib
import math
from types import ModuleType
from typing import Any

import jax
import pytest

from longformer_jax.errors import InputError
from longformer_jax.training import CharLMExperiment
from longformer_jax.training.flops import PEAK_FLOPS, training_flops_per_character
from longformer_jax.training.step import abstract_params

PAPER = ("enwik8_small", "enwik8_large", "text8_small")
ABLATION = ("decreasing", "fixed", "increasing", "no_dilation", "dilation")
ALL = (
    [("quickstart", "")]
    + [(name, variant) for name in PAPER for variant in ("", "smoke")]
    + [("enwik8_small", variant) for variant in ("hour", "day", "hour_smoke")]
    + [("reviews_text", "")]
    + [("text8_ablation", variant + suffix) for variant in ABLATION for suffix in ("", "_smoke")]
)


def module(name: str) -> ModuleType:
    return importlib.import_module(f"configs.char_lm.{name}")


def load(name: str, variant: str = "") -> CharLMExperiment:
    return CharLMExperiment.from_config_dict(module(name).get_config(variant))


def parameters(config: CharLMExperiment) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_variant_is_valid(name: str, variant: str) -> None:
    config = load(name, variant)
    assert len(config.phases) == 5 or name not in PAPER
    small = "smoke" in variant or name in ("quickstart", "reviews_text")
    assert (config.tokens_at(config.total_steps) < 3e7) == small


@pytest.mark.parametrize(
    ("name", "variant"), [("quickstart", "large"), ("text8_ablation", ""), ("text8_ablation", "smoke")]
)
def test_unknown_variant(name: str, variant: str) -> None:
    with pytest.raises(InputError, match=rf"^config variant is '{variant}'; expected "):
        load(name, variant)


@pytest.mark.parametrize("name", PAPER)
def test_unknown_variant_of_the_paper(name: str) -> None:
    with pytest.raises(InputError, match=r"^config variant is 'large'; expected none, or (one of )?smoke"):
        load(name, "large")


@pytest.mark.parametrize(("variant", "hours"), [("hour", 1), ("day", 24)])
def test_budgets_take_their_time_at_the_stated_utilisation(variant: str, hours: int) -> None:
    config, whole = load("enwik8_small", variant), load("enwik8_small")
    params = abstract_params(config)
    assert params == abstract_params(whole)
    flops = [
        training_flops_per_character(config.model_in_phase(i), params, phase.sequence_length)
        * (phase.steps * phase.batch_size * phase.sequence_length)
        for i, phase in enumerate(config.phases)
    ]
    assert sum(flops) == pytest.approx(0.19 * PEAK_FLOPS["NVIDIA H100 80GB HBM3"] * 3600 * hours, rel=0.01)
    assert [each / sum(flops) for each in flops] == pytest.approx([0.6, 0.12, 0.12, 0.1, 0.06], abs=0.002)
    assert [phase.windows for phase in config.phases] == [phase.windows for phase in whole.phases]


@pytest.mark.parametrize(
    ("name", "millions", "layers", "dropout_rate"),
    [("enwik8_small", 41, 12, 0.2), ("text8_small", 41, 12, 0.2), ("enwik8_large", 102, 30, 0.4)],
)
def test_size_of_the_paper(name: str, millions: int, layers: int, dropout_rate: float) -> None:
    config = load(name)
    assert parameters(config) // 1_000_000 == millions
    model = config.model
    assert (model.num_layers, model.embed_dim, model.num_heads, model.mlp_dim) == (layers, 512, 8, 2048)
    assert (model.dropout_rate, model.dilated_heads, model.positions) == (dropout_rate, 2, "transformer_xl")
    assert config.data.source == name.split("_")[0]
    assert (model.activation, model.qk_norm, model.logit_softcap) == ("gelu_new", False, None)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.cooldown_fraction) == ("adamw", 0)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_fraction) == (0.01, 0.25, 0.1)
    assert (optimizer.max_warmup_steps, optimizer.decay) == (10_000, "constant")


@pytest.mark.parametrize("name", PAPER)
def test_phases_of_the_paper(name: str) -> None:
    phases = load(name).phases
    assert [phase.sequence_length for phase in phases] == [2048, 4096, 8192, 16384, 23040]
    assert [phase.windows[0] for phase in phases] == [32, 64, 128, 256, 512]
    assert [phase.windows[-1] for phase in phases] == [512, 1024, 2048, 4096, 8192]
    assert [phase.learning_rate for phase in phases] == [2.5e-4, 1.25e-4, 6.25e-5, 3.125e-5, 1.5625e-5]
    assert [phase.batch_size for phase in phases] == [32, 32, 16, 16, 16]
    small, large = [430_000, 50_000, 50_000, 35_000, 5_000], [350_000, 25_000, 10_000, 5_000, 5_000]
    assert [phase.steps for phase in phases] == (large if name == "enwik8_large" else small)
    for phase in phases:
        assert list(phase.windows) == sorted(phase.windows)


def test_dilation_of_the_paper() -> None:
    for name in ("enwik8_small", "text8_small"):
        dilations: Any = load(name).model.dilations
        assert [dilations[i] for i in (0, 5, 6, 7, 8, 9, 10, 11)] == [1, 1, 2, 2, 3, 3, 4, 4]
    dilations: Any = load("enwik8_large").model.dilations
    assert [dilations[i] for i in (0, 14, 15, 19, 20, 24, 25, 29)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_ablation() -> None:
    configs = {variant: load("text8_ablation", variant) for variant in ABLATION}
    for config in configs.values():
        (phase,) = config.phases
        assert (phase.steps, phase.sequence_length, phase.batch_size) == (150_000, 2048, 32)
        assert 229 <= sum(phase.windows) / 12 <= 230
    assert configs["decreasing"].phases[0].windows == configs["increasing"].phases[0].windows[::-1]
    assert set(configs["fixed"].phases[0].windows) == {230}
    assert configs["increasing"].model == configs["no_dilation"].model
    assert configs["dilation"].phases == configs["no_dilation"].phases
    assert configs["no_dilation"].model.dilations == (1,) * 12
    assert configs["dilation"].model.dilations == load("text8_small").model.dilations


@pytest.mark.parametrize("name", PAPER)
def test_smoke_has_the_shape_of_the_whole(name: str) -> None:
    whole, smoke = load(name), load(name, "smoke")
    assert smoke.data.source is None
    assert smoke.model.dilations == whole.model.dilations
    assert len(smoke.phases) == 5
    for small, large in zip(smoke.phases, whole.phases, strict=True):
        assert small.sequence_length == large.sequence_length // 8
        assert small.windows == tuple(window // 8 for window in large.windows)
    assert smoke.tokens_at(smoke.total_steps) < 2e6
    assert parameters(smoke) < 2e6
