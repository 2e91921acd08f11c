"""How the bits per character of a small model fall with its size and its text, and what that says of larger ones.

    python -m benchmarks.compute runs/reviews.txt JOURNAL

Models of several widths are trained on different amounts of the text, in the first phase of
configs/char_lm/reviews_text.py, all with a rate that falls to zero at their end. JOURNAL gets a line of JSON for every
training; those that it has are not repeated. Then a law is fitted that has the form of Hoffmann et al. (2022, "Training
compute-optimal large language models", equation 2), L = E + A / N^a + B / D^b, with N parameters and D characters: the
sum of the Huber losses of the difference of log L is least. Writes results/compute_cpu.json and prints it.
`benchmarks.plot` draws it.

A text that is read more than once counts less: D of U different characters as in Muennighoff et al. (2023, "Scaling
data-constrained language models", equation 5).
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy

from benchmarks.recipe import read_journal, trained_and_scored
from benchmarks.side_by_side import cpu_model
from configs.char_lm import enwik8_small
from configs.char_lm.reviews_text import get_config
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.settings import pinned
from longformer_jax.training import CharLMExperiment, DataConfig
from longformer_jax.training.flops import training_flops_per_character
from longformer_jax.training.step import abstract_params

# Width and steps of 4,096 characters.
TRAININGS = (
    *itertools.product((64,), (250, 500, 1000, 2000, 4000)),
    *itertools.product((128,), (250, 500, 1000, 2000)),
    *itertools.product((192, 256), (250, 500, 1000)),
)
RESULT = Path(__file__).parent / "results" / "compute_cpu.json"
SCORED = 200_000  # characters of validation
HUBER = 1e-3  # Hoffmann et al., appendix D.2
REPEATS = 15.39  # R*_D of Muennighoff et al.


def experiment(text: Path, width: int, steps: int) -> CharLMExperiment:
    """A training of the family."""
    config = CharLMExperiment.from_config_dict(get_config())
    heads = max(width // 64, 2)  # one of them dilated
    model = dataclasses.replace(config.model, embed_dim=width, mlp_dim=4 * width, num_heads=heads)
    phase = dataclasses.replace(config.phases[0], steps=steps)
    return dataclasses.replace(config, model=model, phases=(phase,), data=DataConfig(path=str(text)))


def size(config: CharLMExperiment) -> dict[str, float]:
    """N, D and the FLOPs of a training."""
    params, flops, characters = abstract_params(config), 0.0, 0
    for i, phase in enumerate(config.phases):
        read = phase.steps * phase.batch_size * phase.sequence_length
        flops += read * training_flops_per_character(config.model_in_phase(i), params, phase.sequence_length)
        characters += read
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return {"parameters": parameters, "characters": characters, "flops": flops}


def law(fitted: Sequence[float], parameters: Any, characters: Any) -> Any:
    """L in bits per character; `fitted` are log E, log A, a, log B, b."""
    log_floor, log_A, a, log_B, b = fitted
    return np.exp(log_floor) + np.exp(log_A - a * np.log(parameters)) + np.exp(log_B - b * np.log(characters))


def fit(measured: Sequence[dict[str, Any]]) -> list[float]:
    """The law's numbers, the best of many starts."""
    measured = [row for row in measured if row["bpc"] is not None]  # what has diverged says nothing of the law
    columns = ("parameters", "characters", "bpc")
    parameters, characters, bpc = (np.array([row[column] for row in measured]) for column in columns)

    def differences(fitted: Sequence[float]) -> np.ndarray:
        return np.log(law(fitted, parameters, characters)) - np.log(bpc)

    starts = itertools.product(np.log([0.5, 1.0, 1.5]), (0, 3, 6), (0.2, 0.5), (0, 3, 6), (0.2, 0.5))
    options: dict[str, Any] = {"loss": "huber", "f_scale": HUBER, "max_nfev": 2000}
    bounds = ([-5, -20, 0, -20, 0], [1, 40, 2, 40, 2])
    found = [scipy.optimize.least_squares(differences, start, bounds=bounds, **options) for start in starts]
    return [float(number) for number in min(found, key=lambda each: each.cost).x]


def worth(characters: float, unique: float) -> float:
    """How many new characters so many are worth, if only `unique` of them are different."""
    repeats = max(characters / unique - 1, 0)
    return min(characters, unique) * (1 + REPEATS * (1 - math.exp(-repeats / REPEATS)))


@pinned()
def run(text: Path, journal: Path) -> list[dict[str, Any]]:
    """All trainings, those that the journal has and those that it had not."""
    fingerprint = DataConfig(path=str(text)).load().fingerprint
    records, measured = read_journal(journal), []
    for width, steps in sorted(TRAININGS, key=lambda training: training[0] ** 2 * training[1]):
        trial = {"width": width, "steps": steps, "text": fingerprint}
        found = next((record for record in records if trial.items() <= record.items()), None)
        if found is None:
            config = experiment(text, width, steps)
            scored = trained_and_scored(config, SCORED)
            found = trial | size(config) | {"bpc": scored["bpc"], "seconds": scored["seconds"]}
            with journal.open("a") as file:
                print(json.dumps(found), file=file)
            print(json.dumps(found), file=sys.stderr, flush=True)
        measured.append(found)
    return measured


def asked() -> list[dict[str, Any]]:
    """Larger trainings, and how many of their characters are different."""
    enwik8 = {name: enwik8_small.get_config(name) for name in ("hour", "day")}
    configs = {f"enwik8_small:{name}": (CharLMExperiment.from_config_dict(each), 90e6) for name, each in enwik8.items()}
    reviews = CharLMExperiment.from_config_dict(get_config())
    first = dataclasses.replace(reviews, phases=reviews.phases[:1])
    return [
        {"name": name, "unique": unique} | size(config)
        for name, (config, unique) in ({"reviews_text, its first phase": (first, math.inf)} | configs).items()
    ]


def extrapolated(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the law expects of the larger trainings; between which values, if one training had not been measured."""
    without = [fit([row for row in measured if row is not left_out]) for left_out in measured]
    rows = []
    for row in asked():
        at = row["parameters"], worth(row["characters"], row["unique"])
        spread = sorted(float(law(fitted, *at)) for fitted in without)
        expected = float(law(fit(measured), *at))
        rows.append(row | {"worth": at[1], "bpc": expected, "least": spread[0], "most": spread[-1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("journal", type=Path)
    options = parser.parse_args()
    reuse_freed_memory()  # as train.py
    with one_line_for_errors():
        measured = run(options.text, options.journal)
        machine = {"cpu": cpu_model(), "jax": jax.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
        fitted = fit(measured)
        result = machine | {"measured": measured, "fitted": fitted, "extrapolated": extrapolated(measured)}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(RESULT.read_text())


if __name__ == "__main__":
    main()
