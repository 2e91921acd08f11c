"""Which rows of the other side share a document with a block: what segment ids and key masks save of the band."""

from collections.abc import Callable
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.spec import NO_ID
from pallas_kernels.walk import Walk

_MOST = np.int32(np.iinfo(np.int32).max)


def visible_spans(walk: Walk, own_ids: jax.Array, other_ids: jax.Array) -> jax.Array:
    """For each program which of the other side's rows share a document with its own rows: with some, and with all.

    Both are found block by block. A block may share one with some where the ranges from the smallest to the largest id
    overlap: exact for sorted ids, such as those of packed documents, and never too narrow. It does with all where there
    is one id on both sides and no masked key; of several such ranges, the one beside the own rows or before these.

    Args:
      walk: over the own rows.
      own_ids, other_ids: as in `Limits`, int32 [B, length].

    Returns:
      int32 [B, number of different dilations in ascending order, 4, programs]: start, stop, clear_start, clear_stop. No
      own row sees what is outside of rows [start, stop); all see rows [clear_start, clear_stop), as far as ids go.
      Either is empty where its first number is not the smaller one.
    """
    spans = []
    for dilation in sorted(set(walk.dilations)):
        span = walk.columns * _block_spans(walk, dilation, own_ids, other_ids)
        spans.append(jnp.pad(span, ((0, 0), (0, 0), (0, walk.programs - span.shape[-1]))))
    return jnp.stack(spans, axis=1).astype(jnp.int32)


def _block_spans(walk: Walk, dilation: int, own_ids: jax.Array, other_ids: jax.Array) -> jax.Array:
    """[B, 4, programs], in blocks, for heads with this dilation."""
    programs = dilation * walk.blocks_per_residue(dilation)
    block = walk.block(jnp.arange(programs), walk.dilations.index(dilation))
    mine = jax.tree.map(lambda x: x.reshape(len(x), programs, 1), _Ids.of(own_ids, dilation, walk.rows))
    theirs = _Ids.of(other_ids, dilation, walk.columns)

    end = theirs.least.shape[-1]
    most_blocks = -(-(walk.rows + walk.left + walk.right) // walk.columns) + 1
    # Clipped, the candidates would repeat the last block: they are counted up to there only.
    n = (block.start[:, None] // walk.columns + jnp.arange(min(most_blocks, end))[None])[None]
    reached = n * walk.columns < block.stop[None, :, None]
    theirs = jax.tree.map(lambda x: x[:, block.other_residue[:, None], jnp.minimum(n[0], end - 1)], theirs)
    overlaps = reached & (theirs.least <= mine.most) & (theirs.most >= mine.least)
    start, stop = jnp.where(overlaps, n, end).min(-1), jnp.where(overlaps, n + 1, 0).max(-1)
    differs = reached & ~(mine.is_one & theirs.is_one & (theirs.most == mine.most))
    beside = jnp.maximum(block.first + block.shift, 0)[None, :, None] // walk.columns
    clear_start = jnp.where(differs & (n < beside), n + 1, 0).max(-1)
    clear_stop = jnp.where(differs & (n >= beside), n, end).min(-1)
    return jnp.stack([start, stop, clear_start, clear_stop], axis=1)


class _Ids(NamedTuple):
    """Of every block of rows of a residue, [B, dilation, blocks]: the least id but NO_ID, the most, and whether all are
    the same."""

    least: jax.Array
    most: jax.Array
    is_one: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, dilation: int, size: int) -> Self:
        """ids [B, length], in blocks of `size` rows."""

        def reduce(reduction: Callable, x: jax.Array, beyond: np.int32) -> jax.Array:
            x = jnp.pad(x, ((0, 0), (0, -ids.shape[1] % (dilation * size))), constant_values=beyond)
            return reduction(x.reshape(len(x), -1, size, dilation), axis=2).transpose(0, 2, 1)

        most = reduce(jnp.max, ids, NO_ID)
        return cls(
            least=reduce(jnp.min, jnp.where(ids == NO_ID, _MOST, ids), _MOST),
            most=most,
            is_one=reduce(jnp.min, ids, _MOST) == most,
        )
