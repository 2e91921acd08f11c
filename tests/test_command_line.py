"""How the commands say what went wrong."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from longformer_jax.command_line import one_line_for_errors
from longformer_jax.errors import InputError


def in_a_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_outside_of_the_main_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """Which alone hears of signals."""
    statuses = []

    def command() -> None:
        try:
            with one_line_for_errors():
                raise InputError("x is 1; expected 2")
        except SystemExit as error:
            statuses.append(error.code)

    in_a_thread(command)
    assert statuses == [2] and capsys.readouterr().err == "error: x is 1; expected 2\n"


LATE = """
import asyncio
import tensorstore as ts
from longformer_jax.command_line import ignore_late_results
def come_late(error):
    (promise, future), loop = ts.Promise.new(), asyncio.new_event_loop()
    future.add_done_callback(error)
    async def wait():
        await future
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False
    promise.set_result(1)
def other(future):
    raise ValueError("another")
ignore_late_results()
come_late(other)
"""


def test_late_results_are_not_printed(run_python: Callable) -> None:
    """But everything else is that a callback raises."""
    result = run_python("-c", LATE)
    assert result.returncode == 0
    assert "ValueError: another" in result.stderr and "Event loop is closed" not in result.stderr
    assert "Event loop is closed" in run_python("-c", LATE.replace("ignore_late_results()\n", "")).stderr


INTERRUPTED_WHILE_LOADING = """
import importlib.abc, runpy, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jax":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
COMMANDS = {
    "longformer-train": "from longformer_jax.scripts import longformer_train; longformer_train()",
    "longformer-eval": "from longformer_jax.scripts import longformer_eval; longformer_eval()",
    "convert": "runpy.run_module('longformer_jax.weights.convert', run_name='__main__')",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_while_a_command_is_loaded(run_python: Callable, command: str) -> None:
    result = run_python("-c", INTERRUPTED_WHILE_LOADING + COMMANDS[command])
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


INTERRUPTED_BY_A_CONFIGURATION = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which pytest-xdist's children ignore
from longformer_jax.scripts import longformer_train
longformer_train()
"""


def test_an_interrupt_before_the_command_begins(run_python: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    arguments = f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"
    result = run_python("-c", INTERRUPTED_BY_A_CONFIGURATION, *arguments)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


WITHOUT_A_READER = """
from longformer_jax.command_line import one_line_for_errors
with one_line_for_errors():
    print("text", flush=True)
"""


@pytest.mark.parametrize(
    ("command", "status", "errors"),
    [
        (["eval.py", "--help"], -signal.SIGPIPE, ""),
        (["-c", WITHOUT_A_READER], 1, "error: what is printed has no reader any more (Broken pipe)\n"),
    ],
)
def test_output_that_nobody_reads(command: list[str], status: int, errors: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    root = Path(__file__).resolve().parents[1]
    ran = subprocess.run([sys.executable, *command], cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (status, errors)
