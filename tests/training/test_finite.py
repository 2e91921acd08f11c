"""Where a step stops being finite, and that a step may be skipped."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from longformer_jax.training import CharLMExperiment, DivergenceError, MeshConfig, OptimizerConfig, train
from longformer_jax.training.finite import first_fault, places
from longformer_jax.training.metrics import read_metrics
from longformer_jax.training.sharding import make_mesh, put_batch
from longformer_jax.training.step import State, abstract_params, abstract_state, compile_train_step, init_state
from tests.training import tiny, tiny_masked, tiny_task

SKIPPING = dataclasses.replace(tiny.CONFIG, optimizer=OptimizerConfig(max_skipped_steps=2))
MESH = make_mesh(MeshConfig())
ROWS = np.random.default_rng(0).integers(97, 123, size=(8, 33)).astype(np.uint8)
PLACES = places(abstract_params(tiny.CONFIG))


def set_value(params: Any, path: str, index: Any, value: float) -> Any:
    """Parameters with another number in one place."""

    def change(key_path: Any, x: Any) -> Any:
        if jax.tree_util.keystr(key_path, simple=True, separator="/") != path:
            return x
        x = np.array(x)
        x[index] = value
        return x

    return jax.tree_util.tree_map_with_path(change, params)


def put(config: Any, state: State) -> State:
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, MESH)))


@pytest.fixture(scope="module")
def skipping() -> tuple[State, Any]:
    """A state, and the step of a configuration that skips."""
    return jax.device_get(init_state(SKIPPING, MESH)), compile_train_step(SKIPPING, 0, 2, MESH)


@pytest.mark.parametrize(
    ("path", "index", "value", "place"),
    [
        ("embed/embedding", (100, 3), np.nan, "the embeddings"),
        ("layers/qkv/kernel", (0, 0, 0), np.inf, "the output of layer 1 of 2"),
        ("layers/mlp_out/bias", (1, 2), np.nan, "the output of layer 2 of 2"),
        ("final_norm/scale", (1,), np.inf, "what follows the last layer"),
    ],
)
def test_a_fault_is_found_and_skipped(skipping: Any, path: str, index: Any, value: float, place: str) -> None:
    initial, step = skipping
    faulty = initial | {"params": set_value(initial["params"], path, index, value)}
    state, metrics = step(put(SKIPPING, faulty), put_batch(ROWS, 2, MESH))
    assert PLACES[int(metrics["fault"])] == place
    assert not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    jax.tree.map(np.testing.assert_array_equal, state["params"], faulty["params"])
    assert state["step"] == 1
    (adam,) = _find(state["opt_state"], optax.ScaleByAdamState)
    (schedule,) = _find(state["opt_state"], optax.ScaleByScheduleState)
    assert adam.count == 0 and schedule.count == 1
    assert not any(np.any(x) for x in jax.tree.leaves((adam.mu, adam.nu)))


def _find(tree: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def test_a_finite_step_is_what_it_is_without_skipping(skipping: Any) -> None:
    initial, step = skipping
    plain = compile_train_step(tiny.CONFIG, 0, 2, MESH)
    state, metrics = step(put(SKIPPING, initial), put_batch(ROWS, 2, MESH))
    expected = plain(put(SKIPPING, initial), put_batch(ROWS, 2, MESH))
    jax.tree.map(np.testing.assert_array_equal, (state, metrics), expected)
    assert PLACES[int(metrics["fault"])] == PLACES[-1]


@pytest.mark.parametrize(
    ("path", "index", "place"),
    [
        (None, None, "the sum of all squared gradients"),
        ("final_norm/bias", (0,), "the gradient of final_norm/bias"),
        ("layers/qkv/kernel", (1, 5, 2), "the gradient of layer 2 of 2"),
        ("layers/mlp_in/bias", (0, 3), "the gradient of layer 1 of 2"),
        ("embed/embedding", (3, 3), "the gradient of embed/embedding"),
    ],
)
def test_the_first_gradient_is_the_highest(path: str | None, index: Any, place: str) -> None:
    grads = jax.tree.map(lambda x: np.ones(x.shape, np.float32), abstract_params(tiny.CONFIG))
    if path is not None:
        grads = set_value(grads, path, index, np.nan)
        if path != "embed/embedding":  # what comes after it on the way down
            grads = set_value(grads, "embed/embedding", (0, 0), np.inf)
    assert PLACES[int(first_fault(jnp.ones(3, bool), jnp.float32(1), grads))] == place


@pytest.mark.slow
@pytest.mark.parametrize("module", [tiny_masked, tiny_task])
def test_encoders(module: Any, tmp_path: Path) -> None:
    config = module.CONFIG if module is tiny_masked else module.with_data(tmp_path / "data").completed(tmp_path)
    state = jax.device_get(init_state(config, MESH))
    step = compile_train_step(config, 0, 1, MESH)
    batch = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), config.batch_spec(0))
    names = places(abstract_params(config))
    for path, index, place in (
        ("longformer/word_embeddings/embedding", (7, 3), "the embeddings"),
        ("longformer/layers/query/kernel", (1, 0, 0), "the output of layer 2 of 2"),
    ):
        faulty = state | {"params": set_value(state["params"], path, index, np.nan)}
        _, metrics = step(
            jax.device_put(faulty, jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, MESH))),
            put_batch(batch, 1, MESH),
        )
        assert names[int(metrics["fault"])] == place


def poisoned(self: CharLMExperiment, phase: int, params: Any, microbatch: jax.Array, key: jax.Array) -> Any:
    """A loss that is NaN for some batches."""
    nats, marks = self._nats(phase, params, microbatch, deterministic=False, rngs={"dropout": key})
    return jnp.where(microbatch[0, 0] % 4 == 0, jnp.nan, nats.mean()), marks


@pytest.mark.slow
def test_a_run_that_skips_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With Muon, which has AdamW's moments, too."""
    monkeypatch.setattr(CharLMExperiment, "loss", poisoned)
    strict, config = (
        dataclasses.replace(tiny.CONFIG, optimizer=OptimizerConfig(name="muon", max_skipped_steps=most))
        for most in (0, 8)
    )
    with pytest.raises(DivergenceError, match="^loss is nan at step .* first in what follows the last layer; expected"):
        train(strict, tmp_path / "strict")
    whole = train(config, tmp_path / "whole")
    counts = [
        record["skipped_steps"]
        for record in read_metrics(tmp_path / "whole/metrics.jsonl")
        if "skipped_steps" in record
    ]
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith("; skipped")]
    assert sum(counts) == len(said) > 0
    # The run that has diverged goes on with the option.
    resumed = train(config, tmp_path / "strict")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
