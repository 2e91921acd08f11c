"""What counts as an integer, everywhere: Python's, NumPy's, and no boolean."""

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
