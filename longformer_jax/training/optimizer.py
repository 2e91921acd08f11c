"""The optimizer with clipping, and the learning rate over all phases (paper, appendix B)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from longformer_jax.errors import InputError
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.parts import OptimizerConfig, Phase

# The position biases are stored as matrices, [L, H, D].
_BIASES = ("u", "v")


def learning_rate_schedule(config: ExperimentConfig) -> optax.Schedule:
    """The learning rate as a function of the number of finished steps, a float32 scalar.

    Each phase warms up linearly, reaching its own rate r after w steps (step s, from 0, has r (s + 1) / (w + 1)), and
    then keeps it or decays to a fraction of it at the end of the phase. In the last n steps of the run, if it cools
    down, that rate is multiplied by the part of them that is left.
    """
    starts = [sum(phase.steps for phase in config.phases[:i]) for i in range(len(config.phases))]
    phases = optax.join_schedules([_phase_schedule(phase, config.optimizer) for phase in config.phases], starts[1:])
    if not (n := config.cooldown_steps):
        return phases
    return lambda step: phases(step) * jnp.clip((config.total_steps - step) / n, 0, 1)


def _phase_schedule(phase: Phase, optimizer: OptimizerConfig) -> optax.Schedule:
    rate, fraction = phase.learning_rate, optimizer.final_fraction
    warmup = optimizer.warmup(phase.steps)
    remaining = phase.steps - warmup
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, rate * fraction, remaining),
        "cosine": lambda: optax.cosine_decay_schedule(rate, remaining, alpha=fraction),
        "polynomial": lambda: optax.polynomial_schedule(rate, rate * fraction, optimizer.power, remaining),
    }[optimizer.decay]()
    return optax.join_schedules([lambda step: rate * (step + 1) / (warmup + 1), after], [warmup])


def make_optimizer(config: ExperimentConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then the update by `learning_rate_schedule`, for the parameters that are trained."""
    optimizer = config.optimizer
    chain = optax.chain(
        optax.identity() if optimizer.clip_norm is None else optax.clip_by_global_norm(optimizer.clip_norm),
        _update_rule(optimizer, learning_rate_schedule(config)),
        *([] if optimizer.head_factor == 1 else [optax.masked(optax.scale(optimizer.head_factor), _head_mask)]),
    )
    if not optimizer.train_only:
        return chain

    def label(params: Any) -> Any:
        return jax.tree.map(lambda yes: "train" if yes else "freeze", trained(optimizer, params))

    return optax.multi_transform({"train": chain, "freeze": optax.set_to_zero()}, label)


def choose_state(condition: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the condition holds, else `old`, but for the learning rate's schedule, which goes on in any case."""

    def is_schedule(state: Any) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    def choose(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(condition, new, old)

    return jax.tree.map(choose, new, old, is_leaf=is_schedule)


def _update_rule(optimizer: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    adamw = optax.adamw(
        schedule,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        mask=_decay_mask,
    )
    if optimizer.name == "adamw":
        return adamw
    dimensions = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)  # of [L, in, out]
    muon = optax.contrib.muon(
        lambda step: optimizer.muon_factor * schedule(step),
        beta=optimizer.muon_momentum,
        weight_decay=optimizer.weight_decay,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: dimensions, params),
    )
    return optax.multi_transform({"muon": muon, "adamw": adamw}, _rule_of_each)


def _rule_of_each(params: Any) -> Any:
    """A tree like `params`: "muon" for the kernels of the layers, [L, in, out]."""

    def rule(path: tuple[Any, ...], param: Any) -> str:
        names = [key.key for key in path]
        return "muon" if "layers" in names and names[-1] == "kernel" and param.ndim == 3 else "adamw"

    return jax.tree_util.tree_map_with_path(rule, params)


def trained(optimizer: OptimizerConfig, params: Any) -> Any:
    """A tree like `params` of booleans: whether a parameter is trained; raises InputError where none is."""

    def matches(path: tuple[Any, ...], _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return re.search(optimizer.train_only or "", name) is not None

    result = jax.tree_util.tree_map_with_path(matches, params)
    if not any(jax.tree.leaves(result)):
        raise InputError(f"optimizer.train_only is {optimizer.train_only!r}; expected a match in a parameter's path")
    return result


def _head_mask(params: Any) -> Any:
    """A tree like `params` of booleans: whether a parameter is on top of the encoder."""
    if "longformer" not in params:
        raise InputError("optimizer.head_factor is not 1; expected it where a model has an encoder and a head on top")
    return {name: jax.tree.map(lambda _, name=name: name != "longformer", part) for name, part in params.items()}


def _decay_mask(params: Any) -> Any:
    """A tree like `params` of booleans: whether weight decay applies: to matrices, embeddings among them."""

    def is_matrix(path: tuple[Any, ...], param: Any) -> bool:
        names = [key.key for key in path]
        return param.ndim - ("layers" in names) >= 2 and names[-1] not in _BIASES

    return jax.tree_util.tree_map_with_path(is_matrix, params)
