"""The same experiment with several seeds, and what their best validations are on average."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax

from longformer_jax.files import user_path
from longformer_jax.integers import check_integer
from longformer_jax.models.checks import check_config
from longformer_jax.processes import check_same, from_first, together
from longformer_jax.training.config import SEED_PREFIX, ExperimentConfig
from longformer_jax.training.loop import train
from longformer_jax.training.metrics import METRICS_FILE, read_metrics
from longformer_jax.training.preemption import StopRequest
from longformer_jax.training.selection import Selection
from longformer_jax.training.workdir import MODEL_DIRECTORY


def train_seeds(config: ExperimentConfig, workdir: str | Path, count: int, *, profile: bool = False) -> None:
    """Trains with the seeds seed, seed + 1, …, one after the other, each in a directory WORKDIR/seed_N.

    Prints the mean and the standard deviation of their best validations. When it is told to stop, it stops; called
    again, it goes on with the seed that was stopped.

    Args:
      config: of the first one.
      workdir: a directory, made if need be.
      count: how many.
      profile: as `train`'s.

    Raises:
      InputError: where `train` does.
    """
    with together():
        check_config(config, ExperimentConfig)
        count = check_integer("seeds", count)
        dataclasses.replace(config, seed=config.seed + count - 1)  # whether there is one, before the first trains
        workdir = user_path("workdir", workdir)
    check_same({"seeds": count})

    def say(line: str) -> None:
        if jax.process_index() == 0:
            print(line, flush=True)

    best = []
    with StopRequest() as stop:  # what comes after a run's last step, too
        for seed in range(config.seed, config.seed + count):
            run = workdir / f"{SEED_PREFIX}{seed}"
            say(f"seed {seed} ({seed - config.seed + 1} of {count}), in {run}")
            train(dataclasses.replace(config, seed=seed), run, profile=profile)
            if from_first(stop.received or not (run / MODEL_DIRECTORY).exists()):
                return
            with together():
                selection = Selection.of(config, read_metrics(run / METRICS_FILE))
                best += [] if selection.best_step is None else [selection.best_value]
    name = config.selection[0]
    if best:  # else there is no validation
        say(f"best validation {name} of {count} seeds: {mean_and_deviation(best)}")


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean, and the standard deviation of a sample, where there are two values or more; then all values."""
    # Of values of which one is not finite, `statistics` knows no deviation.
    spread = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan
    deviation = f" ± {spread:.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation} ({', '.join(f'{value:.4f}' for value in values)})"
