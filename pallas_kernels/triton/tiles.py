"""What the Triton kernels share: loads and stores of tiles, products, masks, and the loop over blocks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Chunk(NamedTuple):
    """Columns [start, start + size), of which those from `stop` on do not count."""

    start: int
    size: int
    stop: int


def chunks(head_dim: int, few: bool = False) -> list[Chunk]:
    """Sizes are powers of two, 16 at least; the last may stick out.

    Beyond 128 in pieces of 128, and where `few` in one piece up to there: what more and smaller pieces save in products
    they take in registers.
    """
    found, start = [], 0
    while start < head_dim:
        left = head_dim - start
        size = 128 if head_dim > 128 else 1 << ((left - 1).bit_length() if few else left.bit_length() - 1)
        found.append(Chunk(start, max(16, size), head_dim))
        start += found[-1].size
    return found


def load_tile(ref, positions: jax.Array, pieces: list[Chunk] | None = None) -> Tile:
    """Rows of a ref [length, head_dim]; the positions must lie inside."""

    def load(start: int, size: int, stop: int) -> jax.Array:
        columns = start + jnp.arange(size)
        inside = None if start + size <= stop else (columns < stop)[None, :]
        return plt.load(
            ref.at[positions[:, None], columns[None, :]], mask=inside, other=None if inside is None else 0.0
        )

    return tuple(load(*chunk) for chunk in pieces or chunks(ref.shape[-1]))


def store_tile(ref, positions: jax.Array, tile: Tile, pieces: list[Chunk] | None = None) -> None:
    """Leaves out the positions beyond the end."""
    for (start, size, stop), x in zip(pieces or chunks(ref.shape[-1]), tile, strict=True):
        columns = start + jnp.arange(size)
        inside = (positions < ref.shape[0])[:, None] & (columns < stop)[None, :]
        plt.store(ref.at[positions[:, None], columns[None, :]], x.astype(ref.dtype), mask=inside)


def empty_tile(rows: int, pieces: list[Chunk]) -> Tile:
    return tuple(jnp.zeros((rows, chunk.size), jnp.float32) for chunk in pieces)


class Keys(NamedTuple):
    """Arrays, or in a kernel their refs: keys, and what the keys of all heads go on with, if there is such a part."""

    own: Any  # [B, S, H, Dk]
    shared: Any = None  # [B or 1, S, 1, R]

    @property
    def own_chunks(self) -> list[Chunk]:
        return chunks(self.own.shape[-1])

    @property
    def shared_chunks(self) -> list[Chunk]:
        return [] if self.shared is None else chunks(self.shared.shape[-1], few=True)

    @property
    def query_chunks(self) -> list[Chunk]:
        """Of the query's head_dim, Dk + R."""
        Dk = self.own.shape[-1]
        return self.own_chunks + [Chunk(start + Dk, size, stop + Dk) for start, size, stop in self.shared_chunks]

    def load_own(self, positions: jax.Array) -> Tile:
        return load_tile(self.own, positions, self.own_chunks)

    def load_shared(self, positions: jax.Array) -> Tile:
        return () if self.shared is None else load_tile(self.shared, positions, self.shared_chunks)

    def load(self, positions: jax.Array) -> Tile:
        return self.load_own(positions) + self.load_shared(positions)


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
        streams = self.limits.dropout
        if streams is None:
            return None
        own, other = self.own_positions[:, None], positions[None, :]
        queries, keys = (own, other) if self.own_is_query else (other, own)
        if streams.first_key is not None:
            keys = keys + streams.first_key[0]
        return keep_mask(self.spec.dropout_rate, streams.rows[0], self.head, queries, keys)
