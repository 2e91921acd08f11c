"""Evaluation of what train.py left in a workdir, whatever kind of experiment it was."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.evaluation import char_lm, masked_lm, task
from longformer_jax.evaluation.seeds import SeedResults
from longformer_jax.files import user_path
from longformer_jax.settings import pinned
from longformer_jax.training import ExperimentConfig
from longformer_jax.training.config import CONFIG_FILE, runs_of_seeds
from longformer_jax.training.workdir import MODEL_DIRECTORY
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.hugging_face_config import CHAR_LM, read_values

# For each kind of experiment a function of a workdir and options, whose result is also a line of text; and one of a
# model that is no run.
EVALUATIONS = {"char_lm": char_lm.evaluate, "masked_lm": masked_lm.evaluate, "task": task.evaluate}
EVALUATIONS_OF_MODELS = {"char_lm": char_lm.evaluate_model, "masked_lm": masked_lm.evaluate_model}


@pinned()
def evaluate(workdir: str | Path, **options: Any) -> Any:
    """Evaluates a run by the function of its kind, the entry of `EVALUATIONS`, whose options these are.

    Where several seeds have been trained in the workdir, it evaluates each of them.

    Raises:
      InputError: where that function does, or the kind has no such option.
    """
    directory = user_path("workdir", workdir)
    runs = [] if (directory / CONFIG_FILE).exists() else runs_of_seeds(directory)
    if runs:
        if options.get("predictions") is not None:
            raise InputError(
                f"predictions is {str(options['predictions'])!r}, but {str(workdir)!r} holds several runs; expected "
                f"one of them, such as {str(runs[0])!r}, as workdir"
            )
        if unfinished := [run.name for run in runs if not (run / MODEL_DIRECTORY).exists()]:
            raise InputError(
                f"workdir {str(workdir)!r} has {', '.join(unfinished)} without the model of a run that has ended; "
                "expected only runs that have"
            )
        return SeedResults({run.name: evaluate(run, **options) for run in runs})
    objective = ExperimentConfig.load(workdir).objective
    function = EVALUATIONS[objective]
    _check_options(function, options, f"{str(workdir)!r} holds a {objective} run")
    return function(workdir, **options)


@pinned()
def evaluate_model(model: str, *, data: str, **options: Any) -> Any:
    """Scores documents with a model that is no run by the function of its kind, an entry of `EVALUATIONS_OF_MODELS`.

    Raises:
      InputError: where that function does, or the kind has no such option.
    """
    kind = _kind_of_model(model)
    function = EVALUATIONS_OF_MODELS[kind]
    _check_options(function, options, f"{model!r} is a {'character' if kind == 'char_lm' else 'masked'} LM and no run")
    return function(model, data=data, **options)


def _kind_of_model(model: str) -> str:
    return "char_lm" if read_values(find_directory(model)).get("model_type") == CHAR_LM else "masked_lm"


def _check_options(function: Callable[..., Any], options: dict[str, Any], what: str) -> None:
    known = [name for name in inspect.signature(function).parameters if name not in ("workdir", "model")]
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{name} is {value!r}, but {what}; expected no options but {', '.join(known)}")


@pinned()
def sample_text(workdir: str | Path, length: int, **options: Any) -> str:
    """Writes `length` characters with a character LM; see `char_lm.sample_text` for the options.

    Raises:
      InputError: where that does, or the run is of another kind.
    """
    objective = ExperimentConfig.load(workdir).objective
    if objective != "char_lm":
        raise InputError(f"sample is {length}, but {str(workdir)!r} holds a {objective} run; expected a char_lm run")
    return char_lm.sample_text(workdir, length, **options)


@pinned()
def sample_from_model(model: str, length: int, **options: Any) -> str:
    """As `sample_text`, with a model that is no run; see `char_lm.sample_from_model`.

    Raises:
      InputError: where that does, or the model is of another kind.
    """
    if _kind_of_model(model) != "char_lm":
        raise InputError(f"sample is {length}, but {model!r} is no character LM; expected one")
    return char_lm.sample_from_model(model, length, **options)
