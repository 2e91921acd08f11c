"""AdamW with clipping, and the learning rate over all phases (paper, appendix B)."""

from typing import Any

import jax
import optax

from longformer_jax.training.config import ExperimentConfig, OptimizerConfig, Phase

# Matrices; biases, LayerNorm scales and the position biases u and v are not decayed.
_DECAYED = ("kernel", "embedding", "relative", "head")


def learning_rate_schedule(config: ExperimentConfig) -> optax.Schedule:
    """The learning rate as a function of the number of finished steps, a float32 scalar.

    Each phase warms up linearly, reaching its own rate r after w steps (step s, from 0, has r (s + 1) / (w + 1)), and
    then keeps it or decays to a fraction of it at the end of the phase.
    """
    starts = [sum(phase.steps for phase in config.phases[:i]) for i in range(len(config.phases))]
    return optax.join_schedules([_phase_schedule(phase, config.optimizer) for phase in config.phases], starts[1:])


def _phase_schedule(phase: Phase, optimizer: OptimizerConfig) -> optax.Schedule:
    rate, fraction = phase.learning_rate, optimizer.final_fraction
    warmup = optimizer.warmup_steps(phase.steps)
    remaining = phase.steps - warmup
    after = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, rate * fraction, remaining),
        "cosine": lambda: optax.cosine_decay_schedule(rate, remaining, alpha=fraction),
    }[optimizer.decay]()
    return optax.join_schedules([lambda step: rate * (step + 1) / (warmup + 1), after], [warmup])


def make_optimizer(config: ExperimentConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW under `learning_rate_schedule`."""
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mask=_decay_mask,
        ),
    )


def _decay_mask(params: Any) -> Any:
    """A tree like `params` of booleans: whether weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)
