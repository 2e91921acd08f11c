"""What takes seconds to load, such as JAX: a package's names, when they are asked for, and commands."""

import importlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any


def on_demand(package: str, modules: Sequence[str], names: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that loads a name with the first of its modules that has it."""

    def attribute(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in names:
            for module in modules:
                loaded = importlib.import_module(f"{package}.{module}")
                if hasattr(loaded, name):
                    return vars(importlib.import_module(package)).setdefault(name, getattr(loaded, name))
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


def run_command(module: str) -> None:
    """Loads a module and calls its `run`. A Ctrl-C that comes while it loads ends the process in one line, too."""
    previous = signal.signal(signal.SIGINT, _leave)
    run = importlib.import_module(module).run
    signal.signal(signal.SIGINT, previous)
    run()


def _leave(*_: object) -> None:
    os.write(2, b"error: interrupted\n")
    os._exit(130)
