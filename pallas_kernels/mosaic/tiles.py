"""What the Hopper kernels share: products, masks, and a warpgroup's view of its walk."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.dropout import hash_column, hash_row, is_kept
from pallas_kernels.spec import Spec
from pallas_kernels.walk import Block, Walk

ROWS = 64  # of a warpgroup's product

_ALIGNMENT = 8  # of the rows at which TMA may begin, given how it lays them out in shared memory

_TILE = plgpu.Layout.WGMMA
_PER_ROW, _PER_COLUMN = _TILE.reduce(1), _TILE.reduce(0)


# ---- Arrays in registers ---------------------------------------------------------------------------------------------


def empty_tile(columns: int) -> jax.Array:
    """Zeros, float32 [64, columns]."""
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), _TILE)


def filled_line(value: float) -> jax.Array:
    """One number for each row, float32 [64]."""
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), _PER_ROW)


def load_per_row(ref: Any) -> jax.Array:
    """[64] of shared memory, one for each row."""
    return plgpu.load(ref, layout=_PER_ROW)


def load_per_column(ref: Any) -> jax.Array:
    """[columns] of shared memory, one for each column."""
    return plgpu.load(ref, layout=_PER_COLUMN)


def down(line: jax.Array, columns: int) -> jax.Array:
    """[64], one for each row -> [64, columns]."""
    return lax.broadcast_in_dim(line, (ROWS, columns), [0])


def across(line: jax.Array) -> jax.Array:
    """[columns], one for each column -> [64, columns]."""
    return lax.broadcast_in_dim(line, (ROWS, line.shape[0]), [1])


def scores(own: Any, other: Any) -> jax.Array:
    """own [64, D] . other [columns, D] for all pairs of rows, both in shared memory: float32 [64, columns]."""

    def product(acc: Any) -> jax.Array:
        plgpu.wgmma(acc, own, other.transpose((1, 0)))
        return acc[...]

    return pl.run_scoped(product, plgpu.ACC((ROWS, other.shape[0]), jnp.float32))


def accumulate(acc: jax.Array, weights: jax.Array, other: Any, interpret: bool) -> jax.Array:
    """acc + weights [64, columns] @ other [columns, D]: weights in registers, other in shared memory."""
    weights = weights.astype(other.dtype)
    if interpret:  # which knows no products with an operand in registers
        product = lax.dot_general(weights, other[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        plgpu.commit_smem()  # so that the next load does not overtake this read
        return acc + product
    result: Any = pl.run_state(lambda ref: plgpu.wgmma(ref, weights, other))(plgpu.ACC.init(acc))
    return result


# ---- A warpgroup's view of its walk ----------------------------------------------------------------------------------


def aligned(block: Block, columns: int) -> Block:
    """The same with the other side's rows beginning where TMA may; the masks hide those before."""
    start = lax.div(block.start, jnp.int32(_ALIGNMENT)) * _ALIGNMENT
    count = lax.div(jnp.maximum(block.stop - start, 0) + columns - 1, jnp.int32(columns))
    return block._replace(start=start, count=jnp.where(block.stop > block.start, count, 0))


@dataclasses.dataclass(frozen=True)
class Program:
    """The rows of one warpgroup beside the blocks that its program goes through.

    Attributes:
      spec, walk, columns, own_is_query: known when the kernel is traced. Masks are [own rows, columns].
      other_rows: how many rows of the other side there are to load.
      head: among all heads.
      stream: the batch entry's dropout; None without dropout.
      block: of all warpgroups of the program together.
      first: the first own row of this one.
    """

    spec: Spec
    walk: Walk
    columns: int
    other_rows: int
    own_is_query: bool
    head: Any
    stream: Any
    block: Block
    first: Any

    @property
    def live_blocks(self) -> tuple[Any, Any]:
        """The blocks [begin, end) that some row of this warpgroup sees."""
        block = self.block
        start = jnp.maximum(self.first + block.shift - self.walk.left, block.start)
        stop = jnp.minimum(self.first + ROWS + block.shift + self.walk.right, block.stop)
        begin = jnp.minimum(lax.div(start - block.start, jnp.int32(self.columns)), block.count)
        end = lax.div(jnp.maximum(stop - block.start, 0) + self.columns - 1, jnp.int32(self.columns))
        return begin, jnp.where(start < stop, end, begin)

    def first_of(self, n: Any) -> Any:
        """The first row to load for block n: its own first row, but for a last block that would stick out."""
        first = jnp.minimum(self.block.start + n * self.columns, self.other_rows - self.columns)
        return pl.multiple_of(first, _ALIGNMENT)

    def hide(self, x: jax.Array, n: Any, own_ids: list[Any], other_ids: list[Any]) -> jax.Array:
        """x [64, columns] with -inf in place of what the rows do not see in block n.

        own_ids, other_ids: a reference in shared memory each, or none where there are no ids.
        """
        block, nominal = self.block, self.block.start + n * self.columns
        least, most = self.first + block.shift, self.first + ROWS - 1 + block.shift
        is_interior = (nominal >= most - self.walk.left) & (nominal + self.columns <= block.stop)
        is_interior &= nominal + self.columns - 1 <= least + self.walk.right

        def hide_edges(x: jax.Array) -> jax.Array:
            rows = plgpu.broadcasted_iota(jnp.int32, x.shape, 0, layout=_TILE) + least
            columns = plgpu.broadcasted_iota(jnp.int32, x.shape, 1, layout=_TILE) + self.first_of(n)
            visible = (columns - rows >= -self.walk.left) & (columns - rows <= self.walk.right)
            visible &= (columns >= nominal) & (columns < block.stop)
            return jnp.where(visible, x, -jnp.inf)

        x = lax.cond(is_interior, lambda x: x, hide_edges, x)
        for own, other in zip(own_ids, other_ids, strict=True):
            same = down(load_per_row(own), self.columns) == across(load_per_column(other))
            x = jnp.where(same, x, -jnp.inf)
        return x

    def keep(self, n: Any) -> jax.Array | None:
        """Which probabilities dropout keeps, booleans [64, columns]; None where there is no dropout."""
        if self.stream is None:
            return None
        block, shape = self.block, (ROWS, self.columns)
        own = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=_TILE) + self.first
        other = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=_TILE) + self.first_of(n)
        own, other = own * block.dilation + block.residue, other * block.dilation + block.other_residue
        query, key = (own, other) if self.own_is_query else (other, own)
        return is_kept(self.spec.dropout_rate, hash_row(self.stream, self.head, query), hash_column(key))
