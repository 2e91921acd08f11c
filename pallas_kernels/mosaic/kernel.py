"""What the two ways to run a kernel, `hopper.py` and `mma.py`, have in common."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic.items import OwnRows


class Kernel(NamedTuple):
    """What becomes of a warpgroup's own rows and, block after block, the other side's.

    Attributes:
      name: of the compiled kernel.
      scores: pairs (own array, other array), by number: their products over head_dim are the scores.
      sums: arrays of the other side, by number: their products with weights are added up.
      start: own -> state; `own` are references to its rows in shared memory.
      weigh: (rows, own, other, n, is_edge, scores, state) -> (weights, state, rescale). `rows` are `OwnRows`, `other`
        references to block n, `is_edge` says whether rows may not see all of it, `scores` are functions that give the
        products, float32 [64, columns], when these are done, each to be called once and in order; weights are like the
        products, one for each sum; rescale, float32 [64] or None, is for the sums over the blocks before.
      finish: (rows, sums, state) -> one array for each output.
    """

    name: str
    scores: tuple[tuple[int, int], ...]
    sums: tuple[int, ...]
    start: Callable
    weigh: Callable
    finish: Callable


class Arrays(NamedTuple):
    """In global memory: the own side's and the other side's, tiles first, then lines, and the outputs."""

    own: tuple[Any, ...]
    other: tuple[Any, ...]
    outputs: tuple[Any, ...]


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
