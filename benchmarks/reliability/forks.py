"""A function in a process of its own, a fork of this one, which has loaded what takes seconds to load.

So this process must not have asked JAX for its devices.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import jax


class Fork:
    """Runs a function and ends, with the status that it exits with; a context manager that kills it."""

    def __init__(self, function: Callable[[], Any], output: Path, errors: Path) -> None:
        """Starts it; what it prints goes to two files."""
        self._status: int | None = None
        self._errors = errors
        with output.open("wb") as one, errors.open("wb") as two:
            self._process = os.fork()
            if self._process == 0:
                os.dup2(one.fileno(), 1)
                os.dup2(two.fileno(), 2)
                _end_with(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.poll() is None:
            self.send(signal.SIGKILL)
            self.wait()

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self._process, number)

    def poll(self) -> int | None:
        """The exit status, a negative number where a signal has ended it; None while it runs."""
        if self._status is None:
            found, status = os.waitpid(self._process, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if found else None
        return self._status

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None where it runs for longer."""
        end = None if seconds is None else time.monotonic() + seconds
        while self.poll() is None and (end is None or time.monotonic() < end):
            time.sleep(0.01)
        return self._status

    @property
    def errors(self) -> str:
        """What it has printed to standard error."""
        return self._errors.read_text(errors="replace")


def _end_with(function: Callable[[], Any]) -> None:
    """Ends this process after a function, as Python would after a program."""
    status: Any = 0
    try:
        function()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 70
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def run_train(arguments: Sequence[str], *, devices: int | None = None, programs: Path) -> None:
    """train.py in this process, with simulated devices and a directory for compiled programs."""
    from longformer_jax.scripts import train  # not above, as its flags are those of a process

    jax.config.update("jax_num_cpu_devices", devices or 1)
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(programs)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    sys.argv = ["train.py", *arguments]
    train.run()
