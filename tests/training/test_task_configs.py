"""The configurations of configs/tasks: what the paper says of them, and how they fit together; nothing is computed."""

import dataclasses
import importlib

import pytest

from configs.pretrain.reviews import MODEL
from longformer_jax.training import TaskExperiment
from longformer_jax.training.encoder_init import KEPT

NAMES = ("classification", "hyperpartisan", "imdb")


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


@pytest.mark.parametrize("name", NAMES)
def test_the_miniature_begins_with_what_pretraining_leaves(name: str) -> None:
    config = load(name, "miniature")
    assert {field: getattr(config.model, field) for field in KEPT} == {field: getattr(MODEL, field) for field in KEPT}
    assert config.model.max_length == config.phases[0].sequence_length == 1024
    assert set(config.model.attention_window) == {MODEL.max_length}
    flags = dataclasses.replace(config.phases[0], sequence_length=128)  # shorter, as docs/from_scratch.md has it
    assert dataclasses.replace(config, phases=(flags,), init=None).phase_lengths(0)[-1] == 128
