"""Training of the character LM: experiment configurations, the loop, and what it leaves in a workdir."""

from longformer_jax.training.checkpoints import restore_params
from longformer_jax.training.config import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    OptimizerConfig,
    Phase,
)
from longformer_jax.training.loop import train
from longformer_jax.training.monitor import DivergenceError

__all__ = [
    "DataConfig",
    "DivergenceError",
    "ExperimentConfig",
    "MeshConfig",
    "OptimizerConfig",
    "Phase",
    "restore_params",
    "train",
]
