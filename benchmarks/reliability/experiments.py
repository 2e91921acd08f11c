"""What the trials train: the tiny experiments of the tests, of more steps, with a line in the log for each of them.

A configuration for train.py, whose variant is the kind and a folder for its data: experiments.py:char_lm@FOLDER.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from longformer_jax.training import ExperimentConfig
from tests.training import tiny, tiny_masked, tiny_task

EXPERIMENTS = str(Path(__file__).resolve())
KINDS = ("char_lm", "masked_lm", "task")


def experiment(kind: str, folder: Path, steps: Sequence[int] = (60, 40)) -> ExperimentConfig:
    """One of a kind, with so many steps in its phases, whose data are written to `folder`; a task has one phase."""
    folder.mkdir(parents=True, exist_ok=True)
    found: Any
    match kind:
        case "char_lm":
            found = tiny.CONFIG
        case "masked_lm":
            found = tiny_masked.with_text(folder)
            # At the tests' rate of 1e-2, training becomes unstable after 80 steps, and rounding grows a thousandfold.
            slower = tuple(dataclasses.replace(phase, learning_rate=3e-3) for phase in found.phases)
            found = dataclasses.replace(found, phases=slower)
        case _:
            found = tiny_task.with_data(folder / "documents")
            steps = (sum(steps),)
    in_steps: dict[str, Any] = {"epochs": None} if kind == "task" else {}
    phases: Any = zip(found.phases, steps, strict=True)
    return dataclasses.replace(
        found,
        phases=tuple(dataclasses.replace(phase, steps=count, **in_steps) for phase, count in phases),
        keep_best=kind == "task",
        log_interval=1,
        checkpoint_interval=3,
        eval_interval=20,  # so that there is one where the first phase ends
    )


def get_config(variant: str) -> ConfigDict:
    """What train.py asks for."""
    kind, _, folder = variant.partition("@")
    return experiment(kind, Path(folder)).to_config_dict()
