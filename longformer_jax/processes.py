"""What the processes of a run agree on; with a single one, nothing is to be done.

They speak through the key-value store of JAX's coordination service, which needs no devices and waits as long as it has
to. When one of them has died, the service ends the others.
"""

import hashlib
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax._src.distributed import global_state  # all that is public is whether there is a service

from longformer_jax.errors import InputError

_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; another process may be preparing the data
_DISTRIBUTIONS = ("jax", "jaxlib", "flax", "grain", "numpy", "optax", "orbax-checkpoint")
_rounds = itertools.count()


class Agreed(Exception):
    """An error that all processes of a run raise alike, so that one of them can speak for all."""


class AgreedInputError(InputError, Agreed):
    """Bad input of one process, or of all of them together."""


class AgreedOSError(OSError, Agreed):
    """What the system refused one process."""


class ProcessError(RuntimeError, Agreed):
    """Another process of the run cannot go on, and says why."""


def check_same(values: Mapping[str, Any]) -> None:
    """Raises InputError in every process unless all call this with the same JSON values; it names some that differ."""
    if alone():
        return
    sentence = judged(dict(values), _difference)
    if sentence:
        raise AgreedInputError(sentence)


def _difference(everywhere: list[dict[str, Any]]) -> str | None:
    """What differs between the first process and another, in words."""
    first = everywhere[0]
    for process, other in enumerate(everywhere):
        names = [name for name in first | other if first.get(name) != other.get(name)]
        if names:
            shown = [f"{name} is {first.get(name)!r} and {other.get(name)!r}" for name in names[:3]]
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            return (
                f"processes 0 and {process} differ: {', '.join(shown)}{more}; expected the same in all processes of a "
                "run"
            )
    return None


@contextmanager
def together() -> Iterator[None]:
    """A block that fails in every process where it fails in one, instead of leaving the others to wait for it.

    Raises:
      InputError, OSError: the one of the first process that has raised such an error, in all of them.
      ProcessError: another process has raised anything else, which it raises here, too.
    """
    failure: Exception | None = None
    try:
        yield
    except Agreed:  # of a block in this one, of which the others have been told
        raise
    except Exception as error:
        failure = error
    if not alone():
        report = judged(_report(failure), _first_report)
        if report and (agreed := _agreed(*report)):
            raise agreed from failure
        if report and failure is None:
            raise ProcessError(f"process {report[0]} of the run cannot go on, and says why")
    if failure is not None:
        raise failure


def _report(failure: Exception | None) -> list[Any] | None:
    """What the others are to know of a failure, a JSON value."""
    if isinstance(failure, InputError):
        return ["input", str(failure)]
    if isinstance(failure, OSError):
        name = None if failure.filename is None else str(failure.filename)
        return ["system", failure.errno, failure.strerror or str(failure), name]
    return None if failure is None else ["bug"]


def _first_report(reports: list[list[Any] | None]) -> list[Any] | None:
    return next(([process, *report] for process, report in enumerate(reports) if report), None)


def _agreed(process: int, kind: str, *what: Any) -> Exception | None:
    """The error that all processes raise where one has reported a failure; None where that one alone can tell it."""
    if kind == "input":
        return AgreedInputError(f"process {process}: {what[0]}" if process else what[0])
    if kind == "system":
        number, reason, name = what
        return AgreedOSError(number, f"{reason}; in process {process}" if process else reason, name)
    return None


def from_first(value: Any) -> Any:
    """A JSON value of the first process, in all of them."""
    return value if alone() else judged(value, lambda values: values[0])


def versions() -> dict[str, str]:
    """What a run's numbers depend on, other than its configuration and its data: the programs."""
    found = {"version of python": ".".join(map(str, sys.version_info[:2]))}
    found |= {f"version of {name}": importlib.metadata.version(name) for name in _DISTRIBUTIONS}
    root = Path(__file__).parents[1]
    files = sorted(file for package in ("longformer_jax", "pallas_kernels") for file in (root / package).rglob("*.py"))
    code = (part for file in files for part in (file.relative_to(root).as_posix().encode(), file.read_bytes()))
    return found | {"code of longformer_jax": digest(code)}


def digest(parts: Iterable[bytes]) -> str:
    """The beginning of a SHA-256 of some parts."""
    sums = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(sums).hexdigest()[:16]


def judged(mine: Any, judge: Callable[[list[Any]], Any]) -> Any:
    """What the first process makes of a JSON value of each, in their order; all call this, one time after the other."""
    client: Any = global_state.client
    process = global_state.process_id
    name = f"longformer_jax/{next(_rounds)}"
    client.key_value_set(f"{name}/{process}", json.dumps(mine))
    if process == 0:
        keys = [f"{name}/{other}" for other in range(global_state.num_processes)]
        values = [json.loads(client.blocking_key_value_get(key, _PATIENCE)) for key in keys]
        client.key_value_set(f"{name}/judged", json.dumps(judge(values)))
    return json.loads(client.blocking_key_value_get(f"{name}/judged", _PATIENCE))


def alone() -> bool:
    """Whether there is but one process; raises InputError where there are more that have not been introduced."""
    if global_state.client is None and jax.process_count() > 1:
        raise InputError("this is one of several processes; expected a call of jax.distributed.initialize before")
    return global_state.num_processes == 1
