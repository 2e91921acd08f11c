"""Evaluation of several runs that differ in their seed."""

import dataclasses
from typing import Any

from longformer_jax.training.seeds import mean_and_deviation


@dataclasses.dataclass(frozen=True)
class SeedResults:
    """What an evaluation found of each run.

    Attributes:
      results: by the name of the run.
    """

    results: dict[str, Any]

    def __str__(self) -> str:
        lines = [f"{name}: {result}" for name, result in self.results.items()]
        found = [result.metrics for result in self.results.values()]
        for name in found[0]:
            lines.append(f"{name} of {len(found)} seeds: {mean_and_deviation([metrics[name] for metrics in found])}")
        return "\n".join(lines)
