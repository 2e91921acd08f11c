"""Which blocks a kernel's program visits: the geometry of the band, for either side of the score matrix.

A walk lays one side's positions out as rows, block by block, one program each, and goes for every block through the
rows of the other side that the band reaches: over keys for a block of queries (forward, dq), over queries for a block
of keys (dk, dv). With dilation d, rows are the positions of one residue modulo d, d positions apart; the band is
undilated there. Nothing is padded: the number of rows is that of the residue.

Everything is arithmetic on scalars and works alike on Python's integers and on values inside a kernel.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax


class Block(NamedTuple):
    """One program's work: a block of its own rows, and the range of the other side's rows it goes through.

    The other side's rows [start, stop) are visited in `count` blocks from `start` on. Rows [clear_start, clear_stop)
    share a document with all own rows. The blocks [interior, edge) lie wholly inside the band of every own row, inside
    [start, stop) and inside [clear_start, clear_stop): these need no mask.
    """

    live: Any  # False where the grid has more programs than there are blocks
    dilation: Any
    residue: Any  # of the own rows: position = row * dilation + residue
    first: Any  # the first own row
    end: Any  # the number of own rows
    other_residue: Any
    shift: Any  # own row r is at the other side's row r + shift
    start: Any
    stop: Any
    clear_start: Any
    clear_stop: Any
    count: Any
    interior: Any
    edge: Any


@dataclasses.dataclass(frozen=True)
class Walk:
    """Own row r sees the other side's rows r + shift - left ... r + shift + right.

    Attributes:
      length, other_length: numbers of positions.
      left, right: the band, in steps of the dilation.
      offset: the other side's position beside own position 0.
      dilations: one for each head.
      rows, columns: own rows in a block, and the other side's.
    """

    length: int
    other_length: int
    left: int
    right: int
    offset: int
    dilations: tuple[int, ...]
    rows: int
    columns: int

    def blocks_per_residue(self, dilation: int) -> int:
        return -(-self.length // (dilation * self.rows))

    @property
    def programs(self) -> int:
        """Size of the grid over blocks: as many as the head with most of them has."""
        return max(dilation * self.blocks_per_residue(dilation) for dilation in self.dilations)

    def block(self, program, head, span=None) -> Block:
        """What the program does; `span` is its (start, stop, clear_start, clear_stop) of `visible_spans`.

        start and stop narrow the other side's rows further.
        """
        dilation = by_head(head, self.dilations)
        blocks = by_head(head, tuple(map(self.blocks_per_residue, self.dilations)))
        residue = _div(program, blocks)
        first = (program - residue * blocks) * self.rows
        end = _ceil_div(self.length - residue, dilation)
        # Floor division of residue + offset, which may be negative, without dividing what only the kernel knows.
        beside = residue + by_head(head, tuple(self.offset % d for d in self.dilations))
        wraps = 1 * (beside >= dilation)
        shift = by_head(head, tuple(self.offset // d for d in self.dilations)) + wraps
        other_residue = beside - wraps * dilation
        other_end = _ceil_div(self.other_length - other_residue, dilation)

        start = _maximum(first + shift - self.left, 0)
        stop = _minimum(first + self.rows + shift + self.right, other_end)
        if span is not None:
            start, stop = _maximum(start, span[0]), _minimum(stop, span[1])
        clear_start, clear_stop = (start, stop) if span is None else span[2:]
        count = _ceil_div(_maximum(stop - start, 0), self.columns)
        # The last own row sees least to the left, the first own row least to the right.
        whole = _maximum(first + self.rows - 1 + shift - self.left, clear_start)
        interior = _minimum(_ceil_div(_maximum(whole - start, 0), self.columns), count)
        whole = _minimum(_minimum(first + shift + self.right + 1, stop), clear_stop)
        edge = _div(_maximum(whole - start, 0), self.columns)
        return Block(
            live=(residue < dilation) & (first < end),
            dilation=dilation,
            residue=residue,
            first=first,
            end=end,
            other_residue=other_residue,
            shift=shift,
            start=start,
            stop=stop,
            clear_start=clear_start,
            clear_stop=clear_stop,
            count=count,
            interior=interior,
            edge=_maximum(edge, interior),
        )

    def transposed(self, rows: int, columns: int) -> "Walk":
        """The walk over the other side's blocks, through this side's rows."""
        return Walk(self.other_length, self.length, self.right, self.left, -self.offset, self.dilations, rows, columns)


def by_head(head, values: tuple[int, ...]):
    """values[head], as a constant where they are all the same, and without reading memory where they are not."""
    if isinstance(head, int):
        return values[head]
    result, position = values[0], 0
    for value, run in itertools.groupby(values):
        result = jnp.where(head >= position, jnp.int32(value), jnp.int32(result)) if position else value
        position += len(list(run))
    return result


def _maximum(x, y):
    return max(x, y) if isinstance(x, int) and isinstance(y, int) else jnp.maximum(x, y)


def _minimum(x, y):
    return min(x, y) if isinstance(x, int) and isinstance(y, int) else jnp.minimum(x, y)


def _div(x, y):
    """Of numbers >= 0, for which a truncating division will do."""
    if isinstance(x, int) and isinstance(y, int):
        return x // y
    return lax.div(*jnp.broadcast_arrays(jnp.int32(x), jnp.int32(y)))


def _ceil_div(x, y):
    return _div(x + y - 1, y)
