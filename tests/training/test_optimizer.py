"""The learning rate at the borders of phases, and AdamW against a direct transcription."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from longformer_jax.errors import InputError
from longformer_jax.training import ExperimentConfig, OptimizerConfig
from longformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tests.training.tiny import CONFIG


def with_phases(steps: tuple[int, ...], rates: tuple[float, ...], **optimizer: Any) -> ExperimentConfig:
    phases = tuple(
        dataclasses.replace(CONFIG.phases[0], steps=count, learning_rate=rate)
        for count, rate in zip(steps, rates, strict=True)
    )
    return dataclasses.replace(CONFIG, phases=phases, optimizer=OptimizerConfig(**optimizer))


def rate_after(config: ExperimentConfig) -> Callable[[int], float]:
    schedule: Any = learning_rate_schedule(config)
    return lambda step: float(schedule(step))


def test_constant_after_a_warmup_in_each_phase() -> None:
    rate_at = rate_after(with_phases((100, 50, 5), (1.0, 0.5, 0.25)))
    rates = [rate_at(step) for step in range(155)]
    # A tenth of each phase warms up: 10 steps, 5 steps, none.
    np.testing.assert_allclose(rates[:10], [(s + 1) / 11 for s in range(10)], rtol=1e-6)
    np.testing.assert_allclose(rates[10:100], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rates[100:105], [0.5 * (s + 1) / 6 for s in range(5)], rtol=1e-6)
    np.testing.assert_allclose(rates[105:150], 0.5, rtol=1e-6)
    np.testing.assert_allclose(rates[150:], 0.25, rtol=1e-6)


def test_warmup_is_at_most_ten_thousand_steps() -> None:
    rate_at = rate_after(with_phases((430_000, 50_000), (2.5e-4, 1.25e-4)))
    assert rate_at(9_999) == pytest.approx(2.5e-4 * 10_000 / 10_001, rel=1e-6)
    assert rate_at(10_000) == rate_at(429_999) == pytest.approx(2.5e-4, rel=1e-6)
    assert rate_at(430_000) == pytest.approx(1.25e-4 / 5_001, rel=1e-5)
    assert rate_at(435_000) == pytest.approx(1.25e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("decay", "middle"), [("linear", 1 - 0.9 * 45 / 90), ("cosine", 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)]
)
def test_decay_to_a_fraction_at_the_end_of_each_phase(decay: str, middle: float) -> None:
    rate_at = rate_after(with_phases((100, 100), (2.0, 1.0), decay=decay, final_fraction=0.1))
    for start, rate in ((0, 2.0), (100, 1.0)):
        assert rate_at(start + 10) == pytest.approx(rate, rel=1e-6)
        assert rate_at(start + 55) == pytest.approx(rate * middle, rel=1e-5)
    assert rate_at(99) == pytest.approx(2.0 * 0.1, rel=0.2)
    assert rate_at(200) == pytest.approx(1.0 * 0.1, rel=1e-5)


@pytest.mark.parametrize(("power", "fraction"), [(3.0, 0.0), (1.0, 0.0), (2.0, 0.1)])
def test_polynomial_decay_after_absolute_warmup(power: float, fraction: float) -> None:
    settings = {"decay": "polynomial", "power": power, "final_fraction": fraction, "warmup_steps": 7}
    rate_at = rate_after(with_phases((100, 50), (2.0, 1.0), **settings))
    for start, steps, rate in ((0, 100, 2.0), (100, 50, 1.0)):
        for step in range(7):
            assert rate_at(start + step) == pytest.approx(rate * (step + 1) / 8, rel=1e-6)
        for step in range(7, steps):
            left = 1 - (step - 7) / (steps - 7)
            expected = rate * (fraction + (1 - fraction) * left**power)
            assert rate_at(start + step) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert rate_at(150) == pytest.approx(fraction, abs=1e-7)


def test_cooldown_across_phases() -> None:
    config = with_phases((60, 40), (2.0, 1.0), cooldown_fraction=0.5, warmup_fraction=0.0)
    rate_at = rate_after(config)
    assert rate_at(0) == rate_at(50) == 2.0
    np.testing.assert_allclose([rate_at(55), rate_at(60), rate_at(75), rate_at(99)], [1.8, 0.8, 0.5, 0.02], rtol=1e-5)
    assert rate_at(100) == 0


def test_no_clipping() -> None:
    settings = {"clip_norm": None, "weight_decay": 0.0, "warmup_fraction": 0.0, "eps": 1e3}
    optimizer = make_optimizer(with_phases((10,), (0.1,), **settings))
    params = {"kernel": np.zeros(3)}
    updates: list[Any] = []
    for size in (1.0, 1000.0):
        update, _ = optimizer.update({"kernel": np.full(3, size)}, optimizer.init(params), params)
        updates.append(np.asarray(update["kernel"]))  # -0.1 g / (g + eps)
    np.testing.assert_allclose(updates[0], -0.1 * 1 / 1001, rtol=1e-4)
    np.testing.assert_allclose(updates[1], -0.1 * 1000 / 2000, rtol=1e-4)


def test_adamw_with_clipping_and_decay_of_matrices_only() -> None:
    settings = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "weight_decay": 0.1, "clip_norm": 0.5, "warmup_fraction": 0.0}
    optimizer = make_optimizer(with_phases((10,), (0.1,), **settings))
    shapes = {
        "embed": {"embedding": (5, 3)},
        "head": (3, 5),
        "gate": (3, 2),  # as of a task's head, whose matrices have any names
        "gate_bias": (2,),
        "layers": {
            "mlp": {"kernel": (2, 3, 4), "bias": (2, 4)},
            "norm": {"scale": (2, 3)},
            **{"relative": (2, 4, 3), "u": (2, 1, 3), "v": (2, 1, 3)},
        },
    }
    decayed = {
        "embed": {"embedding": 1},
        **{"head": 1, "gate": 1, "gate_bias": 0},
        "layers": {"mlp": {"kernel": 1, "bias": 0}, "norm": {"scale": 0}, "relative": 1, "u": 0, "v": 0},
    }
    rng = np.random.default_rng(0)

    def draw(size: float) -> Any:
        return jax.tree.map(lambda _, shape: size * rng.normal(size=shape), decayed, shapes)

    params = draw(1.0)
    means, squares = draw(0.0), draw(0.0)
    state, ours = optimizer.init(params), params
    for count, size, clips in ((1, 1.0, True), (2, 1e-3, False)):
        grads = draw(size)
        updates, state = jax.jit(optimizer.update)(grads, state, ours)
        ours = jax.tree.map(np.add, ours, updates)

        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        assert (norm > 0.5) == clips
        grads = jax.tree.map(np.multiply, grads, jax.tree.map(lambda _, norm=norm: min(1, 0.5 / norm), grads))
        means = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, means, grads)
        squares = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g**2, squares, grads)

        def step(p: Any, m: Any, v: Any, decay: int, count: int = count) -> Any:
            adam = m / (1 - 0.8**count) / (np.sqrt(v / (1 - 0.9**count)) + 1e-3)
            return p - 0.1 * (adam + 0.1 * decay * p)

        params = jax.tree.map(step, params, means, squares, decayed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, params)


def test_muon_for_the_matrices_of_layers() -> None:
    settings = {"weight_decay": 0.1, "clip_norm": None, "warmup_fraction": 0.0, "muon_momentum": 0.9}
    rng = np.random.default_rng(0)

    def draw() -> Any:
        layers = {"mlp": {"kernel": rng.normal(size=(2, 4, 6)), "bias": rng.normal(size=(2, 6))}}
        return {"layers": layers, "embed": {"embedding": rng.normal(size=(5, 4))}}

    params, state, momentum = draw(), None, np.zeros((2, 4, 6))
    optimizer, adamw = (make_optimizer(with_phases((10,), (0.1,), name=name, **settings)) for name in ("muon", "adamw"))
    state, of_adamw = optimizer.init(params), adamw.init(params)
    for count in (1, 2):
        grads = draw()
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        expected, of_adamw = jax.jit(adamw.update)(grads, of_adamw, params)
        for part, name in (("embed", "embedding"), ("layers", "mlp")):
            found, wanted = updates[part][name], expected[part][name]
            found, wanted = (found["bias"], wanted["bias"]) if name == "mlp" else (found, wanted)
            np.testing.assert_allclose(found, wanted, rtol=1e-5)

        # Nesterov's momentum without bias, made nearly orthogonal by five quintic steps (Jordan 2024).
        gradient = grads["layers"]["mlp"]["kernel"]
        momentum = 0.9 * momentum + 0.1 * gradient
        x = 0.9 * momentum / (1 - 0.9 ** (count + 1)) + 0.1 * gradient / (1 - 0.9**count)
        for layer in range(2):
            y = x[layer] / np.linalg.norm(x[layer])
            for _ in range(5):
                square = y @ y.T
                y = 3.4445 * y + (-4.7750 * square + 2.0315 * square @ square) @ y
            step = np.sqrt(max(1, 6 / 4)) * y + 0.1 * params["layers"]["mlp"]["kernel"][layer]
            np.testing.assert_allclose(updates["layers"]["mlp"]["kernel"][layer], -0.1 * 4 * step, rtol=2e-4, atol=2e-5)


def test_a_larger_rate_on_top_of_an_encoder() -> None:
    params = {"longformer": {"kernel": np.ones(3, np.float32)}, "head": {"kernel": np.ones(3, np.float32)}}
    gradients = jax.tree.map(lambda x: 0.5 * x, params)
    updates = []
    for factor in (1.0, 10.0):
        optimizer = make_optimizer(with_phases((10,), (1e-3,), head_factor=factor, clip_norm=None))
        updates.append(optimizer.update(gradients, optimizer.init(params), params)[0])
    one, ten = updates
    np.testing.assert_array_equal(one["longformer"]["kernel"], ten["longformer"]["kernel"])
    np.testing.assert_allclose(10 * one["head"]["kernel"], ten["head"]["kernel"], rtol=1e-6)
    with pytest.raises(InputError, match=r"^optimizer.head_factor is not 1; expected it where a model has an encoder"):
        make_optimizer(with_phases((10,), (1e-3,), head_factor=10.0)).init(params["head"])
