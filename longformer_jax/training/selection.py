"""Which validation of a run was the best, as its log tells, and when there has been none better for too long."""

import dataclasses
import math
import shutil
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from longformer_jax import checkpoints
from longformer_jax.training.config import ExperimentConfig

# Below the workdir: STEP/params of the best validation so far.
BEST_DIRECTORY = "best"


@dataclasses.dataclass
class Selection:
    """The best of the validations so far; of equal ones the first.

    Attributes:
      name: what a validation reports that is compared.
      largest: whether the largest is the best, not the smallest.
      steps: of all validations.
      best_steps: of those that were better than all before them. Any number is better than NaN.
      best_value: of the best one.
      since_best: how many validations there have been since then.
    """

    name: str
    largest: bool
    steps: set[int] = dataclasses.field(default_factory=set)
    best_steps: list[int] = dataclasses.field(default_factory=list)
    best_value: float = math.nan
    since_best: int = 0

    @classmethod
    def of(cls, config: ExperimentConfig, records: Iterable[Mapping[str, Any]] = ()) -> "Selection":
        """That of a run whose log has these records."""
        selection = cls(*config.selection)
        for record in records:
            if record["split"] == "validation" and selection.name in record:
                selection.add(record["step"], record)
        return selection

    def add(self, step: int, values: Mapping[str, Any]) -> bool:
        """Takes what a validation after `step` steps reports; returns whether it is the best so far."""
        value = values[self.name]
        self.steps.add(step)
        is_better = value > self.best_value if self.largest else value < self.best_value
        replaces_nan = math.isnan(self.best_value) and not math.isnan(value)
        if self.best_step is not None and not (is_better or replaces_nan):
            self.since_best += 1
            return False
        self.best_value, self.since_best = value, 0
        self.best_steps.append(step)
        return True

    @property
    def best_step(self) -> int | None:
        """The step of the best validation; None where there is none yet."""
        return self.best_steps[-1] if self.best_steps else None

    def needed(self, checkpoint: int) -> list[int]:
        """The steps whose parameters may become the model: the best one, and what is it for a run that is killed now.

        Such a run goes on from its latest checkpoint, or a later one that is complete by then.
        """
        before = [step for step in self.best_steps if step <= checkpoint]
        return before[-1:] + self.best_steps[len(before) :]

    def is_over(self, patience: int | None) -> bool:
        """Whether there have been `patience` validations since the best one."""
        return patience is not None and self.since_best >= patience


def save_best(workdir: Path, step: int, params: Any) -> None:
    """Keeps the parameters of a step; all processes call this."""
    checkpoints.save_params(workdir / BEST_DIRECTORY / str(step), params, step=step)


def remove_bests(workdir: Path, needed: Container[int]) -> None:
    """Removes what `save_best` has kept of other steps."""
    for path in (workdir / BEST_DIRECTORY).glob("*"):
        if path.name.isdecimal() and int(path.name) not in needed:
            shutil.rmtree(path, ignore_errors=True)  # what cannot be removed is no longer asked for


def has_best(workdir: Path, step: int) -> bool:
    """Whether `save_best` has kept the parameters of a step."""
    return checkpoints.has_params(workdir / BEST_DIRECTORY / str(step))


def find_best(workdir: Path) -> int | None:
    """The latest step that `save_best` has kept the parameters of; None where there are none."""
    found = [int(path.name) for path in (workdir / BEST_DIRECTORY).glob("*") if path.name.isdecimal()]
    return max((step for step in found if has_best(workdir, step)), default=None)


def load_best(workdir: Path, step: int, abstract_params: Any, *, on_host: bool = False) -> Any:
    """The parameters that `save_best` has kept, as `checkpoints.load_params` returns them."""
    return checkpoints.load_params(workdir / BEST_DIRECTORY / str(step), abstract_params, step=step, on_host=on_host)
