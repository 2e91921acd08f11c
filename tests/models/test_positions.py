"""Positions against float64 and complex numbers."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax.models.positions import (
    BASIS_ENERGY,
    BASIS_TOLERANCE,
    angles,
    band_basis,
    frequencies,
    relative_key,
    relative_query,
    rotate,
)
from tests.models import dense

ROUNDING = 5e-7  # of a float32 in [-pi, pi), twice
INT32 = st.integers(-(2**31), 2**31 - 1)


def int32(*values: int) -> np.ndarray:
    """Integers that wrap around as a stream's position does."""
    return np.array([value % 2**32 for value in values], np.uint32).astype(np.int32)


def on_circle(difference: np.ndarray) -> np.ndarray:
    """Distance to the nearest whole turn, radians."""
    return np.abs((difference + np.pi) % (2 * np.pi) - np.pi)


@pytest.mark.parametrize("width", [2, 6, 64, 512])
def test_angles_are_positions_times_frequencies(width: int) -> None:
    positions = int32(*range(-40, 40), 1_000, 30_000, 1_000_000, -1_000_000)
    ours = np.asarray(angles(jnp.asarray(positions), frequencies(width)), np.float64)
    assert ours.shape == (len(positions), width // 2)
    assert np.all((-np.pi - ROUNDING <= ours) & (ours <= np.pi + ROUNDING))
    truth = positions[:, None] * dense.frequencies(width)
    assert np.all(on_circle(ours - truth) <= 1e-9 * np.abs(positions)[:, None] + ROUNDING)


@settings(deadline=None, max_examples=200)
@given(i=INT32, distance=INT32)
def test_angle_between_positions_is_a_function_of_their_distance(i: int, distance: int) -> None:
    """Also a thousand million characters on, and where the position wraps around."""
    positions = int32(i, i - distance, distance)
    first, second, between = np.asarray(angles(jnp.asarray(positions), frequencies(64)), np.float64)
    assert on_circle(first - second - between).max() <= 2 * ROUNDING


@pytest.mark.parametrize("start", [0, 1_000_000, 2**31 - 20, -(2**31) + 3])
@pytest.mark.parametrize("width", [2, 64])
def test_relative_products_are_those_of_the_sinusoid_of_the_distance(start: int, width: int) -> None:
    query_positions, key_positions = int32(*range(start, start + 40)), int32(*range(start - 300, start + 40))
    query = np.random.default_rng(0).standard_normal((2, 40, 3, width)).astype(np.float32)
    rotated = relative_query(jnp.asarray(query), jnp.asarray(query_positions), frequencies(width))
    assert rotated.dtype == jnp.float32
    key = relative_key(jnp.asarray(key_positions), frequencies(width))
    assert key.dtype == jnp.float32 and key.shape == (340, width)
    ours = np.einsum("bthr,sr->bhts", rotated, key, dtype=np.float64)
    distance = np.arange(40)[:, None] - np.arange(-300, 40)
    truth = np.einsum("bthr,tsr->bhts", query.astype(np.float64), dense.sinusoid(distance, width))
    size = np.linalg.norm(query, axis=-1).max() * np.sqrt(width / 2)
    assert np.abs(ours - truth).max() <= 1e-6 * size


@pytest.mark.parametrize("start", [0, 32_256 - 512, 1_000_000])
def test_bfloat16_products_are_as_good_late_in_a_text(start: int) -> None:
    """Root mean square error at most twice that of the unfactorised sinusoid of the distance in bfloat16."""
    width, positions = 64, np.arange(start, start + 512)
    query = jnp.asarray(np.random.default_rng(0).standard_normal((1, 512, 1, width)), jnp.bfloat16)
    rotated = relative_query(query, jnp.asarray(positions), frequencies(width))
    assert rotated.dtype == jnp.bfloat16
    key = relative_key(jnp.asarray(positions), frequencies(width)).astype(jnp.bfloat16)
    ours = np.einsum("bthr,sr->bhts", *(np.asarray(x, np.float64) for x in (rotated, key)))
    exact = dense.sinusoid(positions[:, None] - positions, width)
    rounded = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)
    truth, plain = (np.einsum("bthr,tsr->bhts", np.asarray(query, np.float64), x) for x in (exact, rounded))
    assert np.sqrt(np.mean((ours - truth) ** 2)) <= 2 * np.sqrt(np.mean((plain - truth) ** 2))


