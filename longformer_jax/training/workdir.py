"""What a run has left, or leaves, in its workdir: its parameters, and the model that it was for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from longformer_jax import checkpoints
from longformer_jax.files import check_unused, replacing, user_path
from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.processes import together
from longformer_jax.training.char_lm import CharLMExperiment
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.selection import find_best, load_best
from longformer_jax.training.sharding import replicated
from longformer_jax.training.step import abstract_params
from longformer_jax.weights import load_pretrained
from longformer_jax.weights.hub import EXAMPLE

# What a run that has ended leaves there.
MODEL_DIRECTORY = "model"


def restore_params(workdir: str | Path, step: int | None = None) -> Any:
    """The parameters of a checkpoint, float32 arrays on the default device, for evaluation.

    Args:
      workdir: a directory that train.py has written; its config.json names the architecture.
      step: which checkpoint; None is the latest.

    Raises:
      InputError: there is no such checkpoint, a file of it is missing or changed, or it has another architecture.
    """
    return restore_checkpoint(workdir, step)[1]


def restore_checkpoint(workdir: str | Path, step: int | None = None) -> tuple[int, Any]:
    """The step of a checkpoint and what `restore_params` returns."""
    return checkpoints.restore_params(workdir, abstract_params(ExperimentConfig.load(workdir)), step)


def restore_chosen(workdir: str | Path, step: int | None = None) -> tuple[int, Any]:
    """As `restore_checkpoint`, but None is the best validation, where a run keeps that, and it has had one."""
    config, directory = ExperimentConfig.load(workdir), user_path("workdir", workdir)
    while True:
        best = find_best(directory) if config.keep_best and step is None else None
        if best is None:
            return restore_checkpoint(workdir, step)
        try:
            return best, load_best(directory, best, abstract_params(config))
        except Exception:  # whatever is raised when a run that still trains removes it
            if best == find_best(directory):
                raise


def load_char_lm(workdir: str | Path, step: int | None = None) -> tuple[CharLMConfig, Any]:
    """The character LM of a run, finished or not.

    Args:
      workdir: of the run. "example", where there is no such directory, is the model that comes with the library.
      step: which checkpoint; None is the best validation where the run keeps that, else the latest.

    Returns:
      The configuration, with the windows of the phase in which the checkpoint was made, and the parameters, float32 on
      the default device. Settings that depend on the training devices, `remat` and `implementation`, have their default
      values.

    Raises:
      InputError: the workdir holds no run, one of another kind, or no such checkpoint; or it is damaged.
    """
    if step is None and workdir == EXAMPLE and not Path(EXAMPLE).exists():
        return load_pretrained(EXAMPLE, CharLM)
    return restore_char_lm(workdir, step)[1:]


def restore_char_lm(workdir: str | Path, step: int | None = None) -> tuple[int, CharLMConfig, Any]:
    """The step of a checkpoint and what `load_char_lm` returns."""
    experiment = CharLMExperiment.load(workdir)
    step, params = restore_chosen(workdir, step)
    model = experiment.model_in_phase(experiment.last_phase(step))
    return step, dataclasses.replace(model, remat=False, implementation=None), params


def export_model(workdir: str | Path, directory: str | Path, step: int | None = None) -> None:
    """Writes the model of a checkpoint, which need not be the last one, as a run does at its end.

    Args:
      workdir: of the run.
      directory: a new or empty one; gets config.json and the weights, for `load_pretrained`, and of a masked LM, which
        transformers reads as well, the tokenizer.
      step: which checkpoint; None is the best validation where the run keeps that, else the latest.

    Raises:
      InputError: the workdir holds no run or no such checkpoint, it is damaged, or `directory` has something in it.
    """
    workdir, directory = user_path("workdir", workdir), user_path("directory", directory)
    check_unused("directory", directory)
    config = ExperimentConfig.load(workdir)
    step, params = restore_chosen(workdir, step)
    with replacing(directory) as partial:
        config.write_model(partial, params, phase=config.last_phase(step), workdir=workdir)


def leave_model(config: ExperimentConfig, workdir: Path, state: Any, best: int | None = None) -> Path:
    """Writes the model of a run that has ended, in place of what was there; all processes call this.

    It is the one of `best`, a step that `save_best` has kept, else that of `state`, the last one.
    """
    directory = workdir / MODEL_DIRECTORY
    if best is not None:
        params, step = load_best(workdir, best, abstract_params(config), on_host=True), best
    else:
        params, step = _on_host(state["params"]), int(state["step"])
    with together():
        if jax.process_index() == 0:
            with replacing(directory) as partial:
                config.write_model(partial, params, phase=config.last_phase(step), workdir=workdir)
    return directory


def _on_host(params: Any) -> Any:
    """The whole tensors, one after the other, as a device may not have room for all; all processes call this."""

    def gather(tensor: Any) -> Any:
        if not tensor.is_fully_addressable:  # else parts of it are on other machines
            tensor = jax.jit(lambda x: x, out_shardings=replicated(tensor.sharding.mesh))(tensor)
        return jax.device_get(tensor)

    return jax.tree.map(gather, params)
