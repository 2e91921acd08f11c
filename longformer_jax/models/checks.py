"""What both models ask of their settings; every check raises InputError naming the field."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from longformer_jax.errors import InputError

# The most that a size may be: beyond any table in use, well within int32, and few enough layers to list their windows.
MAX_SIZE = 2**24


def check_size(field: str, value: Any, minimum: int = 1) -> None:
    """An integer from `minimum` to `MAX_SIZE`."""
    if not _is_integer(value, minimum):
        raise InputError(f"{field} is {value!r}; expected an integer >= {minimum}")
    _check_largest(field, value)


def check_seed(seed: Any) -> None:
    """What `jax.random.key` takes without cutting it."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1")


def check_rate(field: str, value: Any) -> None:
    """A probability of dropping something."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise InputError(f"{field} is {value!r}; expected a number in [0, 1)")


def check_choice(field: str, value: object, choices: Sequence[str]) -> None:
    """One of a few names."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{field} is {value!r}; expected one of {', '.join(choices)}")


def check_bool(field: str, value: object) -> None:
    """True or False."""
    if type(value) is not bool:
        raise InputError(f"{field} is {value!r}; expected True or False")


def check_implementation(value: object) -> None:
    """A name, which `banded_attention` knows or not, or None."""
    if not isinstance(value, str | None):
        raise InputError(f"implementation is {value!r}; expected the name of one, or None")


def per_layer(field: str, value: Any, num_layers: int) -> tuple[int, ...]:
    """Integers from 1 to `MAX_SIZE`, one for each layer; a single one means every layer."""
    entries = tuple(value) if isinstance(value, tuple | list) else (value,) * num_layers
    if not all(_is_integer(entry, 1) for entry in entries):
        raise InputError(f"{field} is {value!r}; expected integers >= 1")
    if len(entries) != num_layers:
        raise InputError(f"{field} has {len(entries)} entries; expected one for each of the {num_layers} layers")
    _check_largest(field, max(entries))
    return entries


def _is_integer(value: Any, minimum: int) -> bool:
    return type(value) is int and value >= minimum


def _check_largest(field: str, value: int) -> None:
    if value > MAX_SIZE:
        raise InputError(f"{field} is {value}; expected at most {MAX_SIZE}")
