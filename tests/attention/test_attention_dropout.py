"""The dropout mask: the same in every implementation, and as good as independent coins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import banded_attention
from pallas_kernels.dropout import batch_streams, keep_mask
from tests.attention.cases import SEED, Case, assert_close, whole_and_part

RATE = 0.3
SHAPE = B, H, T, S = 2, 3, 512, 512
AXES = {"batch": 0, "head": 1, "query": 2, "key": 3}


def mask_of(seed: int, rate: float = RATE) -> np.ndarray:
    b, h, i, j = jnp.ogrid[:B, :H, :T, :S]
    return np.asarray(keep_mask(rate, batch_streams(jnp.int32(seed), b), h, i, j))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return mask_of(0)


def assert_like_coins(counts: np.ndarray, tosses: int, probability: float) -> None:
    """Counts of binomials: none is far out, and together they scatter as chi-square does (Laurent and Massart's bound
    on its tails, at e^-12)."""
    z = (np.asarray(counts, np.float64) - tosses * probability) / np.sqrt(tosses * probability * (1 - probability))
    assert np.abs(z).max() < 5.5
    assert abs((z**2).sum() - z.size) < 2 * np.sqrt(12 * z.size) + 24


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_fraction_kept(rate: float) -> None:
    kept = mask_of(0, rate)
    assert_like_coins(kept.sum(), kept.size, 1 - rate)


def test_nothing_is_dropped_at_rate_0() -> None:
    assert mask_of(0, 0.0).all()


@pytest.mark.parametrize("along", [(3,), (2,), (2, 3), (0, 1, 2), (0, 1, 3)])
def test_sums_along_axes(mask: np.ndarray, along: tuple[int, ...]) -> None:
    """Rows, columns, heads, and all rows and columns of a position."""
    assert_like_coins(mask.sum(along), int(np.prod([SHAPE[axis] for axis in along])), 1 - RATE)


def test_sums_along_diagonals(mask: np.ndarray) -> None:
    """The band's own direction: one key distance, all queries."""
    for distance in range(-20, 21):
        diagonal = np.diagonal(mask, distance, 2, 3)
        assert_like_coins(diagonal.sum(-1), diagonal.shape[-1], 1 - RATE)


def test_runs_of_bits(mask: np.ndarray) -> None:
    """Words of 8 neighbouring keys are as frequent as coins make them."""
    words, counts = np.unique(np.packbits(mask, axis=-1), return_counts=True)
    assert len(words) == 256
    ones = np.array([int(word).bit_count() for word in words])
    expected = counts.sum() * (1 - RATE) ** ones * RATE ** (8 - ones)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize("apart", [1, 2, 64, 128])
@pytest.mark.parametrize("axis", ["query", "key"])
def test_neighbours_are_independent(mask: np.ndarray, axis: str, apart: int) -> None:
    n = SHAPE[AXES[axis]]
    one, other = (mask.take(range(*bounds), AXES[axis]) for bounds in ((n - apart,), (apart, n)))
    assert_like_coins((one & other).sum((2, 3)), one[0, 0].size, (1 - RATE) ** 2)


@pytest.mark.parametrize("pair", ["batch", "head", "seed", "transpose", "batch and head", "diagonal"])
def test_planes_are_independent(mask: np.ndarray, pair: str) -> None:
    plane = mask[0, 0]
    other = {
        "batch": mask[1, 0],
        "head": mask[0, 1],
        "seed": mask_of(1)[0, 0],
        "transpose": np.where(np.eye(T), mask[1, 1], plane.T),
        "batch and head": mask[1, 1],
        "diagonal": np.roll(plane, (1, 1), (0, 1)),
    }[pair]
    assert_like_coins((plane & other).sum(), plane.size, (1 - RATE) ** 2)


# ---- In the op -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, (1, 3)])
def test_the_op_drops_what_the_mask_says(dilation: int | tuple[int, ...], implementation: str) -> None:
    """Values that are unit vectors show the probabilities themselves."""
    case = Case(B=2, T=200, S=210, Dv=210, window=60, dilation=dilation, key_offset=10, dropout_rate=RATE)
    query, key, _ = case.inputs()
    value = jnp.broadcast_to(jnp.eye(210)[None, :, None], (2, 210, 2, 210))

    def probabilities(**dropout) -> np.ndarray:
        out = banded_attention(query, key, value, **case.band, **dropout, implementation=implementation)
        return np.asarray(out).transpose(0, 2, 1, 3)

    whole = probabilities()
    dropped = probabilities(dropout_rate=RATE, dropout_seed=SEED)
    np.testing.assert_allclose(dropped, np.where(case.keep, whole / (1 - RATE), 0.0), rtol=1e-5)
    assert (whole > 0).mean() > 0.3


def test_a_part_draws_the_mask_of_the_whole(implementation: str) -> None:
    case = Case(B=2, T=90, window=10, dropout_rate=RATE)
    for whole, part in zip(*whole_and_part(case, implementation), strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-5)


def test_nothing_is_dropped_at_a_rate_of_almost_0(implementation: str) -> None:
    """Not the first probability of all either, where every counter is 0."""
    case = Case(B=2, T=40, window=(0, 0))
    (out, _), (value,) = (
        case.attend(implementation)(*case.inputs(), dropout_rate=1e-9, dropout_seed=0),
        case.inputs()[2:],
    )
    np.testing.assert_allclose(out, value, rtol=1e-6)


def test_lse_is_that_of_all_keys(implementation: str) -> None:
    case = Case(T=150, window=60)
    dropout = {"dropout_rate": RATE, "dropout_seed": 3}
    lse, dropped_lse = (case.attend(implementation)(*case.inputs(), **options)[1] for options in ({}, dropout))
    assert_close(np.asarray(dropped_lse), np.asarray(lse), "lse")


def test_mean_over_seeds_is_the_undropped(implementation: str) -> None:
    case = Case(T=70, window=10)
    seeds = jnp.arange(400)

    def attend(seed: jax.Array) -> jax.Array:
        return case.attend(implementation)(*case.inputs(), dropout_rate=RATE, dropout_seed=seed)[0]

    outs = np.asarray(jax.jit(jax.vmap(attend))(seeds), np.float64)
    assert len(np.unique(outs.reshape(len(seeds), -1), axis=0)) == len(seeds)
    expected, _ = case.attend(implementation)(*case.inputs())
    z = (outs.mean(0) - np.asarray(expected)) / (outs.std(0) / np.sqrt(len(seeds)))
    assert np.abs(z).max() < 5.5
    assert abs(z.std() - 1) < 0.2


def test_seeds_of_any_integer_type(implementation: str) -> None:
    case = Case(dropout_rate=RATE)

    def out(seed) -> np.ndarray:
        return np.asarray(case.attend(implementation)(*case.inputs(), dropout_seed=seed)[0])

    expected = out(jnp.int32(5))
    for seed in (5, np.int64(5), np.uint32(5), jnp.array(5, jnp.uint8)):
        np.testing.assert_array_equal(out(seed), expected, err_msg=repr(seed))
    large = 2**32 - 5
    for seed in (large, np.int64(large), np.uint32(large), -5):
        np.testing.assert_array_equal(out(seed), out(jnp.uint32(large)), err_msg=repr(seed))
    assert not np.array_equal(out(6), expected)
