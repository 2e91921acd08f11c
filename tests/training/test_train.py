"""Whole runs: the golden curve, going on after a stop, divergence, and what a run leaves behind."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import CharLM, load_char_lm, load_pretrained, save_pretrained
from longformer_jax.data import train_batches
from longformer_jax.errors import InputError
from longformer_jax.files import locked
from longformer_jax.training import (
    CharLMExperiment,
    DataConfig,
    DivergenceError,
    ExperimentConfig,
    MeshConfig,
    restore_params,
    train,
)
from longformer_jax.training.loop import _where_it_begins
from longformer_jax.training.metrics import read_metrics
from longformer_jax.training.preemption import StopRequest, end_if_stopped
from longformer_jax.training.selection import Selection
from longformer_jax.training.step import compile_train_step
from longformer_jax.training.validation import Validator
from tests.training.commands import checkpoints
from tests.training.tiny import CONFIG

GOLDEN = Path(__file__).parent / "golden_curve.json"


def digest(state: Any) -> str:
    """SHA-256 over the names and bytes of all tensors."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


def records(workdir: Path, *names: str) -> list[tuple]:
    return [tuple(record.get(name) for name in names) for record in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workdir of an uninterrupted run, and the digest of its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, digest(train(CONFIG, workdir))


def test_workdir(finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    expected = {"config.json", "data.json", "checkpoints", "metrics.jsonl", "curve.png", "model"}
    assert {path.name for path in workdir.iterdir()} - {"tensorboard"} == expected
    assert ExperimentConfig.load(workdir) == CONFIG
    assert checkpoints(workdir) == [15, 20]
    # Phase 1 has 12 steps of 8 x 32 characters, phase 2 has 8 of 8 x 48.
    assert records(workdir, "split", "step", "phase", "characters") == [
        ("train", 4, 1, 1024),
        ("train", 8, 1, 2048),
        ("validation", 10, 1, 2560),
        ("train", 12, 1, 3072),
        ("train", 16, 2, 4608),
        ("train", 20, 2, 6144),
        ("validation", 20, 2, 6144),
    ]


def test_golden_curve(finished: tuple[Path, str]) -> None:
    """After an intended change of the recipe or the model, delete the file and run this twice."""
    curve = [[step, bpc, norm or 0.0] for step, bpc, norm in records(finished[0], "step", "bpc", "grad_norm")]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
        pytest.fail(f"{GOLDEN} was missing and has been written")
    for ours, golden in zip(curve, json.loads(GOLDEN.read_text()), strict=True):
        assert ours == pytest.approx(golden, rel=2e-4)
    assert curve[-1][1] < curve[0][1] - 0.5


@pytest.mark.parametrize("stop", [12, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (5, 17))])
def test_going_on_gives_the_same_bits(
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int], None],
    stop: int,
) -> None:
    """Stopped in the first phase, between the two and in the second."""
    stop_after(stop)
    stopped = train(CONFIG, tmp_path)
    assert int(stopped["step"]) == stop
    assert not (tmp_path / "checkpoints" / "20").exists()
    if stop == 17:  # as an earlier, shorter end has left it
        (tmp_path / "model").mkdir()
        stop_after(1)
        train(CONFIG, tmp_path)
        assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    unbroken, expected = finished
    assert digest(train(CONFIG, tmp_path)) == expected
    # The log has every step once, too, but for intervals cut in two.
    ours, theirs = (set(records(workdir, "split", "step", "bpc")) for workdir in (tmp_path, unbroken))
    assert {record for record in theirs if record[0] == "validation" or stop % 4 == 0} <= ours
    steps = records(tmp_path, "split", "step")
    assert len(steps) == len(set(steps))


