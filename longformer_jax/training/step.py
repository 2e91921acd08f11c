"""The training state, and the compiled functions that initialise, train and evaluate it.

A state is `{"params", "opt_state", "step"}`: parameters float32, optax's state, and the number of finished steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from longformer_jax.training.sharding import BATCH_AXES, microbatch_sharding, replicated, state_shardings

State = dict[str, Any]


@functools.cache
def abstract_params(config: CharLMConfig) -> Any:
    """The shapes and dtypes of a model's parameters, without computing any."""
    return jax.eval_shape(lambda: _init_params(config, 0))


def _init_params(config: CharLMConfig, seed: int) -> Any:
    return CharLM(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]


def _init_state(config: ExperimentConfig) -> State:
    params = _init_params(config.model, config.seed)
    return {"params": params, "opt_state": make_optimizer(config).init(params), "step": jnp.zeros((), jnp.int32)}


@functools.cache
def abstract_state(config: ExperimentConfig, mesh: Mesh) -> State:
    """The shapes, dtypes and shardings of a state; raises InputError where the mesh does not fit the tensors."""
    shapes = jax.eval_shape(lambda: _init_state(config))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def init_state(config: ExperimentConfig, mesh: Mesh) -> State:
    """A new state, a function of the seed alone, made where it belongs."""
    shardings = jax.tree.map(lambda tensor: tensor.sharding, abstract_state(config, mesh))
    return jax.jit(lambda: _init_state(config), out_shardings=shardings)()


def _nats(model: CharLM, params: Any, sequences: jax.Array, **kwargs: Any) -> jax.Array:
    """The cross entropy of each character but the first: sequences uint8 `[B, T + 1]`, result float32 `[B, T]`."""
    sequences = sequences.astype(jnp.int32)
    logits: Any = model.apply({"params": params}, sequences[:, :-1], **kwargs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:])


def compile_train_step(
    config: ExperimentConfig, phase: int, accumulate: int, mesh: Mesh
) -> Callable[[State, jax.Array], tuple[State, dict[str, jax.Array]]]:
    """The compiled step of a phase.

    It takes a state, which is donated, and a batch uint8 `[A, B / A, T + 1]`, and returns the next state and float32
    scalars: `loss` (mean nats a character), `grad_norm` (global, before clipping) and `learning_rate`. Gradients are
    means over the A microbatches, taken one after the other.
    """
    model = CharLM(config.model_in_phase(phase))
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config)

    def loss_fn(params: Any, sequences: jax.Array, dropout_key: jax.Array) -> jax.Array:
        return _nats(model, params, sequences, deterministic=False, rngs={"dropout": dropout_key}).mean()

    def loss_and_grads(params: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        accumulate = batch.shape[0]
        if accumulate == 1:
            return jax.value_and_grad(loss_fn)(params, batch[0], key)

        def add(total: Any, microbatch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            sequences, index = microbatch
            value = jax.value_and_grad(loss_fn)(params, sequences, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, value), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        total, _ = jax.lax.scan(add, zeros, (batch, jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: State, batch: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        loss, grads = loss_and_grads(state["params"], batch, key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    state = abstract_state(config, mesh)
    shape = (accumulate, config.phases[phase].batch_size // accumulate, config.phases[phase].sequence_length + 1)
    batch = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=microbatch_sharding(mesh))
    shardings = jax.tree.map(lambda tensor: tensor.sharding, state)
    jitted = jax.jit(train_step, out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
    return jitted.lower(state, batch).compile()


def make_eval_step(
    config: ExperimentConfig, phase: int, mesh: Mesh
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """The jitted evaluation of a phase's model.

    It takes parameters, sequences uint8 `[B, T + 1]` and weights float32 `[B]` (0 for padding), and returns the sum of
    nats over all characters of sequences with weight 1, float32.
    """
    model = CharLM(config.model_in_phase(phase))

    def eval_step(params: Any, sequences: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(_nats(model, params, sequences, deterministic=True) * weights[:, None])

    shardings = jax.tree.map(lambda tensor: tensor.sharding, abstract_state(config, mesh)["params"])
    batch = NamedSharding(mesh, P(BATCH_AXES))
    return jax.jit(eval_step, in_shardings=(shardings, batch, batch), out_shardings=replicated(mesh))
