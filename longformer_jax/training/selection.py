"""Which validation of a run was the best, as its log tells, and when there has been none better for too long."""

import dataclasses
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

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
      best_step, best_value: of the best one; None where there is none yet. Any number is better than NaN.
      since_best: how many validations there have been since then.
    """

    name: str
    largest: bool
    steps: set[int] = dataclasses.field(default_factory=set)
    best_step: int | None = None
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
        self.best_step, self.best_value, self.since_best = step, value, 0
        return True

    def is_over(self, patience: int | None) -> bool:
        """Whether there have been `patience` validations since the best one."""
        return patience is not None and self.since_best >= patience


def save_best(workdir: Path, step: int, params: Any) -> None:
    """Keeps the parameters of a step in place of those before; all processes call this."""
    checkpoints.save_params(workdir / BEST_DIRECTORY / str(step), params)
    if jax.process_index() == 0:
        for other in (workdir / BEST_DIRECTORY).iterdir():
            if other.name.isdecimal() and other.name != str(step):
                shutil.rmtree(other, ignore_errors=True)  # what stays is an earlier step's


def find_best(workdir: Path) -> int | None:
    """The step of the parameters that `save_best` has kept; None where there are none."""
    found = [int(path.name) for path in (workdir / BEST_DIRECTORY).glob("*") if path.name.isdecimal()]
    return max((step for step in found if checkpoints.has_params(workdir / BEST_DIRECTORY / str(step))), default=None)


def load_best(workdir: Path, step: int, abstract_params: Any, *, on_host: bool = False) -> Any:
    """The parameters that `save_best` has kept, as `checkpoints.load_params` returns them."""
    return checkpoints.load_params(workdir / BEST_DIRECTORY / str(step), abstract_params, on_host=on_host)
