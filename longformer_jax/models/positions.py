"""Positions: Transformer-XL's relative term in factorised form, and rotary embeddings.

Angles are counted in 2**-32 turns with wrapping integers, so that the angle between two positions depends on their
distance alone, exactly, however long the stream; only the frequencies are rounded (by less than 1e-9 radians a step).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_BASE = 10_000.0

# How far a sinusoid that is put together from others may be from itself, all being between -1 and 1. bfloat16 rounds a
# cosine by up to 4e-3, over a hundred times as much; a float32 sum over hundreds of them is as far off.
BASIS_TOLERANCE = 3e-5
# How large the coefficients may be, in the mean of their squares; without a basis it is 1. What they multiply has been
# rounded, and its error grows by the square root of this at most.
BASIS_ENERGY = 1.5
# Of the least squares: the rest counts in the mean of its squares, and coefficients count so much in theirs.
_RIDGE = 1e-11
# Where distances times width are more, or the width alone, all frequencies are taken: choosing some would take seconds
# and gigabytes. sub_bands.py cuts such a band into shorter ones.
_LARGEST_TABLE, _LARGEST_WIDTH = 2**21, 2**12


def frequencies(width: int) -> np.ndarray:
    """10000 ** (-2k / width) radians a step, k < width / 2, in 2**-32 turns: uint32 [width // 2]."""
    radians_per_step = _BASE ** (-np.arange(0, width, 2) / width)
    return np.round(radians_per_step / (2 * np.pi) * 2**32).astype(np.uint32)


def angles(positions: jax.Array, turns_per_step: np.ndarray) -> jax.Array:
    """Angles at integer positions [...] of frequencies uint32 [F]: float32 [..., F], radians in [-pi, pi)."""
    positions = jnp.asarray(positions)
    turns = positions.astype(jnp.uint32)[..., None] * jnp.expand_dims(turns_per_step, range(positions.ndim))
    return turns.astype(jnp.int32).astype(jnp.float32) * (2 * np.pi / 2**32)


class Basis(NamedTuple):
    """A few of a sinusoid's frequencies, of which all others are combinations within a band.

    With R(m) = [sin(m w), cos(m w)] over all frequencies w of the sinusoid, and R_few over the kept ones only,
    R(m) = R_few(m) @ coefficients for every distance m of the band.
    """

    frequencies: np.ndarray  # uint32 [K], in 2**-32 turns a step
    coefficients: np.ndarray | None  # float32 [2 K, width]; None where all are kept

    @property
    def dim(self) -> int:
        """The width of R_few."""
        return 2 * len(self.frequencies)


@functools.lru_cache(maxsize=256)
def band_basis(width: int, reach: int) -> Basis:
    """The basis of Transformer-XL's sinusoid for distances from 0 to `reach`.

    Within a band the low frequencies hardly differ: over 512 steps, 63 of the 256 pairs of sines and cosines span all
    others. Greedy, in float64: the pair with most energy left comes next, and what it explains is taken away from the
    others, until the error at every distance is below `BASIS_TOLERANCE` and the coefficients below `BASIS_ENERGY`.

    Args:
      width: of the sinusoid, even.
      reach: the largest distance, in positions.
    """
    all_frequencies, pairs = frequencies(width), width // 2
    everything = Basis(all_frequencies, None)
    if (reach + 1) * width > _LARGEST_TABLE or width > _LARGEST_WIDTH:
        return everything
    angle = np.arange(reach + 1)[:, None] * (all_frequencies * (2 * np.pi / 2**32))
    sinusoid = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    products = sinusoid.T @ sinusoid / (reach + 1)
    # A pivoted Cholesky factorisation of the products; `rest` is what the kept columns leave of the diagonal.
    factor, rest, kept = np.zeros((width, 0)), products.diagonal(), np.zeros(pairs, bool)
    while True:
        new = np.where(kept, -1, rest[:pairs] + rest[pairs:]).argmax()
        kept[new] = True
        for column in (new, pairs + new):
            left = products[:, column] - factor @ factor[column]
            left /= np.sqrt(left[column] + _RIDGE)
            factor, rest = np.column_stack([factor, left]), rest - left**2
        if kept.all():
            return everything
        if rest.max() > (BASIS_TOLERANCE / 3) ** 2:
            continue
        few = np.tile(kept, 2)
        square = products[np.ix_(few, few)] + _RIDGE * np.eye(few.sum())
        coefficients = np.linalg.solve(square, products[few])
        error = np.abs(sinusoid - sinusoid[:, few] @ coefficients).max()
        if error <= BASIS_TOLERANCE and (coefficients**2).sum() <= BASIS_ENERGY * width:
            return Basis(all_frequencies[kept], coefficients.astype(np.float32))


def further(coefficients: np.ndarray | None, distance: int, width: int) -> np.ndarray | None:
    """The coefficients of a basis for distances that are all `distance` larger, with the same few frequencies.

    R(distance + m) is a rotation of R(m), each pair by its own angle: float32 [2 K, width], computed in float64.
    """
    if not distance:
        return coefficients
    sine, cosine = np.split((np.eye(width) if coefficients is None else coefficients).astype(np.float64), 2, axis=1)
    angle = (frequencies(width) * np.uint64(distance) % 2**32) * (2 * np.pi / 2**32)
    turned = [sine * np.cos(angle) + cosine * np.sin(angle), cosine * np.cos(angle) - sine * np.sin(angle)]
    return np.concatenate(turned, axis=1).astype(np.float32)


def relative_query(query: jax.Array, positions: jax.Array, turns_per_step: np.ndarray) -> jax.Array:
    """The query's half of Transformer-XL's position term (Dai et al. 2019, section 3.3, terms b and d).

    With R(m) = [sin(m w), cos(m w)] over the frequencies w, and sin and cos of a difference split into products,
    query . R(i - j) = relative_query(query, i) . relative_key(j).

    Args:
      query: [..., T, H, 2 F], W_r^T (q + v): the query seen from the sinusoid's side.
      positions: integers [T].
      turns_per_step: the frequencies, uint32 [F], as in `frequencies`.

    Returns:
      [..., T, H, 2 F] of query's dtype.
    """
    sine_part, cosine_part = jnp.split(query.astype(jnp.float32), 2, axis=-1)
    sine, cosine = _sine_and_cosine(query, positions, turns_per_step)
    rotated = [sine_part * sine + cosine_part * cosine, cosine_part * sine - sine_part * cosine]
    return jnp.concatenate(rotated, axis=-1).astype(query.dtype)


def relative_key(positions: jax.Array, turns_per_step: np.ndarray) -> jax.Array:
    """The key's half of the position term: integers [S], frequencies uint32 [F] -> float32 [S, 2 F]."""
    angle = angles(positions, turns_per_step)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), pairs (k, k + D / 2): [..., T, H, D] at integers [T]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    sine, cosine = _sine_and_cosine(x, positions, frequencies(x.shape[-1]))
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)


def _sine_and_cosine(x: jax.Array, positions: jax.Array, turns_per_step: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Of the angles at integers [T], for x [..., T, H, 2 F]: float32 [..., T, 1, F], every other axis being 1."""
    angle = jnp.expand_dims(angles(positions, turns_per_step)[:, None], range(x.ndim - 3))
    return jnp.sin(angle), jnp.cos(angle)
