"""The items that a kernel's programs go through, and what the rows of a warpgroup see in one."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.dropout import Streams, hash_column, hash_row, is_kept
from pallas_kernels.mosaic.tiles import across, count_per_row, down, load_per_column, load_per_row
from pallas_kernels.mosaic.tiling import ROWS, Gpu, MmaTiling, Tiling
from pallas_kernels.mosaic.views import ALIGNMENT, rows_of
from pallas_kernels.spec import Spec
from pallas_kernels.walk import Block, Walk


class Scalars(NamedTuple):
    """What a kernel reads number by number, in global memory; None where it does not apply.

    Attributes:
      dropout: of each batch entry.
      spans: of the other side's rows that an item shares documents with, int32 [B, 1, 4, items of a head].
      head: int32 [1], which head of all the launch's only one is.
    """

    dropout: Streams | None
    spans: Any
    head: Any


@dataclasses.dataclass(frozen=True)
class Schedule[AnyTiling: Tiling | MmaTiling]:
    """The items of a launch: blocks of own rows of all heads and batch entries, dealt out to its programs in turn.

    Attributes:
      spec, tiling, own_is_query: as in `launch`.
      walk: with the launch's heads, which have the same dilation.
      first_head: the number of the first one among all heads, where the kernel is not told (`Scalars.head`).
      batch: the number of batch entries.
      gpu: what runs it.
    """

    spec: Spec
    walk: Walk
    tiling: AnyTiling
    own_is_query: bool
    first_head: int
    batch: int
    gpu: Gpu

    @property
    def own_rows(self) -> int:
        """Of each residue, filled up to whole products."""
        return -(-self.walk.length // (self.walk.dilations[0] * ROWS)) * ROWS

    @property
    def other_rows(self) -> int:
        """Of each residue, filled up to whole blocks."""
        return -(-self.walk.other_length // (self.walk.dilations[0] * self.tiling.columns)) * self.tiling.columns

    @property
    def items(self) -> int:
        return self.walk.programs * len(self.walk.dilations) * self.batch

    @property
    def programs(self) -> int:
        return min(self.gpu.num_cores, self.items) if self.tiling.persistent else self.items

    def count(self) -> Any:
        """How many items this program has."""
        return lax.div(self.items - lax.axis_index("program") + self.programs - 1, jnp.int32(self.programs))

    def item(self, i: Any, scalars: Scalars) -> "Item":
        """This program's item number i."""
        number = lax.axis_index("program") + i * self.programs
        per_head = jnp.int32(self.walk.programs)
        block, number = lax.rem(number, per_head), lax.div(number, per_head)
        heads = jnp.int32(len(self.walk.dilations))
        head, entry = lax.rem(number, heads), lax.div(number, heads)
        dropout = jax.tree.map(lambda x: x[entry], scalars.dropout)
        span = None
        if scalars.spans is not None:
            span = tuple(scalars.spans[entry, 0, k, block] for k in range(scalars.spans.shape[2]))
        walked = aligned(self.walk.block(block, 0, span), self.tiling.columns)
        first_head = self.first_head if scalars.head is None else scalars.head[0]
        return Item(self, entry, head, head + first_head, dropout, walked)


def aligned(block: Block, columns: int) -> Block:
    """The same with the other side's rows beginning where TMA may, and one block at least.

    The masks hide the rows that are before, and all of a block that nothing was to be seen of. Which blocks need none
    is each warpgroup's matter: `OwnRows.bounds`.
    """
    start = lax.div(block.start, jnp.int32(ALIGNMENT)) * ALIGNMENT
    count = lax.div(jnp.maximum(block.stop - start, 1) + columns - 1, jnp.int32(columns))
    return block._replace(start=start, count=count, interior=None, edge=None)


@dataclasses.dataclass(frozen=True)
class Item:
    """A block of own rows, those of all warpgroups, beside the other side's blocks that they go through.

    Attributes:
      schedule: what is known when the kernel is traced.
      batch: which batch entry.
      launch_head: among the launch's heads.
      head: among all heads.
      dropout: the batch entry's streams, scalars; None without dropout.
      block: of the walk.
    """

    schedule: Schedule[Any]
    batch: Any
    launch_head: Any
    head: Any
    dropout: Streams | None
    block: Block

    def first_of(self, n: Any) -> Any:
        """The first row to load for block n: its own first row, but for a last block that would stick out."""
        columns = self.schedule.tiling.columns
        first = jnp.minimum(self.block.start + n * columns, self.schedule.other_rows - columns)
        return pl.multiple_of(first, ALIGNMENT)

    def own_part(self, array: Any, first: Any, shape: tuple[int, ...]) -> Any:
        """A tile or a line of an own array, beginning with that row."""
        return self._part(array, shape, self.head, self.block.residue, first)

    def other_part(self, array: Any, n: Any, shape: tuple[int, ...]) -> Any:
        """A tile or a line of an array of the other side: block n."""
        return self._part(array, shape, self.head, self.block.other_residue, self.first_of(n))

    def output_part(self, array: Any, first: Any, shape: tuple[int, ...]) -> Any:
        """A tile or a line of an output, which has the launch's heads only."""
        return self._part(array, shape, self.launch_head, self.block.residue, first)

    def _part(self, array: Any, shape: tuple[int, ...], head: Any, residue: Any, first: Any) -> Any:
        return rows_of(array, shape, self.batch, head, self.schedule.walk.dilations[0], residue, first)

    def own_rows(self, warpgroup: Any, numbers: Any) -> "OwnRows":
        return OwnRows(self, pl.multiple_of(self.block.first + warpgroup * ROWS, ROWS), numbers)