@pytest.mark.slow
def test_the_validation_that_ends_a_phase_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Callable[[int], None]
) -> None:
    """With that phase's windows and lengths, though the next one is to begin."""
    phases = tuple(dataclasses.replace(phase, steps=2) for phase in CONFIG.phases)
    config = dataclasses.replace(CONFIG, phases=phases, eval_interval=2)
    train(config, tmp_path / "unbroken")
    stop_after(2)
    train(config, tmp_path / "stopped")
    monkeypatch.undo()
    train(config, tmp_path / "stopped")
    ours, theirs = (records(tmp_path / name, "split", "step", "phase", "bpc") for name in ("stopped", "unbroken"))
    assert [record for record in ours if record[0] == "validation"] == [
        record for record in theirs if record[0] == "validation"
    ] and len(ours) >= 2


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """As `finished`, with validations of several batches, after steps 0, 7, 14 and 20."""
    workdir = tmp_path_factory.mktemp("validated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CharLMExperiment, "validates_first", True)
        return workdir, digest(train(dataclasses.replace(CONFIG, eval_interval=7, eval_sequences=20), workdir))


@pytest.mark.parametrize(
    ("validation", "batch", "step", "saved", "line"),
    [
        (2, 2, 7, [5, 7], "stopped and saved after step 7"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in [
                (1, 1, 0, [], "stopped before the first step"),
                (2, 5, 7, [5, 7], "stopped and saved after step 7"),
                (4, 1, 20, [15, 20], "stopped and saved after step 20"),
            ]
        ),
    ],
)
def test_a_validation_is_left_and_made_up(
    validated: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    validation: int,
    batch: int,
    step: int,
    saved: list[int],
    line: str,
) -> None:
    """Before the first step, at a step that is not saved otherwise, in its last batch, and after the last step."""
    unbroken, expected = validated
    run, config = tmp_path / "run", ExperimentConfig.load(unbroken)
    monkeypatch.setattr(CharLMExperiment, "validates_first", True)
    validate, calls, batches = Validator.__call__, itertools.count(1), []

    def told_to_stop(self: Validator, params: Any) -> dict[str, float]:
        evaluate = self._eval_step

        def tell(*arguments: Any) -> jax.Array:
            batches.append(arguments)
            if len(batches) == batch:
                signal.raise_signal(signal.SIGTERM)
            return evaluate(*arguments)

        if next(calls) == validation:
            self._eval_step = tell
        return validate(self, params)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "__call__", told_to_stop)
        assert int(train(config, run)["step"]) == step
    assert len(batches) == batch
    assert (step in {record[1] for record in records(run, "split", "step") if record[0] == "validation"}) == (
        batch == 5
    )
    assert f"{line}; the same command continues from there\n" in capsys.readouterr().out
    assert (checkpoints(run), (run / "model").exists()) == (saved, False)
    assert digest(train(config, run)) == expected
    ours, theirs = (records(workdir, "split", "step", "bpc") for workdir in (run, unbroken))
    assert [x for x in ours if x[0] == "validation"] == [x for x in theirs if x[0] == "validation"]
    assert (run / "model").exists()


def test_a_finished_run_has_nothing_left_to_do(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    workdir, expected = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert digest(train(CONFIG, workdir)) == expected
    assert (workdir / "metrics.jsonl").read_text() == before
    (line, _) = capsys.readouterr().out.splitlines()
    assert line.endswith(
        f"already finished with step 20; --config.init={workdir / 'model'} in another workdir begins with its model"
    )


def test_how_a_finished_run_can_go_on(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, warmup_steps=1))
    assert _where_it_begins(config, tmp_path, 20, Selection.of(config)) == (
        f"already finished with step 20; --config.phases[1].steps above 8 trains for longer, and "
        f"--config.init={tmp_path / 'model'} in another workdir begins with its model"
    )


@pytest.mark.slow
def test_settings_of_jax_do_not_change_a_run(finished: tuple[Path, str], tmp_path: Path) -> None:
    with (
        jax.enable_x64(True),
        jax.default_prng_impl("rbg"),
        jax.threefry_partitionable(False),
        jax.numpy_rank_promotion("raise"),
        jax.disable_jit(True),
    ):
        assert digest(train(CONFIG, tmp_path)) == finished[1]


def test_parameters_of_a_run(finished: tuple[Path, str]) -> None:
    assert restore_params(finished[0])["embed"]["embedding"].shape == (256, 16)


def test_the_model_of_a_run_goes_round_and_begins_another(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, _ = finished
    config, params = load_char_lm(workdir)
    assert config == CONFIG.model_in_phase(1)
    assert load_char_lm(workdir, step=15)[0] == config
    save_pretrained(tmp_path / "saved", config, params)
    tokens = jnp.arange(100)[None] % 256
    logits = CharLM(config).apply({"params": params}, tokens)
    for directory in (tmp_path / "saved", workdir / "model"):
        found, loaded = load_pretrained(directory, CharLM)
        assert found == config
        np.testing.assert_array_equal(CharLM(found).apply({"params": loaded}, tokens), logits)

    phase = dataclasses.replace(CONFIG.phases[1], steps=2)
    another = dataclasses.replace(CONFIG, init=str(tmp_path / "saved"), phases=(phase,))
    train(another, tmp_path / "run")
    ((began, bpc), *_) = records(tmp_path / "run", "step", "bpc")
    assert (began, bpc) == (0, records(workdir, "split", "step", "bpc")[-1][-1])
    output = capsys.readouterr().out
    assert (
        "validation is of the first 288 characters of 111,540, as 6 sequences that do not see each other; eval.py lets "
        "every character see what is before it\n"
    ) in output
    assert re.search(rf"\nvalidation bpc {bpc:.4f} before training, [\d.]+ after\n", output)
    assert "load_pretrained('" in output and "/run/model', CharLM) reads it\n" in output


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 4, "mlp_dim": 64}, "whose num_heads is 2; expected 4, model.num_heads"),
        ({"position_dim": 8}, "whose position_dim is None; expected 8, model.position_dim"),
        ({"positions": "rotary"}, "whose positions is 'transformer_xl'; expected 'rotary', model.positions"),
        ({"dilations": (1, 1)}, "whose dilations is (1, 2); expected (1, 1), model.dilations"),
        ({"qk_norm": True}, "whose qk_norm is False; expected True, model.qk_norm"),
    ],
)
def test_another_model_to_begin_with(finished: tuple[Path, str], fields: dict[str, Any], message: str) -> None:
    model = dataclasses.replace(CONFIG.model, **fields)
    config = dataclasses.replace(CONFIG, init=str(finished[0] / "model"), model=model)
    with pytest.raises(InputError, match=f"^init is '.*/model', {re.escape(message)}$"):
        config.load_data()


