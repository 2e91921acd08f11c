"""What the Hopper kernels share: products, masks, and a warpgroup's view of its walk."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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


def store_numbers(ref: Any) -> None:
    """0, 1, 2, ... into shared memory."""
    ref[...] = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=_PER_COLUMN)
    plgpu.commit_smem()


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


def multiply(
    pairs: Sequence[tuple[Any, Any]],
    then: Callable,
    sums: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    others: Sequence[Any],
    interpret: bool,
) -> tuple[tuple[jax.Array, ...], Any]:
    """(sums + weights @ others, what `then` returns), both computed at the same time.

    Args:
      pairs: references (own [64, D], other [columns, D]) to shared memory.
      then: gets a function for each pair that waits for own @ other^T, float32 [64, columns].
      sums: float32 [64, D].
      weights: float32 [64, columns], rounded to the type of
      others: references [columns, D] to shared memory.
    """

    def run(score_refs: Sequence[Any], sum_refs: Sequence[Any]):
        for ref, x in zip(sum_refs, sums, strict=False):
            ref[...] = x
        for ref, (own, other) in zip(score_refs, pairs, strict=True):
            plgpu.wgmma(ref, own, other.transpose((1, 0)))
        for ref, x, other in zip(sum_refs, weights, others, strict=False):
            plgpu.wgmma(ref, x.astype(other.dtype), other)

        def awaited(number: int) -> jax.Array:
            later = len(pairs) - 1 - number + len(sum_refs)
            # To the compiler what follows is arithmetic that could rise above the wait.
            return in_place(plgpu.wgmma_accumulator_load(score_refs[number], wait_n=later))

        result = then(*(functools.partial(awaited, n) for n in range(len(pairs))))
        if interpret:  # which knows no products with an operand in registers
            return tuple(x + _dot(w, other) for x, w, other in zip(sums, weights, others, strict=True)), result
        return tuple(plgpu.wgmma_accumulator_load(ref, wait_n=0) for ref in sum_refs), result

    score_refs = [plgpu.ACC((ROWS, other.shape[0]), jnp.float32) for _, other in pairs]
    sum_refs = [] if interpret else [plgpu.ACC((ROWS, x.shape[1]), jnp.float32) for x in sums]
    return pl.run_scoped(run, score_refs, sum_refs) if score_refs or sum_refs else run([], [])


def in_place(x: Any) -> Any:
    """Keeps arithmetic on its side of a wait, which to the compiler is none: products seem done when they start."""
    leaves, tree = jax.tree.flatten(x)
    return jax.tree.unflatten(tree, lax.optimization_barrier(leaves)) if leaves else x


def _dot(weights: jax.Array, other: Any) -> jax.Array:
    product = lax.dot_general(
        weights.astype(other.dtype), other[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    plgpu.commit_smem()  # so that the next load does not overtake this read
    return product


# ---- A warpgroup's view of its walk ----------------------------------------------------------------------------------


def aligned(block: Block, columns: int) -> Block:
    """The same with the other side's rows beginning where TMA may, and one block at least.

    The masks hide the rows that are before, and all of a block that nothing was to be seen of. Which blocks need none
    is each warpgroup's matter: `Program.bounds`.
    """
    start = lax.div(block.start, jnp.int32(_ALIGNMENT)) * _ALIGNMENT
    count = lax.div(jnp.maximum(block.stop - start, 1) + columns - 1, jnp.int32(columns))
    return block._replace(start=start, count=count, interior=None, edge=None)


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
      numbers: of the columns, 0, 1, 2, ..., in shared memory, as the compiler would keep them in registers throughout.
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
    numbers: Any

    @property
    def bounds(self) -> tuple[Any, Any, Any, Any]:
        """(begin, interior, edge, end): blocks [begin, end), one at least, are what some row of this warpgroup sees.

        All rows see the whole of blocks [interior, edge).
        """
        block, columns = self.block, jnp.int32(self.columns)
        first, last = self.first + block.shift, self.first + ROWS - 1 + block.shift

        def offset(x: Any) -> Any:
            return jnp.maximum(x - block.start, 0)

        begin = jnp.minimum(lax.div(offset(first - self.walk.left), columns), block.count - 1)
        end = lax.div(offset(jnp.minimum(last + self.walk.right + 1, block.stop)) + columns - 1, columns)
        end = jnp.maximum(end, begin + 1)
        interior = jnp.clip(lax.div(offset(last - self.walk.left) + columns - 1, columns), begin, end)
        edge = lax.div(offset(jnp.minimum(first + self.walk.right + 1, block.stop)), columns)
        return begin, interior, jnp.clip(edge, interior, end), end

    def first_of(self, n: Any) -> Any:
        """The first row to load for block n: its own first row, but for a last block that would stick out."""
        first = jnp.minimum(self.block.start + n * self.columns, self.other_rows - self.columns)
        return pl.multiple_of(first, _ALIGNMENT)

    def hide(self, x: jax.Array, n: Any, is_edge: bool, own_ids: list[Any], other_ids: list[Any]) -> jax.Array:
        """x [64, columns] with -inf in place of what the rows do not see in block n, which `is_edge` says may be some.

        own_ids, other_ids: a reference in shared memory each, or none where there are no ids.
        """
        if is_edge:
            # The first column that a row sees, and how many: unsigned, one comparison does for both ends.
            block, start, (rows, columns) = self.block, self.first_of(n), self._numbers()
            rows = rows + (self.first + block.shift)
            first = jnp.maximum(rows - self.walk.left, block.start + n * self.columns) - start
            stop = jnp.minimum(rows + self.walk.right + 1, block.stop) - start
            beyond = (across(columns) - down(first, self.columns)).astype(jnp.uint32)
            x = jnp.where(beyond < down(jnp.maximum(stop - first, 0).astype(jnp.uint32), self.columns), x, -jnp.inf)
        for own, other in zip(own_ids, other_ids, strict=True):
            same = down(load_per_row(own), self.columns) == across(load_per_column(other))
            x = jnp.where(same, x, -jnp.inf)
        return x

    def keep(self, n: Any) -> jax.Array | None:
        """Which probabilities dropout keeps, booleans [64, columns]; None where there is no dropout."""
        if self.stream is None:
            return None
        block = self.block
        own, other = self._numbers(block.dilation)
        own = own + (self.first * block.dilation + block.residue)
        other = other + (self.first_of(n) * block.dilation + block.other_residue)
        if self.own_is_query:
            row, column = down(hash_row(self.stream, self.head, own), self.columns), across(hash_column(other))
        else:
            row, column = across(hash_row(self.stream, self.head, other)), down(hash_column(own), self.columns)
        return is_kept(self.spec.dropout_rate, row, column)

    def _numbers(self, step: int = 1) -> tuple[jax.Array, jax.Array]:
        """0, step, 2 * step, ... for the own rows and for the columns, int32 [64] and [columns]."""
        own = plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=_PER_ROW)
        return own * step, load_per_column(self.numbers) * step
