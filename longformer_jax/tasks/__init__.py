"""Tasks: from a data set's own files to its own metric. One file a task; base.py says what a task is."""

import importlib
from collections.abc import Mapping
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.tasks.base import Example, Field, Task

__all__ = ["TASKS", "Example", "Field", "Task", "find_task"]

# The tasks that come with the library, by their `kind`: module and class. Any other is "MODULE:CLASS".
TASKS = {
    "classification": ("longformer_jax.tasks.classification", "TextClassification"),
    "coreference": ("longformer_jax.tasks.coreference", "Coreference"),
    "hotpotqa": ("longformer_jax.tasks.hotpotqa", "HotpotQA"),
    "hyperpartisan": ("longformer_jax.tasks.hyperpartisan", "Hyperpartisan"),
    "imdb": ("longformer_jax.tasks.imdb", "Imdb"),
    "triviaqa": ("longformer_jax.tasks.triviaqa", "TriviaQA"),
    "wikihop": ("longformer_jax.tasks.wikihop", "WikiHop"),
}


def find_task(kind: Any) -> type[Task]:
    """The class of a kind of task.

    Args:
      kind: an entry of `TASKS`, or "MODULE:CLASS" of a module that Python can import.

    Raises:
      InputError: there is no such task.
    """
    expected = f"one of {', '.join(TASKS)}, or MODULE:CLASS of a module that can be imported"
    module, _, name = kind.partition(":") if isinstance(kind, str) and ":" in kind else ("", "", "")
    if kind in [*TASKS]:
        module, name = TASKS[kind]
    if not module or not name:
        raise InputError(f"task.kind is {kind!r}; expected {expected}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):  # the module is there, and imports one that is not
            raise
        found = None
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"task.kind is {kind!r}, which names no task; expected {expected}")
    return found


def build_task(values: Mapping[str, Any]) -> tuple[type[Task], dict[str, Any]]:
    """The class that a mapping's `kind` names, and the mapping."""
    if "kind" not in values:
        raise InputError(f"task.kind is missing; expected one of {', '.join(TASKS)}, or MODULE:CLASS")
    return find_task(values["kind"]), dict(values)
