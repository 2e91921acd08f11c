"""benchmarks/recipe.py: every change is one, and all have the same time."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipe
from longformer_jax.training import DataConfig

START = recipe.recipe(DataConfig())


@pytest.mark.parametrize("change", recipe.CHANGES)
def test_a_change_is_valid_and_changes_something(change: str) -> None:
    assert recipe.CHANGES[change](START) != START


def test_phases_keep_their_proportions_of_the_steps() -> None:
    first, *_, last = START.phases
    step_seconds = [0.05] * (len(START.phases) - 1) + [0.1]
    half, whole = (recipe.within(START, seconds, step_seconds) for seconds in (150, 300))
    spent = sum(phase.steps * each for phase, each in zip(whole.phases, step_seconds, strict=True))
    assert spent == pytest.approx(300, abs=0.2)
    assert whole.phases[0].steps == pytest.approx(2 * half.phases[0].steps, abs=2)
    assert whole.phases[0].steps / whole.phases[-1].steps == pytest.approx(first.steps / last.steps, rel=0.01)
    assert dataclasses.replace(whole, phases=START.phases) == START


def test_a_change_has_the_time_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By steps timed beside its own, though the machine is slower now; what is in the journal is not timed again."""
    slower = iter((1.0, 3.0))

    def step_seconds(*configs: Any) -> list[list[float]]:
        machine = next(slower)
        costs = [2.0 if config.model.activation == "gelu_new" else 1.0 for config in configs]
        return [[0.1 * machine * cost] * len(config.phases) for cost, config in zip(costs, configs, strict=True)]

    def train(config: Any, characters: int) -> dict[str, Any]:
        return {"bpc": 2.0, "seconds": 1.0, "steps": [phase.steps for phase in config.phases]}

    monkeypatch.setattr(recipe, "step_seconds", step_seconds)
    monkeypatch.setattr(recipe, "trained_and_scored", train)
    journal = tmp_path / "journal.jsonl"
    for seeds in (1, 2):
        records = recipe.run(journal, ["recipe", "GELU"], DataConfig(), seconds=60, seeds=seeds)
        for unchanged, changed in itertools.batched(records, 2):
            assert sum(unchanged["steps"]) == pytest.approx(600, abs=2)
            assert sum(changed["steps"]) == pytest.approx(300, abs=2)


def test_the_journal_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting in ("reuse_freed_memory", "keep_compiled"):
        monkeypatch.setattr(recipe, setting, lambda: None)
    trained = []

    def train(config: Any, characters: int) -> dict[str, Any]:
        trained.append(config)
        return {"bpc": 2 + config.seed + (config.optimizer != START.optimizer), "seconds": 1.0, "steps": [1000, 20]}

    monkeypatch.setattr(recipe, "trained_and_scored", train)
    monkeypatch.setattr(recipe, "step_seconds", lambda *configs: [[0.1] * len(c.phases) for c in configs])
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    other = recipe.optimizer(name="muon" if START.optimizer.name == "adamw" else "adamw")
    monkeypatch.setattr(recipe, "CHANGES", {"other": other})
    journal = tmp_path / "results" / "journal.jsonl"

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["recipe", str(journal), *arguments])
        recipe.main()
        return capsys.readouterr().out

    for _ in range(2):
        table = run("--seeds=2", "--seconds=60")
    assert [(config.optimizer.name, config.seed) for config in trained] == [
        (config.optimizer.name, seed) for seed in (0, 1) for config in (START, other(START))
    ]
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4
    assert table.splitlines()[2:] == [
        "| recipe | 2.500 | 0.707 |  | 2 | 1 | 1,000 + 20 |",
        "| other | 3.500 | 0.707 | +1.000 | 2 | 1 | 1,000 + 20 |",
    ]
    # What is another recipe by the same name, another text or half a line is no training of this one.
    journal.write_text(journal.read_text() + '{"change": "rec')
    monkeypatch.setattr(recipe, "CHANGES", {"other": recipe.model(qk_norm=True)})
    assert run("--seeds=1", "--seconds=60", "other").splitlines()[2:] == [
        "| other | 2.000 |  | +nan | 1 | 1 | 1,000 + 20 |"
    ]
    assert len(trained) == 5
    (tmp_path / "shakespeare").write_text("To be or not. " * 9000)
    run("--seeds=1", "--seconds=60", f"--text={tmp_path / 'shakespeare'}", "recipe")
    assert len(trained) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SGD"], "change is 'SGD'; expected one of recipe, AdamW"),
        (["--seconds=nan", "AdamW"], "--seconds is nan; expected a positive number"),
        (["--seeds=0"], "--seeds is 0; expected at least 1"),
        (["--text=none.txt"], "path is 'none.txt', which is missing"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    for setting in ("reuse_freed_memory", "keep_compiled"):
        monkeypatch.setattr(recipe, setting, lambda: None)
    monkeypatch.setattr(sys, "argv", ["recipe", str(tmp_path / "journal"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        recipe.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_training_that_diverged_has_no_score() -> None:
    record = {"change": "recipe", "seconds": 1.0, "steps": [3]}
    records = [record | {"bpc": bpc} for bpc in (2.0, None)]
    assert recipe.table(records).splitlines()[2] == "| recipe | inf |  |  | 2 | 1 | 3 |"
