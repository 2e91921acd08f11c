"""The configurations of configs/tasks: what the paper says of them, how they fit together, and that they can begin."""

import dataclasses
import importlib
import re

import jax
import pytest
from jax.sharding import AbstractMesh

from configs.pretrain.reviews import MODEL
from configs.tasks.wikihop import ABLATIONS
from longformer_jax import ForMaskedLM, LongformerConfig, save_pretrained
from longformer_jax.training import TaskExperiment
from longformer_jax.training.encoder_init import KEPT
from longformer_jax.training.sharding import accumulation_steps, make_mesh, state_shardings
from longformer_jax.training.step import abstract_params
from tests.models.encoders import random_params

NAMES = ("classification", "hyperpartisan", "imdb")
# Epochs of base and large, steps of the warm-up, batch and rate.
ANSWERS = {
    "wikihop": ((15, 5), 200, 32, 3e-5),
    "triviaqa": ((5, 5), 1000, 32, 3e-5),
    "hotpotqa": ((5, 5), 1000, 32, 3e-5),
    "coreference": ((20, 20), None, 1, 1e-5),
}


def load(name: str, variant: str = "") -> TaskExperiment:
    return TaskExperiment.from_config_dict(importlib.import_module(f"configs.tasks.{name}").get_config(variant))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_of_the_paper(name: str) -> None:
    base, large = load(name), load(name, "large")
    for config, layers in ((base, 12), (large, 24)):
        (phase,) = config.phases
        assert (phase.sequence_length, phase.epochs, phase.batch_size, phase.learning_rate) == (4096, 15, 32, 3e-5)
        assert config.optimizer.warmup_fraction == 0.1 and config.optimizer.warmup_steps is None
        assert (config.model.num_hidden_layers, config.model.max_length) == (layers, 4096)
        assert set(config.model.attention_window) == {512}
    assert load(name, "base") == base


@pytest.mark.parametrize("name", ANSWERS)
def test_recipe_of_answers(name: str) -> None:
    epochs, warmup, batch_size, rate = ANSWERS[name]
    for variant, number, layers in zip(("base", "large"), epochs, (12, 24), strict=True):
        config = load(name, variant)
        (phase,) = config.phases
        assert (phase.sequence_length, phase.epochs, phase.batch_size) == (4096, number, batch_size)
        assert (phase.learning_rate, config.optimizer.warmup_steps) == (rate, warmup)
        assert (config.optimizer.decay, config.optimizer.head_factor) == ("linear", 10 if name == "coreference" else 1)
        assert (config.model.num_hidden_layers, config.model.max_length) == (layers, 4096)
        assert set(config.model.attention_window) == {512}
    assert load(name, "base") == load(name)


@pytest.mark.parametrize("name", [*NAMES, *ANSWERS])
def test_they_begin_on_the_hardware_that_they_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And on up to eight GPUs: batch, sequences and parameters can be split over them."""
    text = importlib.import_module(f"configs.tasks.{name}").__doc__ or ""
    hardware = re.findall(r"(base|large)(?:[^;.]*?), (one|four)", text.partition("Hardware: ")[2].partition(".")[0])
    assert hardware[0] == ("base", "one")
    monkeypatch.setattr(jax, "make_mesh", AbstractMesh)
    for variant in importlib.import_module(f"configs.tasks.{name}").VARIANTS:
        config = load(name, variant)
        for devices in sorted({1, 2, 8, {"one": 1, "four": 4}[dict(hardware).get(variant, "one")]}):
            monkeypatch.setattr(jax, "device_count", lambda: devices)  # noqa: B023
            mesh = make_mesh(config.mesh)
            state_shardings(mesh, {"params": abstract_params(config)})
            for index in range(len(config.phases)):
                for length in config.phase_lengths(index):
                    assert accumulation_steps(config, index, mesh, length) >= 1


def test_ablations_read_as_much() -> None:
    """5 epochs each; shorter pieces are more of them."""
    for variant in ABLATIONS:
        config = load("wikihop", variant)
        (phase,) = config.phases
        assert (phase.epochs, config.optimizer.warmup_steps, phase.learning_rate) == (5, 200, 3e-5)
        assert phase.sequence_length * config.task.max_pieces == 8 * 4096
        assert config.phase_lengths(0)[-1] == 8 * 4096


def shrunk(model: LongformerConfig) -> LongformerConfig:
    """As long and of the same kind, but of one narrow layer."""
    return dataclasses.replace(
        model,
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        attention_window=model.attention_window[:1],
        attention_dilation=1,
    )


@pytest.fixture(scope="module")
def inits(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, str]:
    """A small Longformer and a small RoBERTa by the names of those that the configurations begin with."""
    folder = tmp_path_factory.mktemp("inits")
    longformer = shrunk(load("wikihop").model)
    roberta = dataclasses.replace(
        longformer, attention_mode="full", global_projections=False, max_position_embeddings=514
    )
    for name, model in (("longformer", longformer), ("roberta", roberta)):
        save_pretrained(folder / name, model, random_params(model, ForMaskedLM))
    found: dict[str | None, str] = dict.fromkeys(
        ("allenai/longformer-base-4096", "runs/positions_only/model"), str(folder / "longformer")
    )
    return found | {"roberta-base": str(folder / "roberta")}


@pytest.mark.parametrize("variant", ABLATIONS)
def test_ablations_begin_with_their_weights(inits: dict[str | None, str], variant: str) -> None:
    config = load("wikihop", variant)
    config = dataclasses.replace(config, init=inits[config.init], model=shrunk(config.model))
    params = config.pretrained_params()
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, abstract_params(config))


@pytest.mark.parametrize("name", NAMES)
def test_the_miniature_begins_with_what_pretraining_leaves(name: str) -> None:
    config = load(name, "miniature")
    assert {field: getattr(config.model, field) for field in KEPT} == {field: getattr(MODEL, field) for field in KEPT}
    assert config.model.max_length == config.phases[0].sequence_length == 1024
    assert set(config.model.attention_window) == {MODEL.max_length}
    flags = dataclasses.replace(config.phases[0], sequence_length=128)  # shorter, as docs/from_scratch.md has it
    assert dataclasses.replace(config, phases=(flags,), init=None).phase_lengths(0)[-1] == 128
