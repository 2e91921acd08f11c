"""benchmarks/recipe.py: every change is one, and all have the same time."""

import dataclasses
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


def test_phases_share_the_seconds_as_in_the_recipe() -> None:
    first, *_, last = START.phases
    step_seconds = [0.05] * (len(START.phases) - 1) + [0.1]
    half, whole = (recipe.within(START, seconds, step_seconds) for seconds in (150, 300))
    spent = sum(phase.steps * each for phase, each in zip(whole.phases, step_seconds, strict=True))
    assert spent == pytest.approx(300, abs=0.2)
    assert whole.phases[0].steps == pytest.approx(2 * half.phases[0].steps, abs=2)
    assert whole.phases[0].steps / whole.phases[-1].steps == pytest.approx(first.steps / last.steps, rel=0.01)
    assert dataclasses.replace(whole, phases=START.phases) == START


def test_the_journal_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def train(config: Any) -> dict[str, Any]:
        trained.append(config)
        return {"bpc": 2 + config.seed + (config.optimizer != START.optimizer), "seconds": 1.0, "steps": [1000, 20]}

    monkeypatch.setattr(recipe, "trained_and_scored", train)
    monkeypatch.setattr(recipe, "seconds_a_step", lambda config: [0.1] * len(config.phases))
    other = recipe.optimizer(name="muon" if START.optimizer.name == "adamw" else "adamw")
    monkeypatch.setattr(recipe, "CHANGES", {"other": other})
    journal = tmp_path / "journal.jsonl"
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["recipe", str(journal), "--seeds=2", "--seconds=60"])
        recipe.main()
        table = capsys.readouterr().out
    assert [(config.optimizer.name, config.seed) for config in trained] == [
        *((START.optimizer.name, seed) for seed in (0, 1)),
        *((other(START).optimizer.name, seed) for seed in (0, 1)),
    ]
    assert len([json.loads(line) for line in journal.read_text().splitlines()]) == 4
    assert table.splitlines()[2:] == [
        "| recipe | 2.500 | 0.707 |  | 2 | 1,000 + 20 |",
        "| other | 3.500 | 0.707 | +1.000 | 2 | 1,000 + 20 |",
    ]
    monkeypatch.setattr(sys, "argv", ["recipe", str(journal), "SGD"])
    with pytest.raises(SystemExit):
        recipe.main()
    assert "change is 'SGD'; expected one of recipe, other" in capsys.readouterr().err
