"""What each part of the recipe of a small character model is worth: one change at a time, in the same time.

    python -m benchmarks.recipe JOURNAL [CHANGE …] [--text=FILE] [--seconds=300] [--seeds=3]

The recipe is the quickstart's. Each change is trained on two threads, or one (`taskset -c 0 python …`), for as many
steps as take the same time as the recipe's, of which the phases keep their proportions. Steps of both are timed in
turns before a change's first training; imports, compilation, validation and checkpoints do not count. Then validation
is scored, up to its first 40,000 characters, each with its full context. JOURNAL gets a line of JSON for every
training; those that it has, of the same configuration and text on the same processor, are not repeated. Prints the
means, deviations and differences as a table, with the seconds that training took in the end.

The text is the embedded Shakespeare, or FILE, of which, as in train.py, 90% train and the next 5% validate.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.side_by_side import cpu_model
from configs.char_lm.quickstart import get_config
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.evaluation.protocols import BitsPerCharacter, score_stream
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.settings import keep_compiled, pinned
from longformer_jax.training import CharLMExperiment, DataConfig
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import compile_train_step, init_state

UNCHANGED = "recipe"
ROUNDS, TIMED = 9, 3  # rounds of timing, and steps in each
THREADS = 2
SCORED = 40_000  # characters of validation, at most

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


def windows(change: Callable[[tuple[int, ...]], Sequence[int]]) -> Change:
    """Each phase's windows by a function of them."""
    return phases(lambda phase: dataclasses.replace(phase, windows=tuple(change(phase.windows))))