def test_a_workdir_is_no_model_to_begin_with(finished: tuple[Path, str], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, init=str(finished[0]))
    with pytest.raises(InputError, match=r"^init is .* is of a run; expected that of a model, such as '.*/model'$"):
        train(config, tmp_path / "run")
    # What may differ: the width of the sinusoid under its other name, windows, and what drops out.
    model = dataclasses.replace(CONFIG.model, position_dim=16, dropout_rate=0.0)
    dataclasses.replace(CONFIG, init=str(finished[0] / "model"), model=model).load_data()


def test_another_experiment_in_the_same_workdir(finished: tuple[Path, str]) -> None:
    with pytest.raises(InputError, match=r"^the workdir holds a run of another .*: seed \(0, now 1\) changed"):
        train(dataclasses.replace(CONFIG, seed=1), finished[0])


def test_bad_input_before_anything_is_written(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    for config, message in (
        (dataclasses.replace(CONFIG, mesh=MeshConfig(data=3)), "^mesh is data=3"),
        (dataclasses.replace(CONFIG, data=DataConfig(path=str(tmp_path / "none"))), "missing; expected a file"),
        (dataclasses.replace(CONFIG, data=DataConfig(source="enwik9")), "^data: source is 'enwik9'"),
        (
            dataclasses.replace(CONFIG, data=DataConfig(path=__file__, split=(0.9, 0.0, 0.1))),
            r"^data\.split is \(0\.9, 0\.0, 0\.1\), which leaves test_train\.py without validation; expected a",
        ),
    ):
        with pytest.raises(InputError, match=message):
            train(config, workdir)
        assert not workdir.exists()
    workdir.write_text("")
    with pytest.raises(InputError, match=r"^workdir is '.*/run', which is a file; expected a directory$"):
        train(CONFIG, workdir)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", "directory"),
        ("metrics.jsonl", "pipe"),
        ("curve.png", "directory"),
        ("checkpoints", "file"),
        ("checkpoints", "pipe"),
        ("model", "file"),
    ],
)
def test_things_of_another_kind_in_the_workdir(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    {"directory": Path.mkdir, "file": Path.touch, "pipe": os.mkfifo}[kind](path)
    expected = "directory" if name in ("checkpoints", "model") else "file"
    with pytest.raises(InputError, match=rf"^'.*/{name}' is there, but is no {expected}; expected a {expected}$"):
        train(CONFIG, tmp_path)


@pytest.mark.parametrize("lost", ["directory", "content", "steps"])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(
    finished: tuple[Path, str], tmp_path: Path, lost: str
) -> None:
    workdir, config = Path(shutil.copytree(finished[0], tmp_path / "run")), CONFIG
    for path in (workdir / "checkpoints").glob("[0-9]*"):
        shutil.rmtree(path)
    if lost != "steps":
        shutil.rmtree(workdir / "checkpoints")
    if lost == "content":
        (workdir / "checkpoints").mkdir()
    if lost == "steps":  # as of a run that was stopped long before its first checkpoint was due
        config = dataclasses.replace(CONFIG, checkpoint_interval=1000, phases=(*CONFIG.phases, CONFIG.phases[1]))
        config.save(workdir)
    before = (workdir / "metrics.jsonl").read_bytes()
    message = (
        r"^workdir is '.*/run', whose metrics\.jsonl goes to step 20, but without a checkpoint to go on from; expected "
        r"its checkpoints, or another directory \(to begin anew in it, remove metrics\.jsonl\)$"
    )
    with pytest.raises(InputError, match=message):
        train(config, workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_same_workdir(finished: tuple[Path, str]) -> None:
    with locked("workdir", finished[0]), pytest.raises(InputError, match=r"^workdir is '.*', which is in use by proc"):
        train(CONFIG, finished[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_stop(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.after_step()
        signal.raise_signal(number)
        assert stop.after_step()
        with StopRequest() as within:
            assert within.after_step()
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_what_is_computed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for several processes, of which one would not know what the others do."""

    def compute(*signals: int) -> str:
        for each in signals:
            signal.raise_signal(each)
        end_if_stopped()
        return "done"

    with StopRequest() as stop:
        assert stop.unless_stopped(compute) == "done"
        assert stop.unless_stopped(lambda: compute(number)) is None
        assert stop.after_step()
        assert stop.unless_stopped(lambda: "done") is None
        assert compute() == "done"
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with StopRequest() as stop:
        stop._received = True
        assert stop.unless_stopped(compute) == "done"


def test_a_handler_that_is_none_of_pythons_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with StopRequest():
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_text_with_too_many_windows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "text").open("wb") as file:
        file.truncate(5 * 2**30)  # a hole: hashing it would take a quarter of a minute
    config = dataclasses.replace(CONFIG, data=DataConfig(path=str(tmp_path / "text"), split=(0.9, 0.05, 0.05)))
    with pytest.raises(InputError, match=r"^data is text, whose train split has 4,831,838,176 windows; expected fewer"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_keeps_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 11 diverges: its checkpoint, due at step 15, is not written, and that of step 10 stays."""

    def compile_and_poison(*arguments: Any) -> Any:
        train_step = compile_train_step(*arguments)

        def poisoned(state: Any, batch: jax.Array) -> Any:
            state, metrics = train_step(state, batch)
            with jax.transfer_guard("allow"):
                return state, metrics | {"loss": metrics["loss"] / (state["step"] != 11)}

        return poisoned

    monkeypatch.setattr("longformer_jax.training.loop.compile_train_step", compile_and_poison)
    message = r"^loss is inf at step 11 in phase 1, first in .*; checkpoint 10 in .* is the last good one; in another "
    with pytest.raises(DivergenceError, match=message):
        train(CONFIG, tmp_path)
    assert checkpoints(tmp_path) == [5, 10]
    assert max(record[0] for record in records(tmp_path, "step")) == 10


@pytest.mark.slow
def test_a_learning_rate_that_diverges(tmp_path: Path) -> None:
    phase = dataclasses.replace(CONFIG.phases[0], learning_rate=1e38)
    config = dataclasses.replace(CONFIG, phases=(phase,), checkpoint_interval=1, eval_interval=0)
    message = r"^(loss|grad_norm) is (nan|inf) at step \d+ in phase 1, first in the .*; .* is the last good one"
    with pytest.raises(DivergenceError, match=message):
        train(config, tmp_path)
    params = restore_params(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_data_of_a_step_do_not_depend_on_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(*arguments: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["sequence_length"], kwargs["start_step"], kwargs["seed"]))
        return train_batches(*arguments, **kwargs)

    monkeypatch.setattr("longformer_jax.training.char_lm.train_batches", recorded)
    train(CONFIG, tmp_path)
    assert seen == [(32, 0, 0), (48, 0, CONFIG.data_seed(1))]
    assert CONFIG.data_seed(1) not in (CONFIG.data_seed(0), CONFIG.data_seed(2))


def test_lines_and_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(dataclasses.replace(CONFIG, eval_interval=0), tmp_path, profile=True)
    output = capsys.readouterr()
    assert output.err == ""  # no progress bar where there is no terminal
    lines = output.out.splitlines()
    assert lines[0].startswith("9,024 parameters on tiny_shakespeare, 1 x cpu (data=1), from the beginning")
    assert any(line.startswith("step 4/20  phase 1  bpc ") and " char/s  eta 0:00:0" in line for line in lines)
    assert [line for line in lines if line.startswith("compiling")] == [
        "compiling phase 1 of 2",
        "compiling phase 2 of 2",
    ]
    assert not any("validation" in line for line in lines)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_the_profile_of_a_run_that_is_stopped(
    tmp_path: Path, stop_after: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(4)  # of the steps that are traced, the first
    train(dataclasses.replace(CONFIG, eval_interval=0), tmp_path, profile=True)
    assert f"wrote a trace of steps 4 to 4 to {tmp_path / 'profile'}" in capsys.readouterr().out


def test_utilisation_where_the_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longformer_jax.training.loop.peak_flops", lambda: 1e12)
    monkeypatch.setattr("longformer_jax.training.char_lm.training_flops_per_character", lambda *arguments: 1e6)
    train(dataclasses.replace(CONFIG, eval_interval=0), tmp_path)
    for rate, mfu in records(tmp_path, "characters_per_second", "mfu"):
        assert math.isclose(mfu, rate * 1e-6)
