"""What counts as an integer or a number, everywhere: Python's, NumPy's, and no boolean."""

import math
import numbers
import operator

import numpy as np

from longformer_jax.errors import InputError


def as_integer(value: object) -> int | None:
    """The value as a Python int; None where it is no integer, or a traced one."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)  # type: ignore
    except TypeError:
        return None


def check_integer(field: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """The value as a Python int; raises InputError naming `field` unless it is one from `minimum` to `maximum`."""
    integer = as_integer(value)
    if integer is None or integer < minimum:
        raise InputError(f"{field} is {value!r}; expected an integer >= {minimum}")
    if maximum is not None and integer > maximum:
        raise InputError(f"{field} is {integer}; expected at most {maximum}")
    return integer


def as_number(value: object) -> float | None:
    """The value as a Python float; None where it is no finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_) or not math.isfinite(value):
        return None
    return float(value)


def check_number(field: str, value: object, expected: str) -> float:
    """A finite number, as Python's; `expected` ends the sentence where it is none."""
    number = as_number(value)
    if number is None:
        raise InputError(f"{field} is {value!r}; expected {expected}")
    return number
