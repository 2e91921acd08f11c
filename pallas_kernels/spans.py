"""Which rows of the other side can share a document with a block: what segment ids and key masks save of the band."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.spec import Limits
from pallas_kernels.walk import Walk

_LEAST, _MOST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


def visible_spans(walk: Walk, own: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> jax.Array:
    """For each program the first and last of the other side's blocks whose ids overlap with those of its own rows.

    Ids overlap where the ranges from the smallest to the largest do: exact for sorted ids, such as those of packed
    documents, and never too narrow.

    Args:
      walk: the walk over `own`.
      own, other: (ids int32 [B, length], which of them count, booleans [B, length]).

    Returns:
      int32 [B, number of different dilations in ascending order, 2, programs]: rows [start, stop), empty where start >=
      stop.
    """
    spans = []
    for dilation in sorted(set(walk.dilations)):
        head = walk.dilations.index(dilation)
        programs = dilation * walk.blocks_per_residue(dilation)
        block = walk.block(jnp.arange(programs), head)
        least, most = (x.reshape(len(x), -1) for x in _extremes(*own, dilation, walk.rows))  # [B, programs]
        other_least, other_most = _extremes(*other, dilation, walk.columns)  # [B, dilation, blocks]

        most_blocks = -(-(walk.rows + walk.left + walk.right) // walk.columns) + 1
        n = jnp.arange(min(most_blocks, other_least.shape[-1]))
        # Clipped, the candidates would repeat the last block: they are counted up to there only.
        candidate = block.start[:, None] // walk.columns + n
        index = (slice(None), block.other_residue[:, None], jnp.minimum(candidate, other_least.shape[-1] - 1))
        overlaps = (other_least[index] <= most[..., None]) & (other_most[index] >= least[..., None])
        overlaps &= candidate * walk.columns < block.stop[:, None]
        start = jnp.where(overlaps, candidate * walk.columns, walk.other_length).min(-1)
        stop = jnp.where(overlaps, (candidate + 1) * walk.columns, 0).max(-1)
        span = jnp.stack([start, stop], axis=1).astype(jnp.int32)  # [B, 2, programs]
        spans.append(jnp.pad(span, ((0, 0), (0, 0), (0, walk.programs - programs))))
    return jnp.stack(spans, axis=1)


def _extremes(ids: jax.Array, counts: jax.Array, dilation: int, size: int) -> tuple[jax.Array, jax.Array]:
    """[B, length] -> the smallest and largest id of every block of `size` rows of a residue, [B, dilation, blocks]."""

    def reduce(empty: int, reduction) -> jax.Array:
        x = jnp.where(counts, ids, empty)
        x = jnp.pad(x, ((0, 0), (0, -ids.shape[1] % (dilation * size))), constant_values=empty)
        return reduction(x.reshape(len(x), -1, size, dilation), axis=2).transpose(0, 2, 1)

    return reduce(_MOST, jnp.min), reduce(_LEAST, jnp.max)


def spans_of_limits(walk: Walk, limits: Limits, batch: int, own_is_query: bool) -> jax.Array | None:
    """`visible_spans` of key mask and documents; None where there are neither."""
    if limits.key_mask is None and limits.query_ids is None:
        return None
    lengths = (walk.length, walk.other_length) if own_is_query else (walk.other_length, walk.length)
    query_ids, key_ids = (
        jnp.zeros((batch, length), jnp.int32) if ids is None else ids
        for ids, length in zip((limits.query_ids, limits.key_ids), lengths, strict=True)
    )
    queries = query_ids, jnp.ones(query_ids.shape, bool)
    keys = key_ids, jnp.ones(key_ids.shape, bool) if limits.key_mask is None else limits.key_mask != 0
    return visible_spans(walk, queries, keys) if own_is_query else visible_spans(walk, keys, queries)
