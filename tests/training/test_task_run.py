"""Whole runs of a task: what they report and leave, going on after a stop, the best checkpoint, seeds, answers."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import pkgutil
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from longformer_jax import ForSequenceClassification, InputError, load_pretrained, load_task
from longformer_jax.evaluation import evaluate, sample_text
from longformer_jax.scripts.predict import run as predict
from longformer_jax.tasks.metrics import accuracy, precision_recall_f1
from longformer_jax.training import ExperimentConfig, TaskExperiment, loop, restore_params, train, train_seeds
from longformer_jax.training.metrics import MetricsLog, read_metrics
from longformer_jax.training.seeds import mean_and_deviation
from longformer_jax.training.task import TaskValidator
from longformer_jax.training.workdir import restore_chosen
from longformer_jax.weights import load_tokenizer
from tests.tasks.sets import write_records
from tests.training.commands import checkpoints, free_port
from tests.training.tiny_task import STEPS, with_data


def digest(state: Any) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TaskExperiment:
    return with_data(tmp_path_factory.mktemp("task") / "data")


@pytest.fixture(scope="module")
def finished(config: TaskExperiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workdir of an uninterrupted run, and the digest of its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, digest(train(config, workdir))


def validations(workdir: Path) -> list[dict[str, Any]]:
    return [record for record in read_metrics(workdir / "metrics.jsonl") if record["split"] == "validation"]


def documents(config: TaskExperiment, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (Path(str(config.data.path)) / f"{split}.jsonl").read_text().splitlines()]


# ---- Training --------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(config: TaskExperiment, finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    names = {
        "config.json",
        "data.json",
        "tokenizer.json",
        "checksums.json",
        "checkpoints",
        "best",
        "metrics.jsonl",
        "curve.png",
        "model",
    }
    assert {path.name for path in workdir.iterdir()} - {"tensorboard"} == names
    assert ExperimentConfig.load(workdir) == config.completed(workdir)
    records = read_metrics(workdir / "metrics.jsonl")
    assert [(r["step"], r["rows"]) for r in records if r["split"] == "train"] == [(s, 8 * s) for s in range(3, 19, 3)]
    assert [r["step"] for r in validations(workdir)] == [STEPS, 2 * STEPS, 3 * STEPS]
    for record in validations(workdir):
        assert {"loss", "accuracy", "f1", "precision", "recall"} <= record.keys()


TWO_PROCESSES = """
import sys
from pathlib import Path
import jax
port, index, folder, workdir = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(index))
from longformer_jax.training import train
from tests.training.tiny_task import with_data
train(with_data(Path(folder)), workdir)
"""


@pytest.mark.slow
def test_two_processes_match_one(
    config: TaskExperiment, finished: tuple[Path, str], start_python: Callable, tmp_path: Path
) -> None:
    folder, port = str(config.data.path), free_port()
    both = [start_python("-c", TWO_PROCESSES, port, index, folder, tmp_path / "two") for index in (0, 1)]
    for process in both:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    one, two = (read_metrics(workdir / "metrics.jsonl") for workdir in (finished[0], tmp_path / "two"))
    assert [(r["split"], r["step"], r["rows"]) for r in one] == [(r["split"], r["step"], r["rows"]) for r in two]
    for expected, found in zip(one, two, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert validations(tmp_path / "two")[-1]["accuracy"] == validations(finished[0])[-1]["accuracy"]
    texts = [document["text"] for document in documents(config, "test")]
    scores = [[found["scores"]["good"] for found in load_task(run)(texts)] for run in (finished[0], tmp_path / "two")]
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_it_learns_and_keeps_the_best(config: TaskExperiment, finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    found = validations(workdir)
    best = max(found, key=lambda record: record["accuracy"])
    assert best["accuracy"] > 0.9
    step, params = restore_chosen(workdir)
    assert step == best["step"] and [path.name for path in (workdir / "best").iterdir()] == [str(step)]
    model, written = load_pretrained(workdir / "model", ForSequenceClassification)
    jax.tree.map(np.testing.assert_array_equal, written, params)
    if step in (2 * STEPS, 3 * STEPS):
        jax.tree.map(np.testing.assert_array_equal, params, restore_params(workdir, step))
    assert (model.id2label, model.num_labels) == (("bad", "good"), 2)
    values = json.loads((workdir / "model" / "config.json").read_text())
    assert values["label2id"] == {"bad": 0, "good": 1}
    assert load_tokenizer(workdir / "model").get_vocab() == config.tokenizer().get_vocab()


def test_going_on_gives_the_same_bits(
    config: TaskExperiment,
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int], None],
) -> None:
    """After a stop between validations, and at a step with one; the validation comes when the run goes on."""
    for start, stop in itertools.pairwise((0, 4, 2 * STEPS)):
        stop_after(stop - start)
        assert int(train(config, tmp_path)["step"]) == stop
        assert not (tmp_path / "model").exists()
        assert stop not in {record["step"] for record in validations(tmp_path)}
    monkeypatch.undo()
    assert digest(train(config, tmp_path)) == finished[1]
    assert validations(tmp_path) == validations(finished[0])
    for path in (finished[0] / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "broken", ["task.TaskValidator.__call__", pytest.param("loop.save_best", marks=pytest.mark.slow)]
)
def test_a_validation_that_breaks_off_is_made_again(
    config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """While the best parameters are saved for the first time, and while those of the last step are validated."""
    target, calls = f"longformer_jax.training.{broken}", itertools.count(1)
    real = pkgutil.resolve_name(target)

    def breaking(*arguments: Any) -> Any:
        if next(calls) == (1 if broken == "loop.save_best" else 3):
            raise OSError("no power")
        return real(*arguments)

    monkeypatch.setattr(target, breaking)
    with pytest.raises(OSError, match="no power"):
        train(config, tmp_path)
    assert len(validations(tmp_path)) == (0 if broken == "loop.save_best" else 2)
    monkeypatch.undo()
    assert digest(train(config, tmp_path)) == finished[1]
    assert validations(tmp_path) == validations(finished[0])
    for path in (finished[0] / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_best_is_the_logs_where_a_validation_broke_off(
    config: TaskExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step may be one that the run, as it goes on, does not validate after."""
    scores = itertools.chain((0.9, 1.0), itertools.repeat(0.5))
    monkeypatch.setattr(type(config.task), "score", lambda self, predictions, examples: {"accuracy": next(scores)})
    with monkeypatch.context() as broken:
        write = MetricsLog.write
        broken.setattr(
            MetricsLog,
            "write",
            lambda self, split, step, *rest: (
                1 / ((split, step) != ("validation", 4)) and write(self, split, step, *rest)
            ),
        )
        with pytest.raises(ZeroDivisionError):
            train(dataclasses.replace(config, evaluations_per_epoch=3), tmp_path)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"2", "4"}
    train(config, tmp_path)
    assert [record["step"] for record in validations(tmp_path)] == [2, STEPS, 2 * STEPS, 3 * STEPS]
    assert restore_chosen(tmp_path)[0] == 2 and [path.name for path in (tmp_path / "best").iterdir()] == ["2"]


