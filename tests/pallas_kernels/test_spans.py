"""What documents and key masks save of the band."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.spans import visible_spans
from pallas_kernels.spec import Limits
from pallas_kernels.walk import Walk

B, T, S = 2, 210, 190
RNG = np.random.default_rng(0)
IDS = {
    "one": [np.full((B, n), 7) for n in (T, S)],
    "documents": [np.sort(RNG.integers(0, 5, (B, n)), axis=1) for n in (T, S)],
    "any": [RNG.integers(-3, 3, (B, n)) for n in (T, S)],
    "none_in_common": [np.zeros((B, T), int), np.ones((B, S), int)],
    "extremes": [np.full((B, n), np.iinfo(np.int32).max) for n in (T, S)],
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kept", [1.0, 0.99, 0.1])
@pytest.mark.parametrize("dilations", [(1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("over", ["queries", "keys"])
def test_spans_hold_every_visible_pair(ids: str, kept: float, dilations: tuple[int, ...], over: str) -> None:
    query_ids, key_ids = IDS[ids]
    key_mask = RNG.random((B, S)) < kept
    limits = Limits.of((B, T), jnp.array(key_mask), (jnp.array(query_ids, jnp.int32), jnp.array(key_ids, jnp.int32)))
    walk = Walk(T, S, 40, 25, 6, dilations, 32, 16)
    seen = (query_ids[:, :, None] == key_ids[:, None, :]) & key_mask[:, None, :]
    if over == "keys":
        walk, seen = walk.transposed(16, 32), seen.transpose(0, 2, 1)
    spans = np.asarray(visible_spans(walk, *limits.ids(over == "queries")))
    assert spans.shape == (B, len(set(dilations)), 4, walk.programs)
    unmasked = 0

    for head, dilation in enumerate(dilations):
        for program in range(dilation * walk.blocks_per_residue(dilation)):
            band = walk.block(program, head)
            own = np.arange(band.first, min(band.first + walk.rows, band.end)) * dilation + band.residue
            others = np.arange(band.start, band.stop)
            for b in range(B):
                span = tuple(map(int, spans[b, sorted(set(dilations)).index(dilation), :, program]))
                start, stop, clear_start, clear_stop = span
                pairs = seen[b][np.ix_(own, others * dilation + band.other_residue)]
                met = others[pairs.any(0)]
                assert (met >= start).all() and (met < stop).all()
                assert pairs[:, (others >= clear_start) & (others < clear_stop)].all()
                narrowed = walk.block(program, head, span)
                assert 0 <= narrowed.count <= band.count
                assert 0 <= narrowed.interior <= narrowed.edge
                unmasked += narrowed.edge - narrowed.interior
                if ids == "documents" and kept == 1 and len(met):  # tight up to a block at either end
                    assert start > met[0] - walk.columns and stop <= met[-1] + walk.columns
                if ids == "none_in_common":
                    assert narrowed.count == 0
                if ids in ("one", "extremes") and kept == 1:  # as if there were no ids
                    assert narrowed._replace(clear_start=band.clear_start, clear_stop=band.clear_stop) == band
    assert unmasked or (ids, kept) not in {("documents", 1.0), ("one", 1.0), ("one", 0.99)}


def test_padding_and_other_documents_leave_the_rest_without_masks() -> None:
    """Of 256 to either side: a document that ends within the band, keys that are masked at its begin."""
    walk = Walk(1024, 1024, 256, 256, 0, (1,), 64, 64)
    position = jnp.arange(1024)[None]
    limits = Limits.of((1, 1024), position >= 5, (position >= 640,) * 2)
    spans = np.asarray(visible_spans(walk, *limits.ids(own_is_query=True)))[0, 0]
    blocks = [walk.block(program, 0, tuple(map(int, spans[:, program]))) for program in range(16)]
    found = [(block.start, block.count, block.interior, block.edge) for block in blocks]
    assert found[:2] == [(0, 5, 0, 0), (0, 6, 1, 5)]  # masked keys beside the own rows, and before them
    assert found[5:8] == [(64, 9, 1, 8), (128, 8, 1, 8), (192, 7, 1, 7)]  # the document ends
    assert found[9:12] == [(320, 5, 1, 5), (640, 5, 0, 4), (640, 6, 0, 5)]  # the next one begins
