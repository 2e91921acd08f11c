"""What each part of the recipe of a small character model is worth: one change at a time, in the same time.

    python -m benchmarks.recipe JOURNAL [--text=FILE] [--seconds=300] [--seeds=3] [CHANGE …]

The recipe is the quickstart's. Each change is trained for as many steps as fit into the same seconds, which the phases
share as in the recipe: a step of each phase is timed first, and imports, compilation, validation and checkpoints do not
count. Then all of validation is scored, each character with its full context. The machine should have nothing else to
do. JOURNAL gets a line of JSON for every training; those that it has are not repeated. Prints the means, deviations and
differences as a table.

The text is the embedded Shakespeare, or FILE, whose last 5% before the last 5% validate.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.side_by_side import cpu_model
from configs.char_lm.quickstart import get_config
from longformer_jax.evaluation.protocols import BitsPerCharacter, score_stream
from longformer_jax.training import CharLMExperiment, DataConfig
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import compile_train_step, init_state

UNCHANGED = "recipe"
TIMED, FIRST = 30, 5  # steps that are timed, and those before that are not

Change = Callable[[CharLMExperiment], CharLMExperiment]


def model(**fields: Any) -> Change:
    """Other fields of the model."""
    return lambda config: dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def optimizer(**fields: Any) -> Change:
    """Other fields of the optimizer."""
    return lambda config: dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **fields))


def phases(change: Callable[[Any], Any]) -> Change:
    """Each phase by a function of it."""
    return lambda config: dataclasses.replace(config, phases=tuple(change(phase) for phase in config.phases))


CHANGES: dict[str, Change] = {
    "Muon": optimizer(name="muon"),
    "ReLU²": model(activation="relu2"),
    "QK-norm": model(qk_norm=True),
    "logits capped at 15": model(logit_softcap=15.0),
    "decay to zero": optimizer(final_fraction=0.0),
    "weight decay 0.5": optimizer(weight_decay=0.5),
    "dropout 0.1": model(dropout_rate=0.1),
    "batches twice as large": phases(lambda phase: dataclasses.replace(phase, batch_size=2 * phase.batch_size)),
}


def recipe(data: DataConfig) -> CharLMExperiment:
    """The quickstart, of a text."""
    return dataclasses.replace(CharLMExperiment.from_config_dict(get_config()), data=data)


def seconds_a_step(config: CharLMExperiment) -> list[float]:
    """Of each phase, the median of some steps."""
    mesh, data = make_mesh(config.mesh), config.load_data()
    state, medians = init_state(config, mesh), []
    for phase in range(len(config.phases)):
        step, batches, times = compile_train_step(config, phase, 1, mesh), _batches(config, data, phase), []
        for _ in range(FIRST + TIMED):
            batch = next(batches)
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - began)
        medians.append(statistics.median(times[FIRST:]))
    return medians


def within(config: CharLMExperiment, seconds: float, step_seconds: Sequence[float]) -> CharLMExperiment:
    """With the steps of all phases longer or shorter by one factor, so that together they take so many seconds."""
    whole = sum(phase.steps * each for phase, each in zip(config.phases, step_seconds, strict=True))

    def scaled(phase: Any) -> Any:
        return dataclasses.replace(phase, steps=max(round(phase.steps * seconds / whole), 1))

    return phases(scaled)(config)


def trained_and_scored(config: CharLMExperiment) -> dict[str, Any]:
    """Bits per character of all of validation after training, and the seconds of all steps."""
    mesh, data = make_mesh(config.mesh), config.load_data()
    state, spent = init_state(config, mesh), 0.0
    for phase, settings in enumerate(config.phases):
        step, batches = compile_train_step(config, phase, 1, mesh), _batches(config, data, phase)
        began = time.perf_counter()
        for _ in range(settings.steps):
            state, _metrics = step(state, next(batches))
        jax.block_until_ready(state)
        spent += time.perf_counter() - began
    score = BitsPerCharacter()
    model = config.model_in_phase(len(config.phases) - 1)
    for scored in score_stream(model, state["params"], data.split("validation")):
        score.add(np.asarray(scored.nats))
    return {"bpc": round(score.value, 4), "seconds": round(spent, 1), "steps": [p.steps for p in config.phases]}


def _batches(config: CharLMExperiment, data: Any, phase: int) -> Any:
    """As a step takes them, with all of the batch in one part."""
    batches = config.train_batches(data, phase, start_step=0, process_index=0, process_count=1)
    return (batch[None] for batch in batches)


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each change, the best first: mean, deviation, difference to the recipe and steps in the same time."""
    by_change: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_change.setdefault(record["change"], []).append(record)
    means = {change: statistics.mean(r["bpc"] for r in found) for change, found in by_change.items()}
    lines = ["| | BPC | deviation | change | seeds | steps |", "|---|---|---|---|---|---|"]
    for change in sorted(means, key=lambda change: (change != UNCHANGED, means[change])):
        found = by_change[change]
        deviation = f"{statistics.stdev(r['bpc'] for r in found):.3f}" if len(found) > 1 else ""
        difference = "" if change == UNCHANGED else f"{means[change] - means.get(UNCHANGED, math.nan):+.3f}"
        steps = " + ".join(f"{n:,}" for n in found[0]["steps"])
        lines.append(f"| {change} | {means[change]:.3f} | {deviation} | {difference} | {len(found)} | {steps} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path)
    parser.add_argument("changes", nargs="*", default=[UNCHANGED, *CHANGES], help=f"of {', '.join(CHANGES)}")
    parser.add_argument("--text", type=Path, help="another text than Shakespeare")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if unknown := sorted({*options.changes} - {UNCHANGED, *CHANGES}):
        parser.error(f"change is {unknown[0]!r}; expected one of {', '.join([UNCHANGED, *CHANGES])}")
    text = options.text.name if options.text else "shakespeare"
    setting = {"text": text, "budget": options.seconds}
    lines = options.journal.read_text().splitlines() if options.journal.exists() else []
    records = [json.loads(line) for line in lines]
    for change in options.changes:
        start = CHANGES.get(change, lambda config: config)(recipe(DataConfig(path=options.text and str(options.text))))
        times = None
        for seed in range(options.seeds):
            trial = setting | {"change": change, "seed": seed}
            if any(trial.items() <= record.items() for record in records):
                continue
            times = times or seconds_a_step(start)
            config = dataclasses.replace(within(start, options.seconds, times), seed=seed)
            machine = {"cpu": cpu_model(), "threads": len(os.sched_getaffinity(0)), "jax": jax.__version__}
            records.append(trial | trained_and_scored(config) | machine)
            with options.journal.open("a") as journal:
                print(json.dumps(records[-1]), file=journal)
            print(json.dumps(records[-1]), file=sys.stderr)
    print(table([record for record in records if setting.items() <= record.items()]))


if __name__ == "__main__":
    main()