@dataclasses.dataclass(frozen=True)
class OwnRows:
    """The 64 rows of one warpgroup. Scores, masks and weights are [own rows, columns].

    Attributes:
      item: which they are of.
      first: the first row.
      numbers: of the columns, 0, 1, 2, ..., in shared memory, as the compiler would keep them in registers throughout.
    """

    item: Item
    first: Any
    numbers: Any

    @property
    def spec(self) -> Spec:
        return self.item.schedule.spec

    @property
    def columns(self) -> int:
        return self.item.schedule.tiling.columns

    @property
    def bounds(self) -> tuple[Any, Any, Any, Any]:
        """(begin, interior, edge, end): blocks [begin, end), one at least, are what some row sees.

        All rows see the whole of blocks [interior, edge).
        """
        block, walk, columns = self.item.block, self.item.schedule.walk, jnp.int32(self.columns)
        first, last = self.first + block.shift, self.first + ROWS - 1 + block.shift

        def offset(x: Any) -> Any:
            return jnp.maximum(x - block.start, 0)

        begin = jnp.minimum(lax.div(offset(first - walk.left), columns), block.count - 1)
        end = lax.div(offset(jnp.minimum(last + walk.right + 1, block.stop)) + columns - 1, columns)
        end = jnp.maximum(end, begin + 1)
        interior = offset(jnp.maximum(last - walk.left, block.clear_start))
        interior = jnp.clip(lax.div(interior + columns - 1, columns), begin, end)
        edge = jnp.minimum(jnp.minimum(first + walk.right + 1, block.stop), block.clear_stop)
        edge = lax.div(offset(edge), columns)
        return begin, interior, jnp.clip(edge, interior, end), end

    def hide(self, x: jax.Array, n: Any, is_edge: bool, own_ids: Any, other_ids: Any) -> jax.Array:
        """x [64, columns] of block n with -inf in place of what the rows do not see.

        Args:
          x: scores.
          n: the block.
          is_edge: whether rows may not see all of it.
          own_ids, other_ids: a reference each, or None where there are no ids.
        """
        if not is_edge:
            return x
        # The first column that a row sees, and how many: unsigned, one comparison does for both ends.
        block, walk = self.item.block, self.item.schedule.walk
        start, (rows, columns) = self.item.first_of(n), self._numbers()
        rows = rows + (self.first + block.shift)
        first = jnp.maximum(rows - walk.left, block.start + n * self.columns) - start
        stop = jnp.minimum(rows + walk.right + 1, block.stop) - start
        beyond = (across(columns) - down(first, self.columns)).astype(jnp.uint32)
        x = jnp.where(beyond < down(jnp.maximum(stop - first, 0).astype(jnp.uint32), self.columns), x, -jnp.inf)
        if own_ids is not None:
            same = down(load_per_row(own_ids), self.columns) == across(load_per_column(other_ids))
            x = jnp.where(same, x, -jnp.inf)
        return x

    def keep(self, n: Any) -> jax.Array | None:
        """Which probabilities dropout keeps, booleans [64, columns]; None where there is no dropout."""
        dropout, block, head = self.item.dropout, self.item.block, self.item.head
        if dropout is None:
            return None
        own, other = self._numbers(block.dilation)
        own = own + (self.first * block.dilation + block.residue)
        other = other + (self.item.first_of(n) * block.dilation + block.other_residue)
        queries, keys = (own, other) if self.item.schedule.own_is_query else (other, own)
        if dropout.first_key is not None:
            keys = keys + dropout.first_key
        row, column = hash_row(dropout.rows, head, queries), hash_column(keys)
        if self.item.schedule.own_is_query:
            row, column = down(row, self.columns), across(column)
        else:
            row, column = across(row), down(column, self.columns)
        return is_kept(self.spec.dropout_rate, row, column)

    def _numbers(self, step: int = 1) -> tuple[jax.Array, jax.Array]:
        """0, step, 2 * step, ... for the own rows and for the columns, int32 [64] and [columns]."""
        return count_per_row() * step, load_per_column(self.numbers) * step
