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

from longformer_jax.processes import alone, check_same, digest, together
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.finite import first_fault
from longformer_jax.training.optimizer import choose_state, learning_rate_schedule, make_optimizer, trained
from longformer_jax.training.sharding import BATCH_AXES, in_use, microbatch_sharding, replicated, state_shardings

State = dict[str, Any]


@functools.cache
def abstract_params(config: ExperimentConfig) -> Any:
    """The shapes and dtypes of a model's parameters, without computing any."""
    return jax.eval_shape(config.init_params)


def _init_state(config: ExperimentConfig, params: Any) -> State:
    return {"params": params, "opt_state": make_optimizer(config).init(params), "step": jnp.zeros((), jnp.int32)}


@functools.cache
def abstract_state(config: ExperimentConfig, mesh: Mesh) -> State:
    """The shapes, dtypes and shardings of a state; raises InputError where the mesh does not fit the tensors."""
    shapes = jax.eval_shape(lambda: _init_state(config, config.init_params()))
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def params_shardings(config: ExperimentConfig, mesh: Mesh) -> Any:
    """Where each parameter of a state belongs."""
    return jax.tree.map(lambda tensor: tensor.sharding, abstract_state(config, mesh)["params"])


def init_state(config: ExperimentConfig, mesh: Mesh) -> State:
    """A new state, of pretrained parameters where there are any, else a function of the seed; made where it belongs."""
    shardings = jax.tree.map(lambda tensor: tensor.sharding, abstract_state(config, mesh))
    with together():
        pretrained = config.pretrained_params()
    if pretrained is None:
        return jax.jit(lambda: _init_state(config, config.init_params()), out_shardings=shardings)()
    # From the host, as each process has all of it and puts its part on its devices.
    pretrained = jax.device_get(pretrained)
    if not alone():
        check_same({"weights of init": digest(leaf.tobytes() for leaf in jax.tree.leaves(pretrained))})
    params = jax.tree.map(jax.device_put, pretrained, shardings["params"])
    return jax.jit(lambda params: _init_state(config, params), out_shardings=shardings)(params)


def compile_train_step(
    config: ExperimentConfig, phase: int, accumulate: int, mesh: Mesh, spec: Any = None
) -> Callable[[State, Any], tuple[State, dict[str, jax.Array]]]:
    """The compiled step of a phase, for batches like `spec`, one of its `batch_specs`; None is its `batch_spec`.

    It takes a state, which is donated, and a batch, a tree of arrays `[A, B / A, …]`, and returns the next state and
    scalars: float32 `loss`, `grad_norm` (global, before clipping) and `learning_rate`, and int32 `fault`, which of the
    places in finite.py is the first that is not finite. Loss and gradients are means over the A microbatches, taken one
    after the other.

    Raises:
      InputError: the processes of the run are about to compile different programs.
    """
    optimizer = make_optimizer(config)
    schedule = learning_rate_schedule(config)

    def loss_fn(params: Any, microbatch: Any, dropout_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if config.optimizer.train_only:  # no gradient is computed that nothing would come of
            is_trained = trained(config.optimizer, params)
            params = jax.tree.map(lambda p, yes: p if yes else jax.lax.stop_gradient(p), params, is_trained)
        return config.loss(phase, params, microbatch, dropout_key)

    loss_and_grads_of = jax.value_and_grad(loss_fn, has_aux=True)

    def loss_and_grads(params: Any, batch: Any, key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        if accumulate == 1:
            return loss_and_grads_of(params, jax.tree.map(lambda x: x[0], batch), key)

        def add(total: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            microbatch, index = inputs
            (loss, marks), grads = loss_and_grads_of(params, microbatch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, (loss, grads)), marks

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        total, marks = jax.lax.scan(add, zeros, (batch, jnp.arange(accumulate)))
        loss, grads = jax.tree.map(lambda x: x / accumulate, total)
        return (loss, marks.all(0)), grads

    def train_step(state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        (loss, marks), grads = loss_and_grads(state["params"], config.prepare(batch, key), key)
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
            "fault": first_fault(marks, loss, grads),
        }
        params = optax.apply_updates(state["params"], updates)
        if config.optimizer.train_only:  # to the last bit: adding zero would make zeros of negative ones
            is_trained = trained(config.optimizer, params)
            params = jax.tree.map(lambda new, old, yes: new if yes else old, params, state["params"], is_trained)
        if config.optimizer.max_skipped_steps:
            is_finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
            old = state["params"], state["opt_state"]
            params, opt_state = choose_state(is_finite, (params, opt_state), old)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    state = abstract_state(config, mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (accumulate, x.shape[0] // accumulate, *x.shape[1:]), x.dtype, sharding=microbatch_sharding(mesh)
        ),
        config.batch_spec(phase) if spec is None else spec,
    )
    shardings = jax.tree.map(lambda tensor: tensor.sharding, state)
    jitted = jax.jit(in_use(mesh, train_step), out_shardings=(shardings, replicated(mesh)), donate_argnums=0)
    lowered = jitted.lower(state, batch)
    if not alone():
        # Different programs that run as one may compute anything. They differ where processors round the bases of
        # positions differently, say, or where the environment of one asks for other kernels.
        check_same({"program": digest([lowered.as_text().encode()])})
    return lowered.compile()


def make_eval_step(config: Any, phase: int, mesh: Mesh) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """The jitted evaluation of a phase's model, for kinds of experiments that have a method `nats`.

    It takes parameters, placed by `params_shardings`, rows, a tree of arrays `[B, …]`, and weights float32 `[B]` (0 for
    padding), and returns the sum of nats over all rows with weight 1, float32.
    """
    shardings = params_shardings(config, mesh)
    batch = NamedSharding(mesh, P(BATCH_AXES))
    nats = in_use(mesh, functools.partial(config.nats, phase))
    return jax.jit(nats, in_shardings=(shardings, batch, batch), out_shardings=replicated(mesh))
