"""train.py as a user meets it: from the command line, and with signals."""

import dataclasses
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from longformer_jax.scripts.configurations import overrides
from longformer_jax.training import ExperimentConfig, OptimizerConfig, restore_params
from longformer_jax.training.metrics import read_metrics
from tests.training.commands import CONFIG_FLAG, LIMITED, checkpoints, read_until
from tests.training.tiny import CONFIG

ENDLESS = "--config.phases[1].steps=1000000"


@pytest.mark.slow
def test_from_the_command_line(run_python: Callable, tmp_path: Path) -> None:
    text, workdir = tmp_path / "text", tmp_path / "run"
    text.write_bytes(bytes(range(97, 107)) * 500)
    overrides = [f"--config.data.path={text}", "--config.phases[1].windows=3,5", "--config.optimizer.decay=cosine"]
    result = run_python("train.py", CONFIG_FLAG, f"--workdir={workdir}", *overrides)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2].startswith("step 20/20  phase 2  validation bpc ")
    assert "%" not in result.stderr  # no progress bar without a terminal
    config = ExperimentConfig.load(workdir)
    assert config.data.path == str(text)
    assert config.model_in_phase(1).windows == (3, 5)
    assert config.optimizer.decay == "cosine"
    assert restore_params(workdir).keys() == {"embed", "layers", "final_norm"}
    assert (workdir / "curve.png").stat().st_size > 1000
    # The same command has nothing left to do; another one is refused.
    again = run_python("train.py", CONFIG_FLAG, f"--workdir={workdir}", *overrides)
    assert (again.returncode, len(again.stdout.splitlines())) == (0, 2)
    other = run_python("train.py", CONFIG_FLAG, f"--workdir={workdir}", *overrides, "--config.seed=1")
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith(
        "error: the workdir holds a run of another configuration: seed (0, "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing; expected --config=FILE.py or --config=FILE.py:variant"),
        (
            ["--config=none.py"],
            "--config is 'none.py', which is no file; expected FILE.py, FILE.py:VARIANT, or in place",
        ),
        (["--config", "none"], "--config is 'none', which is no file; expected FILE.py, FILE.py:VARIANT, or in place"),
        ([CONFIG_FLAG], "--workdir is missing; expected --workdir=DIRECTORY"),
        ([CONFIG_FLAG, "--workdir="], "--workdir is missing; expected --workdir=DIRECTORY"),
        ([CONFIG_FLAG, "run"], "argument 'run' is not a flag; expected flags that begin with --"),
        ([CONFIG_FLAG, "--steps=1"], "Unknown command line flag 'steps'"),
        ([CONFIG_FLAG, "--config.sed=1"], "--config.sed=1 cannot be applied ("),
        ([CONFIG_FLAG, "--config.phases[2].steps=1"], "--config.phases[2].steps=1 cannot be applied ("),
        ([CONFIG_FLAG, "--config.seed=x"], "flag --config.seed=x: expected an integer"),
        ([CONFIG_FLAG, "--config.model.remat=yes"], "flag --config.model.remat=yes: expected true or false"),
        ([CONFIG_FLAG, "--config.phases[1].windows=1,2,3", "--workdir=w"], "phases[1].windows has 3 entries; expected"),
        (
            [CONFIG_FLAG, "--config.data.path=none", "--workdir=w"],
            "data: path is 'none', which is missing; expected a file",
        ),
        (["--config.seed=None", CONFIG_FLAG, "--workdir=w"], "seed is None; expected an integer"),
        (
            [CONFIG_FLAG, "--workdir=~nobody-of-that-name/x"],
            "workdir is '~nobody-of-that-name/x', whose user has no home",
        ),
        (
            [CONFIG_FLAG, "--workdir=w", "--config.model.vocab_size=9999999", "--config.model.embed_dim=9999990"],
            "model has 1,099,999,329,999,634 parameters, which take",
        ),
        ([f"{CONFIG_FLAG}:big"], f"flag {CONFIG_FLAG}:big: Error whilst parsing config file: TypeError: get_config() "),
        (["--config=configs/char_lm/enwik8_small.py:big"], "config variant is 'big'; expected none, or one of smoke"),
        (["--config=enwik8_small:big"], "config variant is 'big'; expected none, or one of smoke"),
    ],
)
def test_bad_input_takes_one_line(run_script: Callable, arguments: list[str], message: str) -> None:
    result = run_script("train.py", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_help_lists_the_fields_with_what_overrides_them(run_script: Callable) -> None:
    """Before the configuration as after it."""
    result = run_script("train.py", "--config.optimizer.clip_norm=None", "--help", CONFIG_FLAG, "--config.seed=3")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Trains a character language model, ") and len(lines) < 90
    fields = lines[lines.index("Fields of the configuration, each of which can be overridden:") + 1 :]
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(clip_norm=None), seed=3)
    assert fields == overrides(config.to_config_dict())
    assert {"--config.seed=3", "--config.data.path=None", "--config.phases[1].windows=8,16"} <= {*fields}


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_short(run_python: Callable, script: str) -> None:
    result = run_python(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--workdir=" in result.stdout and len(result.stdout.splitlines()) < 45


CONFIG_CALL = "from longformer_jax.models import CharLMConfig\ndef get_config():\n    return "


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def get_config(:", r"FILE cannot be read: /.*\.py, line 1, raises SyntaxError \(invalid syntax\)"),
        ("\0", r"FILE cannot be read: the file raises SyntaxError \(source code string cannot contain null bytes\)"),
        (
            "\nimport none",
            r"FILE cannot be read: /.*\.py, line 2, raises ModuleNotFoundError \(No module named 'none'\)",
        ),
        ("import json\njson.loads('{')", r"FILE cannot be read: /.*\.py, line 2, raises JSONDecodeError \(Expecting"),
        ("seed = 1", r"FILE has no get_config; expected a function of that name"),
        ("def get_config():\n    return 3", "config is 3; expected a ConfigDict"),
        (
            f"{CONFIG_CALL}seed",
            r"FILE cannot be read: /.*\.py, line 3, raises NameError \(name 'seed' is not defined\)",
        ),
        (f"{CONFIG_CALL}CharLMConfig(num_layers=0)", "num_layers is 0; expected an integer >= 1"),
        (f"{CONFIG_CALL}CharLMConfig(sizes=3)", r"FILE cannot be read: /.*\.py, line 3, raises TypeError \(CharLMCon"),
    ],
)
def test_what_is_wrong_in_a_configuration_takes_one_line(
    run_script: Callable, tmp_path: Path, program: str, message: str
) -> None:
    (tmp_path / "config.py").write_text(program)
    result = run_script("train.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert re.match(f"error: {message.replace('FILE', f'--config={tmp_path}/config.py')}", line), line


def test_a_bug_that_a_configuration_meets_keeps_its_traceback(run_python: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(
        "from longformer_jax.models import CharLMConfig, char_lm\nchar_lm.check_size = len\nCharLMConfig()"
    )
    result = run_python("train.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback ") and "TypeError: len() takes exactly one argument" in result.stderr


def test_what_another_program_left_is_not_overwritten(run_script: Callable, tmp_path: Path) -> None:
    for name, content, message in (
        ("config.json", '{"model_type": "roberta"}', "whose config.json is not of a run ("),
        ("curve.png", "precious", "which holds curve.png, but no config.json; expected a new directory"),
    ):
        workdir = tmp_path / f"of_{name}"
        workdir.mkdir()
        (workdir / name).write_text(content)
        result = run_script("train.py", CONFIG_FLAG, f"--workdir={workdir}")
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"error: workdir is '{workdir}', {message}")
        assert [(path.name, path.read_text()) for path in workdir.iterdir()] == [(name, content)]


def test_what_the_system_refuses_takes_one_line(run_script: Callable, tmp_path: Path) -> None:
    result = run_script("train.py", CONFIG_FLAG, f"--workdir={tmp_path / ('x' * 300)}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: '/") and line.endswith("cannot be read or written (File name too long)")


@pytest.mark.parametrize("command", [["train.py", CONFIG_FLAG], ["eval.py"]])
def test_a_device_that_is_not_there_takes_one_line(run_python: Callable, tmp_path: Path, command: list[str]) -> None:
    result = run_python(*command, f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS="nothing")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: JAX_PLATFORMS is 'nothing', but JAX has no such device here (Unable to initialize")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_divergence_exits_with_one(run_python: Callable, tmp_path: Path) -> None:
    rate = "--config.phases[0].learning_rate=1e38"
    result = run_python("train.py", CONFIG_FLAG, f"--workdir={tmp_path}", rate, "--config.checkpoint_interval=1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "is the last good one" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_sigterm_and_interrupt_save_and_exit_with_zero(start_python: Callable, tmp_path: Path) -> None:
    never = ["--config.checkpoint_interval=1000000", "--config.eval_interval=0"]
    command = ["train.py", CONFIG_FLAG, f"--workdir={tmp_path}", ENDLESS, *never]
    for number in (signal.SIGTERM, signal.SIGINT):
        with start_python(*command) as process:
            step = int(read_until(process, "step ").split()[1].split("/")[0].replace(",", ""))
            process.send_signal(number)
            output, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
        (saved,) = checkpoints(tmp_path)[-1:]
        assert saved >= step
        assert f"stopped and saved after step {saved:,}; the same command continues" in output
        assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == saved
        assert (tmp_path / "curve.png").exists()


ENDLESS_COMPUTATION = """
import jax
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.training.preemption import StopRequest
endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x < 4, lambda x: jax.numpy.sin(x) + 2, x))
with one_line_for_errors(), StopRequest():
    print("begins", flush=True)
    jax.block_until_ready(endless(1.0))
"""


def test_a_second_interrupt_ends_at_once(start_python: Callable) -> None:
    """In the middle of XLA's code, which no handler of Python's interrupts."""
    with start_python("-c", ENDLESS_COMPUTATION) as process:
        read_until(process, "begins")
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "error: interrupted\n")


@pytest.mark.slow
def test_what_the_system_refuses_a_run_takes_one_line(run_python: Callable, tmp_path: Path) -> None:
    command = ["train.py", CONFIG_FLAG, f"--workdir={tmp_path}"]
    result = run_python("-c", LIMITED, 30_000, *command, JAX_ENABLE_COMPILATION_CACHE="false")
    assert (result.returncode, checkpoints(tmp_path)) == (1, [])
    assert result.stderr == (
        f"error: '{tmp_path}/checkpoints/5' cannot be read or written (File too large; there is no checkpoint yet)\n"
    )


@pytest.mark.slow
def test_kill_loses_at_most_what_was_not_written(start_python: Callable, tmp_path: Path) -> None:
    interval = 20
    command = ["train.py", CONFIG_FLAG, f"--workdir={tmp_path}", ENDLESS, f"--config.checkpoint_interval={interval}"]
    lost_from = 0
    for _ in range(2):
        with start_python(*command) as process:
            start = read_until(process, "9,024 parameters")
            assert start.rstrip().endswith(f"after step {lost_from}" if lost_from else "from the beginning")
            read_until(process, f"step {lost_from + 5 * interval}/")
            process.kill()
            process.communicate()
        reached = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
        (*_, lost_from) = checkpoints(tmp_path)
        # The save of the last interval may have been under way; the one before it had to be complete by then.
        assert lost_from % interval == 0
        assert reached - 2 * interval <= lost_from <= reached + 2
        assert restore_params(tmp_path)["embed"]["embedding"].shape == (256, 16)
