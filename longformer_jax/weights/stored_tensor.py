"""A tensor of a checkpoint's file that nobody has read yet."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """What a file says about a tensor, and the way to its numbers.

    Attributes:
      shape: as stored.
      dtype: "float32", "bfloat16", …
      read: gives the array, maybe a read-only view of memory that other tensors share; raises InputError where the
        file is damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