def test_a_run_ends_when_it_gets_no_better(
    config: TaskExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the model of its best validation, and again when it is started again."""
    scores = iter((0.5, 0.9, 0.8, 0.9, 1.0))
    monkeypatch.setattr(type(config.task), "score", lambda self, predictions, examples: {"accuracy": next(scores)})
    patient = dataclasses.replace(config, patience=2, evaluations_per_epoch=3)
    state = train(patient, tmp_path)
    assert int(state["step"]) == 4 * 2
    output = capsys.readouterr().out
    assert "ended, as 2 validations were no better than that of step 4" in output
    assert "best validation accuracy 0.9000, after step 4" in output
    step, params = restore_chosen(tmp_path)
    assert step == 4
    model = (tmp_path / "model" / "model.safetensors").read_bytes()
    jax.tree.map(
        np.testing.assert_array_equal, load_pretrained(tmp_path / "model", ForSequenceClassification)[1], params
    )
    shutil.rmtree(tmp_path / "model")
    assert digest(train(patient, tmp_path)) == digest(state)
    assert "already ended after step 8; --config.patience above 2 trains for longer" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == model
    assert [record["step"] for record in validations(tmp_path)] == [2, 4, 6, 8]


def test_data_that_has_changed(config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path) -> None:
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    data = shutil.copytree(str(config.data.path), tmp_path / "moved")
    assert evaluate(workdir, data_path=str(data), split="validation").metrics["accuracy"] > 0.9
    write_records(data / "validation.jsonl", documents(config, "validation")[:5])
    for split in ("validation", "train"):
        with pytest.raises(InputError, match=r"^data is 45 of moved \(train\).*, which has changed since the run in '"):
            evaluate(workdir, data_path=str(data), split=split)
    write_records(data / "train.jsonl", documents(config, "train")[:9])  # fewer steps for as many epochs
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(data)))
    with pytest.raises(InputError, match=r"^data is 9 of moved \(train\).*, which has changed since the run in '"):
        train(moved, workdir)


@pytest.mark.slow
def test_a_validation_is_left_and_made_up(
    config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = TaskValidator.__call__

    def told_to_stop(self: TaskValidator, params: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return validate(self, params)

    with monkeypatch.context() as patch:
        patch.setattr(TaskValidator, "__call__", told_to_stop)
        assert int(train(config, tmp_path)["step"]) == STEPS  # of an epoch
    assert validations(tmp_path) == [] and checkpoints(tmp_path)
    workdir, expected = finished
    assert digest(train(config, tmp_path)) == expected
    scores = [[(r["step"], r["accuracy"]) for r in validations(run)] for run in (tmp_path, workdir)]
    assert scores[0] == scores[1]


def test_the_mean_of_what_is_not_finite() -> None:
    assert mean_and_deviation([1.0, math.nan]) == "nan ± nan (1.0000, nan)"
    assert mean_and_deviation([math.inf]) == "inf (inf)"


def test_seeds_that_are_none(config: TaskExperiment, tmp_path: Path) -> None:
    """Before the first of them is trained with."""
    with pytest.raises(InputError, match="^seed is 4294967296; expected"):
        train_seeds(dataclasses.replace(config, seed=2**32 - 1), tmp_path / "runs", 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["_open", "leave_model"])
def test_a_signal_before_and_after_the_steps_of_a_run_stops_them_all(
    config: TaskExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    (phase,) = config.phases
    short = dataclasses.replace(config, phases=(dataclasses.replace(phase, epochs=1),))
    real = getattr(loop, moment)

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, moment, interrupted)
    train_seeds(short, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["seed_0"]
    assert (tmp_path / "seed_0" / "model").exists() == (moment == "leave_model")
    assert checkpoints(tmp_path / "seed_0") == [STEPS if moment == "leave_model" else 1]


@pytest.mark.slow
def test_several_seeds(config: TaskExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (phase,) = config.phases
    short = dataclasses.replace(config, phases=(dataclasses.replace(phase, epochs=1),), seed=3)
    train_seeds(short, tmp_path, 2)
    last = capsys.readouterr().out.splitlines()[-1]
    best = [max(r["accuracy"] for r in validations(tmp_path / f"seed_{seed}")) for seed in (3, 4)]
    deviation = abs(best[0] - best[1]) / 2**0.5
    assert last == (
        f"best validation accuracy of 2 seeds: {sum(best) / 2:.4f} ± {deviation:.4f} ({best[0]:.4f}, {best[1]:.4f})"
    )
    result = evaluate(tmp_path, split="validation")
    assert [r.metrics["accuracy"] for r in result.results.values()] == best
    assert str(result).splitlines()[2] == last.replace("best validation ", "")
    with pytest.raises(InputError, match="^predictions is 'x', but '.*' holds several runs; expected one of them, suc"):
        evaluate(tmp_path, predictions="x")
    (tmp_path / "seed_9").mkdir()
    with pytest.raises(
        InputError, match="^workdir '.*' has seed_9 without the model of a run that has ended; expected"
    ):
        evaluate(tmp_path, split="validation")


# ---- Evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_has_the_figures_of_training(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    for record in validations(workdir)[1:]:  # whose checkpoints are there
        result = evaluate(workdir, split="validation", step=record["step"])
        assert result.metrics == pytest.approx({name: record[name] for name in result.metrics}, rel=1e-5)
    best = evaluate(workdir, split="validation")
    assert best.step == restore_chosen(workdir)[0]
    assert best.metrics["accuracy"] == max(record["accuracy"] for record in validations(workdir))


def test_predictions_and_scores_of_the_test(
    config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same from a split, a file of one's own, a function of texts, and the model that was exported."""
    workdir, out = finished[0], tmp_path / "out.jsonl"
    result = evaluate(workdir, predictions=out)
    assert result.split == "test" and str(result).startswith(f"test, step {result.step}: accuracy ")
    predictions = [json.loads(line) for line in out.read_text().splitlines()]
    expected = documents(config, "test")
    assert [p["id"] for p in predictions] == [d["id"] for d in expected]
    found, wanted = [p["label"] for p in predictions], [d["label"] for d in expected]
    assert result.metrics["accuracy"] == accuracy(found, wanted)
    assert result.metrics["f1"] == precision_recall_f1(found, wanted, "good")[2]

    again = evaluate(workdir, data=f"{config.data.path}/test.jsonl", predictions=tmp_path / "own.jsonl")
    assert (again.split, again.metrics) == ("test.jsonl", result.metrics)
    assert (tmp_path / "own.jsonl").read_text() == out.read_text()

    model = load_task(workdir)
    answers = model([document["text"] for document in expected])
    for answer, prediction in zip(answers, predictions, strict=True):
        assert {**answer, "id": prediction["id"]} == prediction
    assert model(expected[0]["text"])[0]["scores"] == predictions[0]["scores"]
    assert model([]) == []
    caplog.clear()
    model(["dog " * 40, "jam"])
    assert caplog.messages == ["1 of 2 documents cut at 32 tokens"]

    exported, params = load_pretrained(workdir / "model", ForSequenceClassification)
    ids = load_tokenizer(workdir / "model").encode(expected[0]["text"], add_special_tokens=False).ids[:30]
    apply = jax.jit(ForSequenceClassification(exported).apply)
    logits = apply({"params": params}, np.array([[0, *ids, 2]])).logits[0]
    scores = dict(zip(("bad", "good"), jax.nn.softmax(logits).tolist(), strict=True))
    assert predictions[0]["scores"] == pytest.approx(scores, abs=1e-4)
    assert evaluate(workdir, limit=4).what.startswith("4 of ")


def test_answers_without_labels(config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path) -> None:
    texts = [{"text": document["text"]} for document in documents(config, "test")]
    own = write_records(tmp_path / "own.jsonl", texts)
    result = evaluate(finished[0], data=str(own), predictions=tmp_path / "out")
    assert result.metrics == {} and "no labels to score" in str(result)
    assert len((tmp_path / "out").read_text().splitlines()) == len(texts)
    with pytest.raises(InputError, match="^data is '.*', which has no labels; expected labels, or --predictions=FILE "):
        evaluate(finished[0], data=str(own))
    write_records(own, [*texts, {"text": "a", "label": "good"}])
    with pytest.raises(InputError, match="^data is '.*', of which 10 of 11 have no label; expected labels in all of t"):
        evaluate(finished[0], data=str(own), predictions=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split is 'dev', which classification does not have; expected one of train, validation, te"),
        ({"protocol": "stream"}, "protocol is 'stream', but '.*' holds a task run; expected no options but data, data"),
        ({"data": "x.jsonl", "split": "test"}, "split is 'test', but data is 'x.jsonl'; expected one of them"),
        ({"data": "x.jsonl"}, "'x.jsonl' is no file; expected one with data"),
        ({"limit": 0}, "limit is 0; expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer >= 1"),
        ({"step": 7}, r"workdir is '.*', with checkpoints \[12, 18\]; expected checkpoint 7 in it"),
    ],
)
def test_evaluation_refuses(finished: tuple[Path, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(finished[0], **options)


def test_no_test_split(config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path) -> None:
    data = shutil.copytree(str(config.data.path), tmp_path / "data")
    (data / "test.jsonl").unlink()
    assert evaluate(finished[0], data_path=str(data)).split == "validation"
    with pytest.raises(InputError, match="^split is 'test', for which data.path '.*' has no file; expected test.jsonl"):
        evaluate(finished[0], data_path=str(data), split="test")
    with pytest.raises(InputError, match=r"^sample is 10, but '.*' holds a task run; expected a char_lm run$"):
        sample_text(finished[0], 10)


# ---- python -m longformer_jax.predict --------------------------------------------------------------------------------


def test_answers_on_the_command_line(
    config: TaskExperiment,
    finished: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_python: Callable,
) -> None:
    lines, expected = tmp_path / "lines.txt", load_task(finished[0])(["dog a\x85 \u2028\x0cthe", "jam"])
    lines.write_bytes("dog a\x85 \u2028\x0cthe\r\njam\n".encode())  # two lines, as for an editor

    def printed(*arguments: object) -> list[str]:
        predict(["--workdir", str(finished[0]), *map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    labels = [f"{answer['label']}\t{answer['scores'][answer['label']]:.4f}" for answer in expected]
    assert printed(lines) == labels
    answers = [json.loads(line) for line in printed("--json", lines)]
    assert [answer["scores"] for answer in answers] == [answer["scores"] for answer in expected]
    assert answers[1]["id"] == f"line 2 of {lines}" and answers[1]["characters"] == 3
    assert len(printed("--whole", lines)) == 1
    long = tmp_path / "long.txt"
    long.write_text("jam " * 100)
    predict(["--workdir", str(finished[0]), str(long)])
    assert capsys.readouterr().err == "1 of 1 documents cut at 32 tokens\n"
    assert capsys.readouterr().err == ""
    with pytest.raises(
        InputError, match="^task is 'classification', which answers no questions; expected documents wi"
    ):
        load_task(finished[0])({"question": "Is it?", "text": "jam"})
    with pytest.raises(SystemExit):
        printed(f"--html={tmp_path / 'page.html'}", lines)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: task is 'classification', whose answers are no passages of a text; expected no --html"
    own = write_records(tmp_path / "own.jsonl", [{"text": "jam"}])
    assert printed(own, lines, own) == [labels[1], *labels, labels[1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n\nb", "line 2 of .*: text is empty; expected a document"),
        ("", ".* is empty; expected a document in each line"),
        (b"a\xff", ".* is no UTF-8 at byte 1; expected text in UTF-8"),
        (None, "FILE is '.*', which is no file; expected one with documents, or -"),
    ],
)
def test_bad_documents_on_the_command_line(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stopped:
        predict(["--workdir", str(finished[0]), str(tmp_path / "file")])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.match(message, line.removeprefix("error: "))


@pytest.mark.slow
def test_the_commands(config: TaskExperiment, finished: tuple[Path, str], tmp_path: Path, run_python: Callable) -> None:
    """train.py, eval.py and predict of a task, on a configuration that comes with the library."""
    fields = [f"--config.data.{name}={getattr(config.data, name)}" for name in ("path", "cache_dir")]
    flags = [*fields, "--config.task.labels=bad,good", "--config.model.vocab_size=400", "--config.phases[0].epochs=1"]
    run = f"--workdir={tmp_path / 'run'}"
    trained = run_python("train.py", "--config=configs/tasks/classification.py:smoke", run, *flags)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1].endswith(f"load_task('{tmp_path / 'run'}') reads it")
    scored = run_python("eval.py", run, "--split=validation")
    assert scored.returncode == 0 and scored.stdout.startswith("validation, step 2: accuracy 0."), scored.stderr
    answered = run_python("-m", "longformer_jax.predict", run, Path(str(config.data.path)) / "test.jsonl")
    assert answered.returncode == 0 and len(answered.stdout.splitlines()) == 10, answered.stderr