# ---- The basis of a band ---------------------------------------------------------------------------------------------


def basis_faults(width: int, reach: int) -> list[str]:
    """What is wrong with a basis, by float64: its error over all distances, and the size of its coefficients."""
    basis = band_basis(width, reach)
    if basis.coefficients is None:
        assert np.array_equal(basis.frequencies, frequencies(width))
        return []
    kept, coefficients = basis.frequencies, basis.coefficients.astype(np.float64)
    assert coefficients.shape == (2 * len(kept), width) and np.isin(kept, frequencies(width)).all()
    distance = np.arange(reach + 1)[:, None]
    few, full = (
        np.concatenate([f(distance * (turns * (2 * np.pi / 2**32))) for f in (np.sin, np.cos)], axis=1)
        for turns in (kept, frequencies(width))
    )
    error, energy = np.abs(few @ coefficients - full).max(), (coefficients**2).sum() / width
    faults = {f"error {error} at reach {reach}": error > 1.1 * BASIS_TOLERANCE}  # coefficients are rounded to float32
    faults |= {f"energy {energy} at reach {reach}": energy > BASIS_ENERGY}
    return [name for name, found in faults.items() if found]


@pytest.mark.parametrize("width", [2, 6, 32, 64, 512])
def test_a_few_sinusoids_span_all_within_a_band(width: int) -> None:
    reaches = (0, 1, 2, 3, 5, 8, 17, 32, 100, 255, 512, 1023)
    assert not [fault for reach in reaches for fault in basis_faults(width, reach)]


@pytest.mark.slow
@pytest.mark.parametrize("reaches", [range(1, 700, 6), range(700, 4_096, 97)])
def test_a_few_sinusoids_span_all_within_longer_bands(reaches: Sequence[int]) -> None:
    assert not [fault for reach in reaches for fault in basis_faults(512, reach)]


def test_dimensions_of_bands() -> None:
    """What is appended to a head of the paper's small model, whose sinusoid has 512 dimensions."""
    most = {32: 24, 128: 56, 512: 128, 1024: 170, 1600: 192}
    dimensions = {reach: band_basis(512, reach).dim for reach in most}
    assert not {reach: found for reach, found in dimensions.items() if found > most[reach]}


def test_all_frequencies_are_their_own_basis() -> None:
    """Where a narrow sinusoid has none to spare, and where choosing some would take too long."""
    for width, reach in ((2, 100), (512, 2**12), (2**20, 1)):
        basis = band_basis(width, reach)
        np.testing.assert_array_equal(basis.frequencies, frequencies(width))
        assert basis.coefficients is None and basis.dim == width


def test_low_precision_queries_are_rounded_once() -> None:
    query = jnp.asarray(np.random.default_rng(0).standard_normal((1, 30, 2, 64)), jnp.bfloat16)
    positions = jnp.arange(1_000_000, 1_000_030)
    for function in (functools.partial(relative_query, turns_per_step=frequencies(64)), rotate):
        ours = function(query, positions)
        assert ours.dtype == jnp.bfloat16
        exact = function(query.astype(jnp.float32), positions)
        np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("start", [0, 1_000_000, 2**31 - 20])
def test_rotary_is_a_turn_in_the_complex_plane(start: int) -> None:
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 2, 40, 3, 16)).astype(np.float32)
    positions = jnp.asarray(int32(*range(start, start + 40)))
    ours = np.einsum("bthd,bshd->bhts", *(np.asarray(rotate(x, positions), np.float64) for x in (query, key)))

    query, key = (x[..., :8] + 1j * x[..., 8:] for x in (query.astype(np.complex128), key))
    distance = np.arange(40)[:, None] - np.arange(40)
    turn = np.exp(1j * distance[..., None] * dense.frequencies(16))
    truth = np.einsum("bthd,bshd,tsd->bhts", query, key.conj(), turn).real
    assert np.abs(ours - truth).max() <= 1e-6 * np.abs(truth).max()


def test_rotary_is_complex_multiplication() -> None:
    x = np.random.default_rng(0).standard_normal((1, 50, 2, 16)).astype(np.float32)
    truth = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * np.arange(50)[:, None, None] * dense.frequencies(16))
    ours = np.asarray(rotate(jnp.asarray(x), jnp.arange(50)))
    np.testing.assert_allclose(ours[..., :8] + 1j * ours[..., 8:], truth, atol=2e-6)
