"""Training: experiment configurations, the loop, and what it leaves in a workdir."""

import importlib
from typing import TYPE_CHECKING, Any

from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.monitor import DivergenceError
from longformer_jax.training.parts import MeshConfig, OptimizerConfig, Phase

if TYPE_CHECKING:
    from longformer_jax.training.char_lm import CharLMExperiment, CharLMPhase, DataConfig
    from longformer_jax.training.loop import train
    from longformer_jax.training.masked_lm import MaskedLMExperiment, TokenDataConfig
    from longformer_jax.training.seeds import train_seeds
    from longformer_jax.training.task import TaskDataConfig, TaskExperiment, TaskPhase
    from longformer_jax.training.workdir import export_model, load_char_lm, restore_params

__all__ = [
    "CharLMExperiment",
    "CharLMPhase",
    "DataConfig",
    "DivergenceError",
    "ExperimentConfig",
    "MaskedLMExperiment",
    "MeshConfig",
    "OptimizerConfig",
    "Phase",
    "TaskDataConfig",
    "TaskExperiment",
    "TaskPhase",
    "TokenDataConfig",
    "export_model",
    "load_char_lm",
    "restore_params",
    "train",
    "train_seeds",
]

# Imported when asked for: Orbax and matplotlib load slowly, and a configuration or a single step needs neither.
_LATER = {
    "CharLMExperiment": "char_lm",
    "CharLMPhase": "char_lm",
    "DataConfig": "char_lm",
    "MaskedLMExperiment": "masked_lm",
    "TaskDataConfig": "task",
    "TaskExperiment": "task",
    "TaskPhase": "task",
    "TokenDataConfig": "masked_lm",
    "export_model": "workdir",
    "load_char_lm": "workdir",
    "restore_params": "workdir",
    "train": "loop",
    "train_seeds": "seeds",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
