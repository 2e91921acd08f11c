"""How many rows a program takes at a time: measured tables for known devices, a rule for the others.

A table is a file block_sizes/NAME.json, where NAME is the device kind in lower case with "_" for anything else, as
written by `python -m benchmarks.tune`.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path

_TABLES = Path(__file__).parent / "block_sizes"
PASSES = ("forward", "dq", "dkdv")


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """rows: of a program's own side. columns: of the other side, per step of its loop."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def block_sizes(device_kind: str, kernel: str, dtype: str, key_dim: int, value_dim: int, width: int) -> BlockSizes:
    """For one of PASSES, or for "dshared", the gradient of a shared key.

    Args:
      device_kind: as `jax.Device.device_kind`.
      kernel: its name.
      dtype: of query, key and value.
      key_dim, value_dim: head_dim of query and of value.
      width: keys that a query sees, left + right + 1.
    """
    sizes = _table(table_path(device_kind)).get(table_key(kernel, dtype, key_dim, value_dim))
    sizes = _rule(kernel, dtype, max(key_dim, value_dim)) if sizes is None else BlockSizes(**sizes)
    # A narrow band fills narrow blocks only.
    columns = sizes.columns
    while columns > 16 and columns >= 2 * width:
        columns //= 2
    return dataclasses.replace(sizes, columns=columns)


def table_path(device_kind: str) -> Path:
    """Of the table for a device, whether there is one or not."""
    return _TABLES / f"{re.sub(r'\W+', '_', device_kind.lower())}.json"


def table_key(kernel: str, dtype: str, key_dim: int, value_dim: int) -> str:
    return f"{kernel} {dtype} {key_dim} {value_dim}"


@functools.cache
def _table(path: Path) -> dict[str, dict[str, int]]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _rule(kernel: str, dtype: str, head_dim: int) -> BlockSizes:
    """Compiles without spills for A100, H100 and B200, as `make aot` checks; found by compiling, not by timing.

    With jax 0.11.2, too, in 16 bits without a shared key. Of float32, dshared spills 24 bytes on an A100.
    """
    if dtype == "float32":  # a thread of an exact product holds all of head_dim, for every row of its own
        rows, columns = (32, 16) if head_dim <= 32 else (32, 32) if head_dim <= 64 else (16, 16)
        return BlockSizes(rows, columns, num_warps=4 if kernel in PASSES else 2, num_stages=1)
    if kernel not in PASSES and head_dim > 128:
        return BlockSizes(rows=32, columns=16, num_warps=4, num_stages=2)
    if kernel in ("forward", "dq"):
        columns = 32 if kernel == "dq" and head_dim > 256 else 64
    else:
        columns = 32 if head_dim <= 128 else 16
    return BlockSizes(rows=128 if head_dim <= 64 else 64, columns=columns, num_warps=8, num_stages=2)
