"""A process that compiles and runs tasks one by one: `python -m benchmarks.gpu.worker TASKS JOURNAL`.

It writes a line of JSON to its journal when something begins and when it has ended, so that whoever looks at the
journal knows what has been found and what killed or holds the process. It has one thread, as times that are taken
beside compilations in the same process are wrong; other processes may compile meanwhile.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import OK, SKIPPED

# part -> a function of the task that compiles it and returns what is called for the record.
Prepare = Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]
# Imported when a task asks for it, as they take different things.
PARTS: dict[str, tuple[str, str]] = {
    "correctness": ("benchmarks.gpu.correctness", "prepare"),
    "same_bits": ("benchmarks.gpu.correctness", "prepare_same_bits"),
    "rates": ("benchmarks.gpu.device", "prepare_rates"),
    "speed": ("benchmarks.gpu.speed", "prepare"),
    "profile": ("benchmarks.gpu.speed", "prepare_once"),
    "memcheck": ("benchmarks.gpu.correctness", "prepare"),
    "training": ("benchmarks.gpu.training", "prepare"),
    "attention": ("benchmarks.gpu.training", "prepare_attention"),
    "sweep": ("benchmarks.gpu.sweep", "prepare"),
}
UNUSABLE = 75  # exit status: the device refuses all that follows


class Journal:
    """Lines of JSON in a file, on disk before anything else happens."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def work(
    tasks: list[dict[str, Any]],
    journal: Journal,
    lock: Path | None = None,
    *,
    timed: bool = False,
    autotuned: bool = False,
) -> int:
    """Goes through the tasks; returns the process's exit status.

    With a lock, one of `timed` is run while no other process with this lock runs one, timed or not, or compiles one if
    it is `autotuned`.
    """
    for number, task in enumerate(tasks):

        def locked(how: int, number: int = number) -> contextlib.AbstractContextManager[None]:
            if not lock:
                return contextlib.nullcontext()
            journal.write(task=number, state="waiting")
            return _locked(lock, how)

        with contextlib.ExitStack() as held:
            try:
                with locked(fcntl.LOCK_SH) if autotuned else contextlib.nullcontext():
                    journal.write(task=number, state="compiling")
                    run = _prepare(task)
                held.enter_context(locked(fcntl.LOCK_EX if timed else fcntl.LOCK_SH))
                journal.write(task=number, state="running")
                record = {"outcome": OK} | run()
            except ModuleNotFoundError as error:
                record = {"outcome": SKIPPED, "reason": f"not installed: {error.name or error}"}
            except NotImplementedError as error:
                record = {"outcome": SKIPPED, "reason": str(error)}
            except Exception as error:  # is what was to be found out
                record = {"outcome": "error", "reason": f"{type(error).__name__}: {error}"[:400]}
            usable = record["outcome"] != "error" or device_works()
            journal.write(task=number, record=record, usable=usable)
        if not usable:
            return UNUSABLE
    return 0


def _prepare(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    module, function = PARTS[task["part"]]
    return getattr(importlib.import_module(module), function)(task)


def device_works() -> bool:
    """Whether this process can use it still: after a kernel's access to memory that is not its own it never can."""
    import jax.numpy as jnp

    try:
        return int(jnp.arange(8).sum()) == 28
    except RuntimeError:  # all that JAX says of a device
        return False


@contextlib.contextmanager
def _locked(lock: Path, how: int) -> Iterator[None]:
    """While no other process has the lock, or none alone if `how` is LOCK_SH; it goes with the process.

    Who waits to be alone is let in before all that come later.
    """
    with lock.open("w") as file, lock.with_suffix(".turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(file, how)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)  # closing it would not do where another process has inherited it


def _end_with(supervisor: int) -> None:
    """A device that is still held when its supervisor is gone would be of no use to anyone."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(supervisor, 0)
            time.sleep(1)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--supervisor", type=int, required=True, help="the process without which this one ends")
    parser.add_argument("--lock", type=Path, help="held while a task runs, together with others that are not timed")
    parser.add_argument("--timed", action="store_true", help="nobody else's task runs while one does")
    parser.add_argument("--autotuned", action="store_true", help="nobody else's task runs while one is compiled")
    parser.add_argument("--warm", action="append", default=[], help="a package that tasks will import")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], help="a module that adds to what there is"
    )
    options = parser.parse_args()
    if not options.timed:
        os.nice(10)  # the host has to launch what is timed
    threading.Thread(target=_end_with, args=(options.supervisor,), daemon=True).start()
    tasks, journal = json.loads(options.tasks.read_text()), Journal(options.journal)

    from benchmarks.gpu.device import facts

    for name in options.modules:
        importlib.import_module(name)
    # Before the clock of its tasks starts.
    for name in {PARTS[task["part"]][0] for task in tasks if task["part"] in PARTS} | set(options.warm):
        with contextlib.suppress(ImportError):  # the tasks will say it
            importlib.import_module(name)
    journal.write(facts=facts())  # starts JAX and the device
    journal.write(ready=True)
    status = work(tasks, journal, options.lock, timed=options.timed, autotuned=options.autotuned)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a device that hangs would hold the interpreter


if __name__ == "__main__":
    main()
