"""What documents and key masks save of the band."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.spans import visible_spans
from pallas_kernels.walk import Walk

B, T, S = 2, 210, 190
RNG = np.random.default_rng(0)
IDS = {
    "documents": [np.sort(RNG.integers(0, 5, (B, n)), axis=1) for n in (T, S)],
    "any": [RNG.integers(-3, 3, (B, n)) for n in (T, S)],
    "none_in_common": [np.zeros((B, T), int), np.ones((B, S), int)],
    "extremes": [np.full((B, n), np.iinfo(np.int32).max) for n in (T, S)],
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dilations", [(1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("over", ["queries", "keys"])
def test_spans_hold_every_visible_pair(ids: str, masked: bool, dilations: tuple[int, ...], over: str) -> None:
    query_ids, key_ids = IDS[ids]
    key_mask = RNG.random((B, S)) < 0.1 if masked else np.ones((B, S), bool)
    queries = jnp.array(query_ids, jnp.int32), jnp.ones((B, T), bool)
    keys = jnp.array(key_ids, jnp.int32), jnp.array(key_mask)
    walk = Walk(T, S, 40, 25, 6, dilations, 32, 16)
    seen = (query_ids[:, :, None] == key_ids[:, None, :]) & key_mask[:, None, :]
    if over == "keys":
        walk, queries, keys, seen = walk.transposed(16, 32), keys, queries, seen.transpose(0, 2, 1)
    spans = np.asarray(visible_spans(walk, queries, keys))
    assert spans.shape == (B, len(set(dilations)), 2, walk.programs)

    for head, dilation in enumerate(dilations):
        for program in range(dilation * walk.blocks_per_residue(dilation)):
            band = walk.block(program, head)
            own = np.arange(band.first, min(band.first + walk.rows, band.end)) * dilation + band.residue
            others = np.arange(band.start, band.stop)
            for b in range(B):
                start, stop = map(int, spans[b, sorted(set(dilations)).index(dilation), :, program])
                met = others[seen[b][np.ix_(own, others * dilation + band.other_residue)].any(0)]
                assert (met >= start).all() and (met < stop).all()
                narrowed = walk.block(program, head, (start, stop))
                assert 0 <= narrowed.count <= band.count
                if ids == "documents" and not masked and len(met):  # tight up to a block at either end
                    assert start > met[0] - walk.columns and stop <= met[-1] + walk.columns
                if ids == "none_in_common":
                    assert narrowed.count == 0
