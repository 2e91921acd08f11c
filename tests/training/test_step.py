"""One step and one evaluation, against the same thing written out."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax.models import CharLM
from longformer_jax.training import CharLMExperiment, MeshConfig, OptimizerConfig
from longformer_jax.training.finite import places
from longformer_jax.training.optimizer import make_optimizer
from longformer_jax.training.sharding import make_mesh, put_batch
from longformer_jax.training.step import State, abstract_params, abstract_state, compile_train_step, init_state
from longformer_jax.training.validation import Validator
from tests.training import tiny

# Some gradients are rounding errors about zero; a large eps keeps Adam from making steps of them.
CONFIG = dataclasses.replace(tiny.CONFIG, optimizer=OptimizerConfig(eps=1e-3))
MESH = make_mesh(MeshConfig())
ROWS = np.random.default_rng(0).integers(97, 123, size=(8, 33)).astype(np.uint8)


@pytest.fixture(scope="module")
def initial() -> State:
    return jax.device_get(init_state(CONFIG, MESH))


def put(state: State) -> State:
    """On the devices, for a step to take."""
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract_state(CONFIG, MESH)))


def nats(config: CharLMExperiment, params: Any, rows: Any, **kwargs: Any) -> jax.Array:
    logits: Any = CharLM(config.model).apply({"params": params}, jnp.asarray(rows[:, :-1], jnp.int32), **kwargs)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(rows[:, 1:], jnp.int32)[..., None], -1)[..., 0]


def close(ours: Any, expected: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()), ours, expected)


def test_state_is_a_function_of_the_seed(initial: State) -> None:
    jax.tree.map(np.testing.assert_array_equal, initial, init_state(CONFIG, MESH))
    other = init_state(dataclasses.replace(CONFIG, seed=1), MESH)
    assert not np.array_equal(initial["params"]["embed"]["embedding"], other["params"]["embed"]["embedding"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial["params"]))
    abstract = abstract_state(CONFIG, MESH)
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert jax.tree.structure(abstract_params(CONFIG)) == jax.tree.structure(initial["params"])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_descends_the_mean_cross_entropy(initial: State, accumulate: int) -> None:
    # The key of the step and, where there are several microbatches, of each; they take every second row.
    key = jax.random.fold_in(jax.random.key(CONFIG.seed), 0)
    keys = jnp.stack([key] if accumulate == 1 else [jax.random.fold_in(key, i) for i in range(accumulate)])
    microbatches = np.stack([ROWS[i::accumulate] for i in range(accumulate)])

    def loss_fn(params: Any) -> jax.Array:
        def loss(microbatch: tuple[jax.Array, jax.Array]) -> jax.Array:
            rows, key = microbatch
            return nats(CONFIG, params, rows, deterministic=False, rngs={"dropout": key}).mean()

        return jax.lax.map(loss, (microbatches, keys)).mean()

    @jax.jit
    def expected_step(state: State) -> tuple[State, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        updates, opt_state = make_optimizer(CONFIG).update(grads, state["opt_state"], state["params"])
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        params = jax.tree.map(jnp.add, state["params"], updates)
        new = {"params": params, "opt_state": opt_state, "step": jnp.asarray(1)}
        return new, {"loss": loss, "grad_norm": norm, "learning_rate": jnp.asarray(3e-3 / 2)}

    step = compile_train_step(CONFIG, 0, accumulate, MESH)
    state, metrics = step(put(initial), put_batch(ROWS, accumulate, MESH))
    expected_state, expected_metrics = expected_step(initial)
    assert int(metrics.pop("fault")) == len(places(initial["params"])) - 1  # the last place, where all is finite
    close(metrics, expected_metrics, rtol=1e-4)
    close(state, expected_state, rtol=2e-3)


def test_dropout_differs_from_step_to_step(initial: State) -> None:
    step = compile_train_step(CONFIG, 0, 1, MESH)
    batch = put_batch(ROWS, 1, MESH)
    steps = [initial, initial, initial | {"step": np.asarray(1, np.int32)}]
    losses = [float(step(put(state), batch)[1]["loss"]) for state in steps]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("size", "count"), [(32 * 6, 5), (10_000, 6)])
def test_validation_is_the_mean_of_whole_sequences(initial: State, size: int, count: int) -> None:
    data = np.random.default_rng(1).integers(97, 123, size=size).astype(np.uint8)
    params = put(initial)["params"]
    held_out = CONFIG.validation_rows(0, data)
    ours = Validator(CONFIG, 0, held_out, count * 32, 4, MESH, sees="")(params)["bpc"]
    rows = np.stack([data[i * 32 : i * 32 + 33] for i in range(count)])
    expected = float(nats(CONFIG, params, rows, deterministic=True).mean()) / math.log(2)
    assert ours == pytest.approx(expected, rel=1e-5)


class Running:
    """A batch that has been given to the devices, as `given` and `read` count."""

    given = read = 0

    def __init__(self, *batch: object) -> None:
        Running.given += 1
        assert Running.given - Running.read <= 2

    def __float__(self) -> float:
        Running.read += 1
        return 1.0


def test_validation_gives_the_devices_one_batch_more_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a validation that is told to stop would go on without its program."""
    monkeypatch.setattr("longformer_jax.training.validation.make_eval_step", lambda *_: Running)
    validator = Validator(CONFIG, 0, np.zeros((10, 33), np.uint8), 20, 2, MESH, sees="")
    assert validator(None)["bpc"] == pytest.approx(5 / 20 / math.log(2))
    assert (Running.given, Running.read) == (5, 5)
