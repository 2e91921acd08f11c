"""The geometry of a banded attention: which key each query sees.

Query i sees key `i + key_offset + m * dilation` for every integer m in [-left, right] (paper section 3.1). Everything
an implementation needs to know about the band, beyond the shapes of its arrays, is in `Band`.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer


@dataclasses.dataclass(frozen=True)
class HeadGroup:
    """A run of neighbouring heads, [start, stop), that share a dilation."""

    dilation: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Band:
    """A window of `left` and `right` steps around each query; a step of head h is `dilation[h]` positions."""

    left: int
    right: int
    dilation: tuple[int, ...]
    key_offset: int = 0

    @property
    def head_groups(self) -> tuple[HeadGroup, ...]:
        groups, start = [], 0
        for dilation, run in itertools.groupby(self.dilation):
            stop = start + len(list(run))
            groups.append(HeadGroup(dilation, start, stop))
            start = stop
        return tuple(groups)


_INT32_MAX = 2**31 - 1
_FARTHEST = 2**29  # so that sums with positions and windows fit int32, too


def make_band(
    window: int | tuple[int, int], dilation: int | Sequence[int], causal: bool, key_offset: int, num_heads: int
) -> Band:
    """Checks the arguments of `banded_attention` that describe the band; raises InputError."""
    sides = _integers(window if isinstance(window, tuple | list) else (window, 0 if causal else window), minimum=0)
    if sides is None or len(sides) != 2:
        raise InputError(f"window is {window!r}; expected an integer >= 0 or a pair (left, right) of them")
    left, right = sides
    if causal and right:
        raise InputError(f"window is {window!r}, which looks {right} steps ahead; causal=True expects (left, 0)")
    per_head = isinstance(dilation, tuple | list) or getattr(dilation, "ndim", 0) == 1
    dilations = _integers(tuple(dilation) if per_head else (dilation,) * num_heads, minimum=1)  # type: ignore
    if dilations is None:
        raise InputError(f"dilation is {dilation!r}; expected an integer >= 1, or one for each head")
    if len(dilations) != num_heads:
        raise InputError(f"dilation has {len(dilations)} entries; expected one for each of the {num_heads} heads")
    offset = _integers((key_offset,))
    if offset is None:
        raise InputError(f"key_offset is {key_offset!r}; expected an integer known when the call is traced")
    if abs(offset[0]) > _FARTHEST:
        raise InputError(f"key_offset is {offset[0]}; expected at most {_FARTHEST} to either side")
    # A wider window sees no more, and would not fit int32.
    return Band(min(left, _INT32_MAX), min(right, _INT32_MAX), dilations, offset[0])


def _integers(values: Sequence[object], minimum: int | None = None) -> tuple[int, ...] | None:
    """The values as Python ints; None where one is below the minimum, no integer, or a traced one."""
    integers = tuple(integer for integer in map(as_integer, values) if integer is not None)
    if len(integers) != len(values) or minimum is not None and any(integer < minimum for integer in integers):
        return None
    return integers
