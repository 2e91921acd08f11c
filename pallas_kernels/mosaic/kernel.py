"""What the two ways to run a kernel, `hopper.py` and `mma.py`, have in common."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.mosaic.items import OwnRows


class Sum(NamedTuple):
    """Products of weights, by number, and columns [start, start + size) of an array of the other side."""

    weights: int
    array: str
    start: int
    size: int

    def of(self, other: dict[str, Any]) -> Any:
        """The reference to the columns."""
        ref = other[self.array]
        return ref if self.size == ref.shape[-1] else ref.at[:, pl.ds(self.start, self.size)]


class Kernel(NamedTuple):
    """What becomes of a warpgroup's own rows and, block after block, the other side's.

    Attributes:
      name: of the compiled kernel.
      scores: for each score the pairs (own array, other array) whose products over head_dim it is the sum of.
      sums: what is added up.
      start: own -> state; `own` are references to its rows in shared memory, by name.
      weigh: (rows, own, other, n, is_edge, scores, state) -> (weights, state, rescale). `rows` are `OwnRows`, `other`
        references to block n, `is_edge` says whether rows may not see all of it, `scores` are functions that give the
        scores, float32 [64, columns], when these are done, each to be called once and in order; weights are like the
        scores; rescale, float32 [64] or None, is for the sums over the blocks before.
      finish: (rows, sums, state) -> one array for each output.
    """

    name: str
    scores: tuple[tuple[tuple[str, str], ...], ...]
    sums: tuple[Sum, ...]
    start: Callable
    weigh: Callable
    finish: Callable


class Arrays(NamedTuple):
    """In global memory, tiles and lines: the own side's and the other side's by name, and the outputs."""

    own: dict[str, Any]
    other: dict[str, Any]
    outputs: tuple[Any, ...]


def query_key_pairs(own: dict[str, Any], other: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """The pairs (own array, other array) whose products make up query . key: a shared key has one of its own."""
    both = ("query", "key"), ("query_shared", "shared_key")
    pairs = (pair if pair[0] in own else pair[::-1] for pair in both)
    return tuple((mine, theirs) for mine, theirs in pairs if mine in own and theirs in other)


def over_blocks(rows: OwnRows, body: Callable, first: Any, carry: Any) -> Any:
    """Carries through body(is_edge, n, carry), for the blocks from `first` on that some row sees."""
    begin, interior, edge, end = rows.bounds

    def part(number, carry):
        """Masked blocks, and then those inside the band, of which the second part has none."""
        is_last = number > 0
        start, stop = jnp.where(is_last, edge, begin), jnp.where(is_last, end, interior)
        carry = lax.fori_loop(jnp.maximum(first, start), stop, functools.partial(body, True), carry)
        start, stop = jnp.maximum(first, interior), jnp.where(is_last, interior, edge)
        return lax.fori_loop(start, stop, functools.partial(body, False), carry)

    if not rows.item.schedule.tiling.unmasked_loop:
        return lax.fori_loop(first, end, functools.partial(body, True), carry)
    # A loop of two, and of a length that the compiler does not know, as it would make three loops of it.
    return lax.fori_loop(0, jnp.where(edge < end, 2, 1), part, carry)
