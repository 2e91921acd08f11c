"""Two attentions over parts of the keys, merged, against one softmax over all of them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, banded_attention, merge_attention
from tests.attention.cases import Case, assert_close, with_gradients

CASE = Case(B=2, T=60, window=9, key_offset=15)
# Which keys the first attention sees; the second sees the rest. With the offset the last rows see nothing at all.
PARTS = {
    "mixed": np.random.default_rng(8).random((2, 60)) < 0.5,
    "halves": np.broadcast_to(np.arange(60) < 30, (2, 60)),
    "first alone": np.ones((2, 60), bool),
    "second alone": np.zeros((2, 60), bool),
}


def attention(**options) -> Callable:
    return functools.partial(banded_attention, **{**CASE.band, **options}, return_lse=True, implementation="reference")


def assert_equal_attentions(found: Callable, expected: Callable) -> dict[str, np.ndarray]:
    one, other = (with_gradients(attend, CASE.inputs(), CASE.cotangents()) for attend in (found, expected))
    for name in one:
        assert_close(one[name], other[name], name)
    return one


@pytest.mark.parametrize("part", PARTS)
def test_equals_one_softmax(part: str) -> None:
    one, other = attention(key_mask=PARTS[part]), attention(key_mask=~PARTS[part])
    found = assert_equal_attentions(lambda *inputs: merge_attention(*one(*inputs), *other(*inputs)), attention())
    dead = np.isneginf(found["lse"])
    assert dead.any() and not found["out"][dead].any()


def test_both_see_nothing() -> None:
    away = attention(key_offset=1000)
    found = assert_equal_attentions(lambda *inputs: merge_attention(*away(*inputs), *away(*inputs)), away)
    assert np.isneginf(found["lse"]).all()
    assert not any(found[name].any() for name in ("out", "dquery", "dkey", "dvalue"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_hidden(value: float) -> None:
    out, lse = jnp.zeros((1, 2, 1, 3)), jnp.zeros((1, 2, 1)).at[0, 0].set(value)
    merged, merged_lse = merge_attention(out, lse, out, jnp.zeros((1, 2, 1)))
    assert np.isnan(merged[0, 0]).all() and np.isnan(merged_lse[0, 0]).all()
    assert np.isfinite(merged[0, 1]).all() and np.isfinite(merged_lse[0, 1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: jnp.zeros((2, 3, 1))}, r"lse has the shape \[2, 3, 1\]; expected \[2, 3, 4\], as"),
        ({2: jnp.zeros((2, 1, 4, 5))}, r"other_out has the shape \[2, 1, 4, 5\]; expected \[2, 3, 4, 5\], as"),
        ({0: jnp.zeros((3, 4, 5))}, r"out has the shape \[3, 4, 5\]; expected an array \[B, T, H, Dv\]"),
        ({3: [0.0]}, r"other_lse is a list; expected an array \[B, T, H\]"),
        ({4: jnp.zeros((2, 3, 4, 5))}, "more has 1 arrays; expected an out and a lse in turn"),
        ({4: jnp.zeros((2, 3, 4, 5)), 5: jnp.zeros((2, 3, 1))}, r"more\[1\] has the shape \[2, 3, 1\]; expected"),
    ],
)
def test_arrays_that_are_no_pairs(change: dict[int, jax.Array], message: str) -> None:
    out, lse = jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3, 4))
    arrays = dict(enumerate((out, lse, out, lse))) | change
    with pytest.raises(InputError, match=f"^{message}"):
        merge_attention(*arrays.values())


def test_a_chain_of_merges() -> None:
    thirds = [np.broadcast_to(np.arange(60) % 3 == n, (2, 60)) for n in range(3)]

    def merged(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return functools.reduce(
            lambda one, other: merge_attention(*one, *other), [attention(key_mask=mask)(*inputs) for mask in thirds]
        )

    def at_once(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        return merge_attention(*(x for mask in thirds for x in attention(key_mask=mask)(*inputs)))

    assert_equal_attentions(merged, attention())
    assert_equal_attentions(at_once, attention())


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_parts_of_a_window_with_dropout(implementation: str) -> None:
    """A window cut into three, with queries that see nothing of the farther ones: the masks of the one call, too."""
    case = Case(T=330, window=150, causal=True, dilation=2, dropout_rate=0.3)
    options = {"dilation": 2, "dropout_rate": 0.3, "dropout_seed": 5, "return_lse": True}

    def parts(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        bands = [
            {"window": (last - first, 0), "key_offset": -2 * first} for first, last in ((0, 49), (50, 99), (100, 150))
        ]
        found = [banded_attention(*inputs, **band, **options, implementation=implementation) for band in bands]
        return merge_attention(*found[0], *found[1], *found[2])

    whole = functools.partial(banded_attention, window=150, causal=True, **options, implementation="reference")
    one, other = (with_gradients(attend, case.inputs(), case.cotangents()) for attend in (parts, whole))
    for name in one:
        assert_close(one[name], other[name], name)


def test_scores_far_beyond_the_range_of_exp() -> None:
    out, other = jnp.ones((1, 3, 1, 2)), jnp.full((1, 3, 1, 2), 5.0)
    lse = jnp.array([1e4, -1e4, 1e4])[None, :, None]
    merged, merged_lse = merge_attention(out, lse, other, jnp.array([-1e4, 1e4, 1e4])[None, :, None])
    np.testing.assert_allclose(merged[0, :, 0, 0], [1, 5, 3])
    np.testing.assert_allclose(merged_lse[0, :, 0], [1e4, 1e4, 1e4 + np.log(2)])


def test_gradients_of_rows_that_saw_nothing() -> None:
    """Zeros, not NaN, for the four arrays themselves."""
    out = jnp.array(np.random.default_rng(9).normal(size=(1, 3, 1, 4)), jnp.float32)
    lse = jnp.array([-jnp.inf, 0.5, -jnp.inf])[None, :, None]
    other_lse = jnp.array([0.5, -jnp.inf, -jnp.inf])[None, :, None]
    _, pullback = jax.vjp(merge_attention, out, lse, -out, other_lse)
    dout, dlse, dother, dother_lse = pullback((jnp.ones_like(out), jnp.ones_like(lse)))
    np.testing.assert_array_equal(dout[0, :, 0, 0], [0, 1, 0])
    np.testing.assert_array_equal(dother[0, :, 0, 0], [1, 0, 0])
    np.testing.assert_array_equal(dlse[0, :, 0], [0, 1, 0])
    np.testing.assert_array_equal(dother_lse[0, :, 0], [1, 0, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype: str) -> None:
    attentions = [attention(key_mask=mask)(*CASE.inputs(dtype)) for mask in (PARTS["mixed"], ~PARTS["mixed"])]
    out, lse = merge_attention(*attentions[0], *attentions[1])
    assert (out.dtype, lse.dtype) == (dtype, jnp.float32)
    # One rounding of the result after one of each part.
    whole, whole_lse = attention()(*(x.astype(jnp.float32) for x in CASE.inputs(dtype)))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(out.astype(jnp.float32), whole, atol=2 * eps * float(jnp.abs(whole).max()))
    assert_close(np.asarray(lse), np.asarray(whole_lse), "lse")