def layers(count: int, **fields: Any) -> Change:
    """So many layers, and other fields of the model; the windows grow as before."""

    def stretched(per_layer: Sequence[int]) -> tuple[int, ...]:
        return tuple(per_layer[i * len(per_layer) // count] for i in range(count - 1)) + (per_layer[-1],)

    def change(config: CharLMExperiment) -> CharLMExperiment:
        own: dict[str, Any] = {name: stretched(getattr(config.model, name)) for name in ("windows", "dilations")}
        model = dataclasses.replace(config.model, num_layers=count, **own, **fields)
        grown = tuple(dataclasses.replace(phase, windows=stretched(phase.windows)) for phase in config.phases)
        return dataclasses.replace(config, model=model, phases=grown)

    return change


CHANGES: dict[str, Change] = {
    "AdamW": optimizer(name="adamw"),
    "GELU": model(activation="gelu_new"),
    "decay to a tenth": optimizer(final_fraction=0.1),
    "weight decay 0.1": optimizer(weight_decay=0.1),
    "weight decay 0.6": optimizer(weight_decay=0.6),
    "dropout 0.1": model(dropout_rate=0.1),
    "QK-norm": model(qk_norm=True),
    "logits capped at 15": model(logit_softcap=15.0),
    "one decay over both phases": lambda config: phases(
        lambda phase: dataclasses.replace(phase, learning_rate=config.phases[0].learning_rate)
    )(optimizer(decay="constant", cooldown_fraction=0.9)(config)),
    "batches half as large": phases(lambda phase: dataclasses.replace(phase, batch_size=phase.batch_size // 2)),
    "batches twice as large": phases(lambda phase: dataclasses.replace(phase, batch_size=phase.batch_size * 2)),
    "sequences half as long": phases(
        lambda phase: dataclasses.replace(
            phase, sequence_length=phase.sequence_length // 2, batch_size=phase.batch_size * 2
        )
    ),
    "windows half as wide": windows(lambda each: [window // 2 for window in each]),
    "windows twice as wide": windows(lambda each: [2 * window for window in each]),
    "one window for all layers": windows(lambda each: [round(statistics.fmean(each))] * len(each)),
    "no dilation": model(dilations=1),
    "4 layers of 160": layers(4, embed_dim=160, mlp_dim=640),
    "8 layers": layers(8),
    "the first phase alone": lambda config: dataclasses.replace(config, phases=config.phases[:1]),
    "the last phase alone": lambda config: dataclasses.replace(config, phases=config.phases[1:]),
}


def recipe(data: DataConfig) -> CharLMExperiment:
    """The quickstart, of a text."""
    return dataclasses.replace(CharLMExperiment.from_config_dict(get_config()), data=data)


def step_seconds(*configs: CharLMExperiment) -> list[list[float]]:
    """Of each configuration's phases, as training runs them.

    Medians of rounds in which all take a few steps in turns: a machine that others share is faster now than a minute
    ago, but not for one of them alone.
    """
    runs = [[_timed(config, phase) for phase in range(len(config.phases))] for config in configs]
    rounds = [[[run() for run in phases] for phases in runs] for _ in range(1 + ROUNDS)][1:]  # the first is slow
    return [
        [statistics.median(found[i][phase] for found in rounds) for phase in range(len(phases))]
        for i, phases in enumerate(runs)
    ]


def _timed(config: CharLMExperiment, phase: int) -> Callable[[], float]:
    """What takes a few steps of a phase, and returns the seconds of one."""
    mesh, data = make_mesh(config.mesh), config.load_data()
    state, step = init_state(config, mesh), compile_train_step(config, phase, 1, mesh)
    batches = _batches(config, data, phase)

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for batch in itertools.islice(batches, TIMED):
            state, _metrics = step(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) / TIMED

    return run


def duration(config: CharLMExperiment, step_seconds: Sequence[float]) -> float:
    """Seconds of all steps."""
    return sum(phase.steps * each for phase, each in zip(config.phases, step_seconds, strict=True))


def within(config: CharLMExperiment, seconds: float, step_seconds: Sequence[float]) -> CharLMExperiment:
    """With the steps of all phases longer or shorter by one factor, so that together they take so many seconds."""
    factor = seconds / duration(config, step_seconds)
    return phases(lambda phase: dataclasses.replace(phase, steps=max(round(phase.steps * factor), 1)))(config)


def trained_and_scored(config: CharLMExperiment, characters: int) -> dict[str, Any]:
    """Bits per character of the first so many of validation after training, None if it has diverged; the seconds of all
    steps."""
    mesh, data = make_mesh(config.mesh), config.load_data()
    state, spent = init_state(config, mesh), 0.0
    for phase, settings in enumerate(config.phases):
        step, batches = compile_train_step(config, phase, 1, mesh), _batches(config, data, phase)
        began = time.perf_counter()
        for batch in itertools.islice(batches, settings.steps):
            state, _metrics = step(state, batch)
        jax.block_until_ready(state)
        spent += time.perf_counter() - began
    score = BitsPerCharacter()
    model = config.model_in_phase(len(config.phases) - 1)
    for scored in score_stream(model, state["params"], data.split("validation")[:characters]):
        score.add(np.asarray(scored.nats))
    bpc = round(score.value, 4) if math.isfinite(score.value) else None
    return {"bpc": bpc, "seconds": round(spent, 1), "steps": [p.steps for p in config.phases]}


def _batches(config: CharLMExperiment, data: Any, phase: int) -> Any:
    """As a phase's steps take them, with all of the batch in one part."""
    batches = config.train_batches(data, phase, start_step=0, process_index=0, process_count=1)
    return (batch[None] for batch in batches)


def digest(config: CharLMExperiment) -> str:
    """Of the configuration and its text, whatever the steps and the seed."""
    same = dataclasses.replace(within(config, 1, [1] * len(config.phases)), seed=0, data=DataConfig())
    values = same.to_config_dict().to_json(sort_keys=True) + config.load_data().fingerprint
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row for each change, the best first: mean, deviation, difference to the recipe, mean seconds and steps."""
    by_change: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_change.setdefault(record["change"], []).append(record)
    means = {}
    for change, found in by_change.items():
        scores = [math.inf if record["bpc"] is None else record["bpc"] for record in found]
        means[change] = statistics.fmean(scores)
    lines = ["| | BPC | deviation | change | seeds | seconds | steps |", "|---|---|---|---|---|---|---|"]
    for change in sorted(means, key=lambda change: (change != UNCHANGED, means[change])):
        found, mean = by_change[change], means[change]
        has_deviation = len(found) > 1 and math.isfinite(mean)
        deviation = f"{statistics.stdev(record['bpc'] for record in found):.3f}" if has_deviation else ""
        difference = "" if change == UNCHANGED else f"{mean - means.get(UNCHANGED, math.nan):+.3f}"
        seconds = statistics.fmean(record["seconds"] for record in found)
        steps = zip(*(record["steps"] for record in found), strict=True)
        steps = " + ".join(f"{statistics.fmean(phase):,.0f}" for phase in steps)
        lines.append(f"| {change} | {mean:.3f} | {deviation} | {difference} | {len(found)} | {seconds:.0f} | {steps} |")
    return "\n".join(lines)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The trainings that it has; the last line may have been written by half."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            print(f"{path}: left out, as it is no JSON: {line:.60}", file=sys.stderr)
    return records


@pinned()
def run(journal: Path, changes: Sequence[str], data: DataConfig, seconds: float, seeds: int) -> list[dict[str, Any]]:
    """All trainings, those that the journal has and those that it had not."""
    machine = {"cpu": cpu_model(), "threads": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    records, wanted = read_journal(journal), []
    starts = {change: CHANGES.get(change, lambda config: config)(recipe(data)) for change in (UNCHANGED, *changes)}
    settings = {change: {"budget": seconds, "of": digest(start)} | machine for change, start in starts.items()}

    def find(trial: dict[str, Any]) -> dict[str, Any] | None:
        return next((record for record in records if trial.items() <= record.items()), None)

    @functools.cache
    def configured(change: str) -> CharLMExperiment:
        """With the steps that the time allows; as many as before, if the journal has a training of the change."""
        start = starts[change]
        if found := find({"change": change} | settings[change]):
            steps = zip(start.phases, found["steps"], strict=True)
            return dataclasses.replace(start, phases=tuple(dataclasses.replace(p, steps=n) for p, n in steps))
        if change == UNCHANGED:
            return within(start, seconds, *step_seconds(start))
        unchanged = configured(UNCHANGED)
        base, own = step_seconds(unchanged, start)
        return within(start, duration(unchanged, base), own)

    for seed in range(seeds):
        for change in dict.fromkeys(changes):
            trial = {"change": change, "seed": seed} | settings[change]
            if (found := find(trial)) is None:
                config = dataclasses.replace(configured(change), seed=seed)
                found = trial | {"text": config.load_data().name, "date": datetime.now(UTC).date().isoformat()}
                found |= trained_and_scored(config, SCORED)
                with journal.open("a") as file:
                    print(json.dumps(found), file=file)
                print(json.dumps(found), file=sys.stderr)
            wanted.append(found)
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path)
    parser.add_argument("changes", nargs="*", help=f"of {', '.join([UNCHANGED, *CHANGES])}; all where none is given")
    parser.add_argument("--text", type=Path, help="another text than Shakespeare")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_intermixed_args()
    changes = options.changes or [UNCHANGED, *CHANGES]
    if unknown := sorted({*changes} - {UNCHANGED, *CHANGES}):
        parser.error(f"change is {unknown[0]!r}; expected one of {', '.join([UNCHANGED, *CHANGES])}")
    if not 0 < options.seconds < math.inf:
        parser.error(f"--seconds is {options.seconds}; expected a positive number")
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; expected at least 1")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    reuse_freed_memory()  # these two as train.py
    keep_compiled()
    with one_line_for_errors():
        options.journal.parent.mkdir(parents=True, exist_ok=True)
        options.journal.open("a").close()  # before any training
        data = DataConfig(path=None if options.text is None else str(options.text))
        print(table(run(options.journal, changes, data, options.seconds, options.seeds)))


if __name__ == "__main__":
    main()
