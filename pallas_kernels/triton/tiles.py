"""What the Triton kernels share: loads and stores of tiles, products, masks, and the loop over blocks."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from pallas_kernels.dropout import keep_mask
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Block, Walk, by_head

Tile = tuple[jax.Array, ...]  # [rows, head_dim], cut along head_dim into powers of two, as Triton wants them


# ---- Tiles -----------------------------------------------------------------------------------------------------------


def chunks(head_dim: int) -> list[tuple[int, int]]:
    """(start, size) with sizes that are powers of two, 16 at least; the last may stick out.

    One piece beyond 128: with several, the backward kernels run out of registers.
    """
    if head_dim > 128:
        return [(0, 256)]
    found, start = [], 0
    while start < head_dim:
        size = max(16, 1 << ((head_dim - start).bit_length() - 1))
        found.append((start, size))
        start += size
    return found


def load_tile(ref, positions: jax.Array) -> Tile:
    """Rows of a ref [length, head_dim]; the positions must lie inside."""
    head_dim = ref.shape[-1]

    def load(start: int, size: int) -> jax.Array:
        columns = start + jnp.arange(size)
        inside = None if start + size <= head_dim else (columns < head_dim)[None, :]
        return plt.load(
            ref.at[positions[:, None], columns[None, :]], mask=inside, other=None if inside is None else 0.0
        )

    return tuple(load(*chunk) for chunk in chunks(head_dim))


def store_tile(ref, positions: jax.Array, tile: Tile) -> None:
    """Leaves out the positions beyond the end."""
    length, head_dim = ref.shape
    for (start, size), x in zip(chunks(head_dim), tile, strict=True):
        columns = start + jnp.arange(size)
        inside = (positions < length)[:, None] & (columns < head_dim)[None, :]
        plt.store(ref.at[positions[:, None], columns[None, :]], x.astype(ref.dtype), mask=inside)


def empty_tile(rows: int, head_dim: int) -> Tile:
    return tuple(jnp.zeros((rows, size), jnp.float32) for _, size in chunks(head_dim))


def scores(own: Tile, other: Tile) -> jax.Array:
    """own . other for all pairs of rows, float32 [rows, columns]."""
    return functools.reduce(jnp.add, (_dot(x, y, 1) for x, y in zip(own, other, strict=True)))


def weighted(weights: jax.Array, other: Tile) -> Tile:
    """weights [rows, columns] @ other [columns, head_dim], float32."""
    return tuple(_dot(weights.astype(y.dtype), y, 0) for y in other)


def _dot(x: jax.Array, y: jax.Array, contract: int) -> jax.Array:
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((1,), (contract,)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


# ---- A program's view of its walk ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a kernel with the grid (blocks, heads, batch): its block, and the masks on what it sees.

    own_is_query tells which side the walk is over; masks are [own rows, the other side's rows].
    """

    spec: Spec
    walk: Walk
    limits: Limits
    own_is_query: bool
    block: Block
    head: jax.Array

    @classmethod
    def here(cls, spec: Spec, walk: Walk, limits: Limits, spans, own_is_query: bool) -> "Program":
        program, head = pl.program_id(0), pl.program_id(1)
        span = None
        if spans is not None:
            different = sorted(set(walk.dilations))
            row = by_head(head, tuple(different.index(dilation) for dilation in walk.dilations))
            span = tuple(spans[row, i, program] for i in range(spans.shape[1]))
        return cls(spec, walk, limits, own_is_query, walk.block(program, head, span), head)

    @property
    def own_rows(self) -> jax.Array:
        return self.block.first + jnp.arange(self.walk.rows)

    @property
    def own_positions(self) -> jax.Array:
        """Some may lie beyond the end."""
        return self.own_rows * self.block.dilation + self.block.residue

    @property
    def inside_positions(self) -> jax.Array:
        """own_positions, with the last one inside in place of those beyond."""
        return jnp.minimum(self.own_rows, self.block.end - 1) * self.block.dilation + self.block.residue

    def visit(self, attend: Callable, carry):
        """carry = attend(carry, rows, positions, edge) for each block of the other side.

        Where `edge` is False all own rows see the whole block.
        """
        block, columns = self.block, self.walk.columns

        def at(n, carry, edge: bool):
            rows = block.start + n * columns + jnp.arange(columns)
            inside = jnp.minimum(rows, block.stop - 1) if edge else rows
            return attend(carry, rows, inside * block.dilation + block.other_residue, edge)

        def at_edge(n, carry):
            return at(n + jnp.where(n < block.interior, 0, block.edge - block.interior), carry, True)

        carry = lax.fori_loop(block.interior, block.edge, lambda n, carry: at(n, carry, False), carry)
        return lax.fori_loop(0, block.interior + block.count - block.edge, at_edge, carry)

    def visible(self, rows: jax.Array, positions: jax.Array, edge: bool) -> jax.Array | None:
        """Booleans [own rows, rows], or None where everything is visible; `rows` as `visit` gives them."""
        if not edge:
            return None
        distance = rows[None, :] - self.own_rows[:, None] - self.block.shift
        masks = [distance >= -self.walk.left, distance <= self.walk.right, (rows < self.block.stop)[None, :]]
        own_ids, other_ids = self.limits.ids(self.own_is_query)
        if own_ids is not None:
            masks.append(own_ids[self.inside_positions][:, None] == other_ids[positions][None, :])
        return functools.reduce(jnp.logical_and, (jnp.broadcast_to(mask, distance.shape) for mask in masks))

    def keep(self, positions: jax.Array) -> jax.Array | None:
        """Which probabilities dropout keeps, [own rows, rows]; None where there is no dropout."""
        if self.limits.dropout_streams is None:
            return None
        own, other = self.own_positions[:, None], positions[None, :]
        queries, keys = (own, other) if self.own_is_query else (other, own)
        return keep_mask(self.spec.dropout_rate, self.limits.dropout_streams[0], self.head, queries, keys)
