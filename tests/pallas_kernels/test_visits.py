"""Which blocks the kernels really read: NaN in a row reaches all programs that touch it, even where a mask hides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import banded_attention
from pallas_kernels.block_sizes import block_sizes
from tests.attention.cases import INTERPRETED

T, D, WINDOW = 512, 16, 40
POISONED = 200


@pytest.fixture(scope="module")
def arrays() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.array(rng.normal(size=(1, T, 1, D)), jnp.float32) for _ in range(4))


def rows_with_nan(x: jax.Array) -> np.ndarray:
    return np.flatnonzero(np.isnan(np.asarray(x)).any((0, 2, 3)))


def blocks_beside(kernel: str, left: int, right: int) -> np.ndarray:
    """Rows of the blocks that visit the poisoned row of the other side, if own row r sees r - left ... r + right."""
    sizes = block_sizes("", kernel, "float32", D, D, left + right + 1)
    found = []
    for first in range(0, T, sizes.rows):
        start = max(0, first - left)
        stop = min(T, first + sizes.rows + right)
        if start <= POISONED < min(stop, start + -(-(stop - start) // sizes.columns) * sizes.columns):
            found.append(np.arange(first, first + sizes.rows))
    return np.concatenate(found)


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
@pytest.mark.parametrize("causal", [False, True])
def test_only_blocks_that_meet_the_band_are_visited(kernel: str, causal: bool, arrays: tuple) -> None:
    query, key, value, dout = arrays
    options: dict = {"window": WINDOW, "causal": causal, "implementation": INTERPRETED}

    def attend(query, key, value):
        return banded_attention(query, key, value, **options)

    def poison(x: jax.Array) -> jax.Array:
        return x.at[:, POISONED].set(jnp.nan)

    if kernel == "forward":
        touched = attend(query, key, poison(value))
    elif kernel == "dkdv":  # through dout, as queries would show in lse
        touched = jax.vjp(attend, query, key, value)[1](poison(dout))[2]
    else:  # dq reads the value of each key: its NaN must not come from the forward's out
        _, pullback = jax.vjp(lambda q, k: attend(q, k, value), query, key)
        clean = pullback(dout)[0]
        assert not len(rows_with_nan(clean))
        touched = jax.vjp(attend, query, key, poison(value))[1](dout)[0]
    right = 0 if causal else WINDOW
    bounds = (right, WINDOW) if kernel == "dkdv" else (WINDOW, right)
    assert np.array_equal(rows_with_nan(touched), blocks_beside(kernel, *bounds))


def test_documents_that_share_no_block_are_skipped(arrays: tuple) -> None:
    query, key, value, _ = arrays
    sizes = block_sizes("", "forward", "float32", D, D, 2 * T + 1)
    assert T % (2 * sizes.rows) == 0
    ids = jnp.arange(T)[None] // (T // 2)  # two documents, each of whole blocks, in a window that sees everything
    value = value.at[:, POISONED].set(jnp.nan)
    out = banded_attention(query, key, value, window=T, segment_ids=ids, implementation=INTERPRETED)
    assert np.array_equal(rows_with_nan(out), np.arange(T // 2))


def test_masked_keys_are_skipped(arrays: tuple) -> None:
    query, key, value, _ = arrays
    padding = jnp.arange(T)[None] < T // 4
    value = value.at[:, T // 2 :].set(jnp.nan)
    out = banded_attention(query, key, value, window=T, key_mask=padding, implementation=INTERPRETED)
    assert not len(rows_with_nan(out))
