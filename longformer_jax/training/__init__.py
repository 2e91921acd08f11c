"""Training of the character LM: experiment configurations, the loop, and what it leaves in a workdir."""

import importlib
from typing import TYPE_CHECKING, Any

from longformer_jax.training.config import (
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    OptimizerConfig,
    Phase,
)
from longformer_jax.training.monitor import DivergenceError

if TYPE_CHECKING:
    from longformer_jax.training.checkpoints import restore_params
    from longformer_jax.training.loop import train

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

# Imported when asked for: Orbax and matplotlib load slowly, and a configuration or a single step needs neither.
_LATER = {"restore_params": "checkpoints", "train": "loop"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
