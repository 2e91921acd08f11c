"""Model FLOPs against a count by loops and against what XLA counts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from longformer_jax.models import CharLM, LongformerConfig
from longformer_jax.training.flops import (
    PEAK_FLOPS,
    encoder_flops_per_token,
    peak_flops,
    training_flops_per_character,
)
from longformer_jax.training.step import abstract_params
from tests.training import tiny_masked
from tests.training.tiny import CONFIG


@pytest.mark.parametrize("positions", ["transformer_xl", "rotary"])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_count_by_loops(positions: str, tie_embeddings: bool) -> None:
    config = dataclasses.replace(CONFIG.model, positions=positions, tie_embeddings=tie_embeddings)
    length, width = 11, config.embed_dim
    multiplications = 0
    for _ in range(length):
        multiplications += config.vocab_size * width
        for _ in range(config.num_layers):
            multiplications += 4 * width * width + 2 * width * config.mlp_dim
            multiplications += width * width if positions == "transformer_xl" else 0
    for window, dilation in ((4, 1), (8, 2)):
        for head in range(config.num_heads):
            step = dilation if head < 1 else 1
            visible = sum(
                (i - j) % step == 0 and (i - j) // step <= window for i in range(length) for j in range(i + 1)
            )
            multiplications += visible * config.head_dim * (3 if positions == "transformer_xl" else 2)
    ours = training_flops_per_character(config, abstract_params(dataclasses.replace(CONFIG, model=config)), length)
    assert ours == pytest.approx(3 * 2 * multiplications / length)


def test_forward_agrees_with_the_compiler() -> None:
    """Over dense attention, which computes all T * T pairs; the compiler also counts norms, activations and softmax."""
    length = 64
    config = dataclasses.replace(
        CONFIG.model,
        embed_dim=64,
        mlp_dim=256,
        windows=(length, length + 1),  # unequal, since the compiler counts the body of a loop once
        dilations=(1, 1),
        positions="rotary",
        implementation="reference",
    )
    params = abstract_params(dataclasses.replace(CONFIG, model=config))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lowered = jax.jit(lambda params, tokens: CharLM(config).apply({"params": params}, tokens)).lower(params, tokens)
    forward = training_flops_per_character(config, params, length) / 3 * length
    analysis: Any = lowered.compile().cost_analysis()
    assert forward < analysis["flops"] < 1.3 * forward


@pytest.mark.parametrize("mode", ["sliding_window", "full"])
def test_encoder_by_loops(mode: str) -> None:
    config = LongformerConfig(
        hidden_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=10,
        attention_window=(4, 6, 6),
        attention_dilation=(1, 2, 2),
        attention_mode=mode,
    )
    length, multiplications = 11, 0
    for window, dilation in ((4, 1), (6, 2), (6, 2)):
        multiplications += length * (4 * 6 * 6 + 2 * 6 * 10)
        for i in range(length):
            for j in range(length):
                is_near = (i - j) % dilation == 0 and abs(i - j) // dilation <= window // 2
                multiplications += 2 * 6 * (is_near or mode == "full")
    ours = encoder_flops_per_token(config, length)
    assert ours == pytest.approx(3 * 2 * multiplications / length)


def test_masked_lm_adds_its_head() -> None:
    """The head takes part where there are targets: a dense layer and the product with the embeddings."""
    head = 0.15 * 3 * 2 * (16 * 16 + 16 * 300)
    encoder = encoder_flops_per_token(tiny_masked.CONFIG.model, 64)
    assert tiny_masked.CONFIG.flops_per_token(1, None, None) == pytest.approx(encoder + head)


def test_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops() is None  # a CPU

    class Device:
        device_kind = "NVIDIA H200"

    monkeypatch.setattr(jax, "devices", lambda: [Device(), Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert peak_flops() == 2 * PEAK_FLOPS["NVIDIA H200"] == 2 * 989e12
