"""What both models ask of their settings and arrays; every check raises InputError naming the field.

Arrays are checked by shape and dtype always, and by value where values are known: those that jit traces are not, nor
those that are spread over several processes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention.split import check_mesh
from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer, check_integer, check_number

# The most that a size may be: beyond any table in use, well within int32, and few enough layers to list their windows.
MAX_SIZE = 2**24


def check_size(field: str, value: Any, minimum: int = 1) -> int:
    """An integer from `minimum` to `MAX_SIZE`, as Python's."""
    return check_integer(field, value, minimum, MAX_SIZE)


def check_seed(seed: Any) -> int:
    """What `jax.random.key` takes without cutting it."""
    integer = as_integer(seed)
    if integer is None or not 0 <= integer < 2**32:
        raise InputError(f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1")
    return integer


def check_rate(field: str, value: Any) -> float:
    """A probability of dropping something."""
    rate = check_number(field, value, "a number in [0, 1)")
    if not 0 <= rate < 1:
        raise InputError(f"{field} is {value!r}; expected a number in [0, 1)")
    return rate


def check_config(config: object, *kinds: type) -> None:
    """A configuration of one of some classes."""
    if not isinstance(config, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"config is {describe(config)}; expected {expected}")


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
    several = isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1
    entries = [as_integer(entry) for entry in (value if several else (value,) * num_layers)]
    integers = tuple(entry for entry in entries if entry is not None and entry >= 1)
    if len(integers) != len(entries):
        raise InputError(f"{field} is {value!r}; expected integers >= 1")
    if len(entries) != num_layers:
        raise InputError(f"{field} has {len(entries)} entries; expected one for each of the {num_layers} layers")
    check_size(field, max(integers))
    return integers


def is_known(x: Any) -> bool:
    """Whether an array's values can be looked at: not while jit traces it, nor where other processes have some."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def equals(ids: Any, number: int) -> Any:
    """Booleans like integers of any width, True where they are a number; JAX would cut it to their width."""
    limits = np.iinfo(ids.dtype)
    return ids == number if limits.min <= number <= limits.max else ids != ids


def why_unknown(x: Any) -> str:
    """Why `is_known` says no, for a sentence."""
    return "is traced" if isinstance(x, jax.core.Tracer) else "is spread over several processes"


def describe(x: Any) -> str:
    """An array by dtype and shape, all else by type, for a sentence."""
    return f"{x.dtype} {list(x.shape)}" if hasattr(x, "dtype") and hasattr(x, "shape") else type(x).__name__


def dtype_kind(x: Any) -> str:
    """ "bool", "integer", "floating" or "other", as of what is no array of NumPy's or JAX's."""
    try:
        dtype = np.dtype(x.dtype)
    except (AttributeError, TypeError):
        return "other"
    if not dtype.isnative:  # which JAX does not take
        return "other"
    kinds = {"bool": np.bool_, "integer": jnp.integer, "floating": jnp.floating}
    return next((kind for kind, parent in kinds.items() if jnp.issubdtype(dtype, parent)), "other")


def check_integers(field: str, x: Any, axes: str) -> None:
    """An array of integers with the axes that are named, as "batch, length"."""
    if getattr(x, "ndim", None) != axes.count(",") + 1 or dtype_kind(x) != "integer":
        raise InputError(f"{field} is {describe(x)}; expected an array of integers [{axes}]")
    check_mesh(field, x)


def check_rows_of_ids(input_ids: Any, sep_token_id: Any) -> None:
    """Ids [..., length], and one of them, as the functions of masks take them."""
    if getattr(input_ids, "ndim", 0) < 1 or dtype_kind(input_ids) != "integer":
        raise InputError(f"input_ids is {describe(input_ids)}; expected an array of integers [..., length]")
    check_integer("sep_token_id", sep_token_id, 0)


def check_within(field: str, ids: Any, size: int) -> None:
    """Integers from 0 to `size` - 1, where they are known."""
    if is_known(ids) and ids.size:
        ids = np.asarray(ids)  # NumPy's, as jit would trace JAX's own
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise InputError(f"{field} holds {low if low < 0 else high}; expected integers from 0 to {size - 1}")


def check_tokens(field: str, ids: Any, vocab_size: int) -> None:
    """Ids [batch, length], at least one of them."""
    check_integers(field, ids, "batch, length")
    if any(size < 1 for size in ids.shape):  # one by one, as the batch may be a symbol
        raise InputError(f"{field} has the shape {list(ids.shape)}; expected at least one row and one token")
    check_within(field, ids, vocab_size)
