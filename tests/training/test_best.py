"""The best validation: what a run keeps of it, leaves as its model, and takes up again after it was killed."""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from longformer_jax import CharLM, load_char_lm, load_pretrained
from longformer_jax.errors import InputError
from longformer_jax.evaluation import evaluate
from longformer_jax.training import CharLMExperiment, DataConfig, restore_params, train
from longformer_jax.training.metrics import read_metrics
from longformer_jax.training.selection import Selection, remove_bests, save_best
from longformer_jax.training.sharding import put_batch
from longformer_jax.training.workdir import restore_chosen
from tests.training.tiny import CONFIG


def test_what_may_become_the_model() -> None:
    found = Selection("loss", largest=False)
    for step, loss in ((2, 3.0), (4, 2.0), (6, 2.5), (8, 1.0)):
        found.add(step, {"loss": loss})
    assert [found.needed(checkpoint) for checkpoint in (0, 3, 4, 7, 8, 9)] == [
        [2, 4, 8], [2, 4, 8], [4, 8], [4, 8], [8], [8],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_loses_its_patience_early_leaves_that_phases_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though it has later phases; and where there is no test text, validation is scored."""
    (tmp_path / "text").write_bytes(bytes(range(97, 107)) * 300)
    data = DataConfig(path=str(tmp_path / "text"), split=(0.9, 0.1, 0.0))
    phase = dataclasses.replace(CONFIG.phases[0], learning_rate=1.0)
    phases = (phase, CONFIG.phases[1])
    run = tmp_path / "run"
    train(dataclasses.replace(CONFIG, phases=phases, data=data, eval_interval=1, patience=1), run)
    assert "ended, as 1 validations were no better" in capsys.readouterr().out
    config, _ = load_pretrained(run / "model", CharLM)
    assert config == load_char_lm(run)[0] and config.windows == phase.windows
    assert evaluate(run, protocol="stream", limit=9).split == "validation"


def test_the_best_is_what_is_left_evaluated_and_read(tmp_path: Path) -> None:
    """And not the latest, which got worse, as the rate is far too high."""
    phase = dataclasses.replace(CONFIG.phases[0], steps=6, learning_rate=1.0)
    train(dataclasses.replace(CONFIG, phases=(phase,), eval_interval=1, keep_best=True), tmp_path)
    found = read_metrics(tmp_path / "metrics.jsonl")
    scores = {record["step"]: record["bpc"] for record in found if record["split"] == "validation"}
    best = min(scores, key=lambda step: scores[step])
    assert best < 6
    _, written = load_pretrained(tmp_path / "model", CharLM)
    jax.tree.map(np.testing.assert_array_equal, load_char_lm(tmp_path)[1], written)
    assert evaluate(tmp_path, split="validation", protocol="stream", limit=9).step == best
    assert evaluate(tmp_path, split="validation", protocol="stream", limit=9, step=6).step == 6
    (tmp_path / "best" / ".DS_Store").touch()
    params = load_char_lm(tmp_path)[1]
    save_best(tmp_path, 99, params)  # of a run that still trains
    remove_bests(tmp_path, [99])
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [".DS_Store", "99"]
    found = iter((best, 99, 99))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longformer_jax.training.workdir.find_best", lambda _: next(found))
        assert restore_chosen(tmp_path)[0] == 99  # the other has gone while it was read


def test_a_best_that_was_renamed_is_not_taken_for_that_step(tmp_path: Path) -> None:
    """Which may be of another phase, with other windows."""
    config = dataclasses.replace(CONFIG, keep_best=True)
    config.save(tmp_path)
    save_best(tmp_path, 4, config.init_params())
    assert load_char_lm(tmp_path)[0] == config.model_in_phase(0)
    renamed = (tmp_path / "best" / "4").rename(tmp_path / "best" / "20")
    message = r"^checkpoint '.*/best/20/params' is of step 4, and has been renamed; expected 4 as its name, not 20$"
    with pytest.raises(InputError, match=message):
        load_char_lm(tmp_path)
    sums = json.loads((renamed / "params" / "checksums.json").read_text())
    del sums["step"]  # as of an earlier version
    (renamed / "params" / "checksums.json").write_text(json.dumps(sums))
    assert load_char_lm(tmp_path)[0] == config.model_in_phase(1)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets validations find these bits per character, one after the other."""

    def script(*found: float) -> None:
        scores = iter(found)
        monkeypatch.setattr(CharLMExperiment, "validator", lambda *_: Scripted(scores))

    return script


@dataclasses.dataclass
class Scripted:
    scores: Iterator[float]
    sees: str = "nothing"

    def __call__(self, params: Any) -> dict[str, float]:
        return {"bpc": next(self.scores)}


@pytest.mark.slow
@pytest.mark.parametrize("start", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_the_best_of_steps_that_were_lost_is_not_the_model(
    start: int, scripted: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those after the latest checkpoint: a run that goes on with other settings may never have such parameters."""
    config = dataclasses.replace(CONFIG, eval_interval=1, keep_best=True, checkpoint_interval=2 if start else 5)
    scripted(3.0, 2.0, 1.0, 2.5)
    with monkeypatch.context() as power:
        calls = itertools.count(1)
        power.setattr("longformer_jax.training.loop.put_batch", lambda *x: 1 / (next(calls) < 4) and put_batch(*x))
        with pytest.raises(ZeroDivisionError):
            train(config, tmp_path)
    assert restore_chosen(tmp_path)[0] == 3
    kept = restore_params(tmp_path, start) if start else None
    train(dataclasses.replace(config, eval_interval=20), tmp_path)
    step, params = restore_chosen(tmp_path)
    assert step == (start or 20) and [path.name for path in (tmp_path / "best").iterdir()] == [str(step)]
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path / "model", CharLM)[1], params)
    if start:
        jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.slow
def test_a_best_that_is_gone(
    scripted: Callable[..., None], stop_after: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next takes its place; a run that has ended keeps its model and says what is missing."""
    config = dataclasses.replace(CONFIG, eval_interval=5, keep_best=True)
    scripted(1.0, 3.0, 2.0, 2.5)
    stop_after(7)
    train(config, tmp_path)
    shutil.rmtree(tmp_path / "best")
    stop_after(99)
    train(config, tmp_path)
    assert "the parameters of step 5, the best validation, are gone; the next is the best" in capsys.readouterr().out
    assert restore_chosen(tmp_path)[0] == 15
    shutil.rmtree(tmp_path / "best")
    model = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="which has no params; expected saved parameters in it"):
        train(config, tmp_path)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == model
