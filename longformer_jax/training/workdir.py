"""The parameters in a workdir that train.py has written."""

from pathlib import Path
from typing import Any

from longformer_jax import checkpoints
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.step import abstract_params


def restore_params(workdir: str | Path, step: int | None = None) -> Any:
    """The parameters of a checkpoint, float32 arrays on the default device, for evaluation.

    Args:
      workdir: a directory that train.py has written; its config.json names the architecture.
      step: which checkpoint; None is the latest.

    Raises:
      InputError: there is no such checkpoint, a file of it is missing or changed, or it has another architecture.
    """
    return checkpoints.restore_params(workdir, abstract_params(ExperimentConfig.load(workdir)), step)
