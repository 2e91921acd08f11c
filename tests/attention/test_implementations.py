"""Every implementation against the dense reference, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax import banded_attention
from tests.attention.cases import (
    CASE,
    FIRST,
    IMPLEMENTATIONS,
    INTERPRETED,
    Case,
    assert_close,
    compiled,
    plain_attention,
    reference_with_gradients,
    with_gradients,
)
from tests.attention.conftest import parameters
from tests.attention.oracle import dense_attention, visibility

OTHERS = [name for name in IMPLEMENTATIONS if name != "reference"]
PROGRAMS = [
    pytest.param(
        case,
        *other.values,
        marks=[*other.marks, *[pytest.mark.slow] * (case.name not in FIRST)],
        id=f"{case.name}-{other.values[0]}",
    )
    for case in CASE.values()
    for other in parameters(OTHERS, *[pytest.mark.exhaustive] * (case.name not in FIRST))
]


def check_against_reference(case: Case, implementation: str, compiler_options: dict | None = None) -> None:
    found = compiled(case.attend(implementation), compiler_options)(case.inputs(), case.cotangents())
    for name, expected in reference_with_gradients(case).items():
        assert_close(found[name], expected, name)


@pytest.mark.parametrize(("case", "other"), PROGRAMS)
def test_equals_reference(case: Case, other: str) -> None:
    check_against_reference(case, other)


@pytest.mark.parametrize(
    "case",
    [
        Case("all_keys", B=2, T=700, S=300, window=1000, R=3, padded=True, dropout_rate=0.2),
        Case("all_queries", T=300, S=900, window=(1000, 900), dilation=(1, 2), masked=True),
    ],
    ids=lambda case: case.name,
)
def test_bands_that_reach_everything(case: Case) -> None:
    """Which `xla` holds without a ring."""
    check_against_reference(case, "xla")


# Lengths around the edges of tiles, and any.
LENGTHS = st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]) | st.integers(1, 400)
WINDOWS = st.integers(0, 12) | st.integers(0, 500)
STEPS = st.integers(1, 6)


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    causal = draw(st.booleans())
    pairs = st.tuples(WINDOWS, st.just(0) if causal else WINDOWS)
    return Case(
        B=draw(st.integers(1, 2)),
        T=draw(LENGTHS),
        S=draw(st.none() | LENGTHS),
        Dk=draw(st.integers(1, 9)),
        Dv=draw(st.integers(1, 9)),
        R=draw(st.just(0) | st.integers(1, 9)),
        shared_by=draw(st.sampled_from(["batch", "heads"])),
        window=draw(WINDOWS | pairs),
        dilation=draw(STEPS | st.tuples(STEPS, STEPS)),
        causal=causal,
        key_offset=draw(st.just(0) | st.integers(-300, 300)),
        dropout_rate=draw(st.sampled_from([0.0, 0.25])),
        masked=draw(st.booleans()),
        segments=draw(st.sampled_from([None, "pair"])),
    )


# As users compile; see tests/conftest.py.
OPTIMIZED = {"xla_backend_optimization_level": 3}


@pytest.mark.slow
@pytest.mark.parametrize("other", parameters(OTHERS, pytest.mark.exhaustive))
@settings(max_examples=12, deadline=None, derandomize=True)
@given(case=drawn_cases())
def test_equals_reference_on_drawn_cases(case: Case, other: str) -> None:
    check_against_reference(case, other, None if other == INTERPRETED else OPTIMIZED)


def test_the_default_is_one_of_the_implementations() -> None:
    inputs = CASE["causal"].inputs()
    default, *named = (banded_attention(*inputs, window=5, implementation=name) for name in (None, *IMPLEMENTATIONS))
    assert any(np.array_equal(default, out) for out in named)


# ---- Low precision ---------------------------------------------------------------------------------------------------


@functools.cache
def plain_low_precision(case: Case, dtype: str) -> dict[str, np.ndarray]:
    return with_gradients(plain_attention(case), case.inputs(dtype), case.cotangents(dtype))


@functools.cache
def float32_oracle(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """The reference in float32, of inputs and cotangents as `dtype` rounds them."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), (case.inputs(dtype), case.cotangents(dtype)))
    return with_gradients(case.attend("reference"), *rounded)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bidirectional", "bfloat16"),
        ("causal_walk", "float16"),
        ("dilation_per_head", "bfloat16"),
        ("segments", "float16"),
        ("shared_walk", "bfloat16"),
    ],
)
def test_low_precision_errs_little_more_than_plain_attention(name: str, dtype: str, implementation: str) -> None:
    case = CASE[name]
    found = with_gradients(case.attend(implementation), case.inputs(dtype), case.cotangents(dtype))
    plain, oracle = plain_low_precision(case, dtype), float32_oracle(case, dtype)
    assert_close(found["lse"], oracle["lse"], "lse")  # products of rounded inputs are exact in float32
    for array in found.keys() - {"lse"}:
        error, plain_error = (np.abs(x[array].astype(np.float32) - oracle[array]).max() for x in (found, plain))
        assert error <= 2 * plain_error, array


@pytest.mark.parametrize(("dtype", "shared_dim"), [("float32", 0), ("bfloat16", 4), ("float16", 4)])
def test_dtypes_and_shapes(dtype: str, shared_dim: int, implementation: str) -> None:
    case = Case(B=3, T=70, S=80, H=2, Dk=6, Dv=5, R=shared_dim)
    found = with_gradients(case.attend(implementation), case.inputs(dtype), case.cotangents(dtype))
    query, key, value = (3, 70, 2, 6 + shared_dim), (3, 80, 2, 6), (3, 80, 2, 5)
    shapes = {"out": (3, 70, 2, 5), "lse": (3, 70, 2), "dquery": query, "dkey": key, "dvalue": value}
    if shared_dim:
        shapes["dshared_key"] = 80, shared_dim
    assert {name: x.shape for name, x in found.items()} == shapes
    assert {name: str(x.dtype) for name, x in found.items()} == dict.fromkeys(shapes, dtype) | {"lse": "float32"}
    query, key, value, *shared = case.inputs(dtype)
    shared_key = shared[0] if shared else None
    out = banded_attention(query, key, value, shared_key=shared_key, **case.options, implementation=implementation)
    assert isinstance(out, jax.Array)
    assert (out.shape, out.dtype) == ((3, 70, 2, 5), dtype)


# ---- Rows that see nothing, and numbers that hurt --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masked", "masked_walk", "keys_behind", "keys_out_of_reach", "segments_pair"])
def test_rows_that_see_nothing(name: str, implementation: str) -> None:
    case = CASE[name]
    run = functools.partial(compiled(case.attend(implementation)), case.inputs())
    dout, dlse = case.cotangents()
    found = run((dout, dlse))
    dead = np.isneginf(found["lse"])
    assert dead.any()
    assert not found["out"][dead].any()
    assert not found["dquery"][dead].any()
    # Whatever comes back to these rows, as from exp(lse) or log(lse), has no way on.
    for cotangent in (0.0, jnp.inf, jnp.nan):
        again = run((dout, jnp.where(dead, cotangent, dlse)))
        for array in ("dquery", "dkey", "dvalue"):
            assert np.array_equal(again[array], found[array]), (array, cotangent)


def test_scores_far_beyond_the_range_of_exp(implementation: str) -> None:
    case = Case(T=150, window=40, scale=1000.0)
    visible = visibility(case.B, case.T, case.num_keys, case.H, **case.band)
    found = with_gradients(case.attend(implementation), case.inputs(), case.cotangents())
    out, lse = dense_attention(*case.inputs(), visible=visible, scale=case.scale)
    assert lse.max() > 5000
    # A score is rounded to eps * |score|, which is the relative error of its probability.
    rounding = 4 * np.finfo(np.float32).eps * lse.max()
    np.testing.assert_allclose(found["out"], out, atol=rounding)
    np.testing.assert_allclose(found["lse"], lse, atol=rounding)
    assert all(np.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_scores_as_low_as_float32_goes(implementation: str) -> None:
    """They are seen all the same, and the softmax is over them. (The kernels give NaN, as they take powers of 2.)"""
    query = jnp.array([-1e30, -3e38]).reshape(1, 2, 1, 1)
    value = jnp.array([5.0, 7.0]).reshape(1, 2, 1, 1)
    options = {"window": 0, "scale": 1.0, "implementation": implementation, "return_lse": True}
    out, lse = banded_attention(query, jnp.ones((1, 2, 1, 1)), value, **options)
    np.testing.assert_array_equal(out, value)
    np.testing.assert_allclose(lse[..., 0], query[..., 0, 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-40, 1e-46, 1e-30, 0.0, -1e-40])
def test_scales_that_are_hardly_any(scale: float, implementation: str) -> None:
    """float32 has no number for them, or no normal one; all keys that are seen then count the same."""
    case = Case(T=20, window=3, scale=scale)
    query, key, value = case.inputs()
    out, _ = case.attend(implementation)(query, key, value)
    expected, _ = Case(T=20, window=3).attend("reference")(jnp.zeros_like(query), key, value)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_nan_is_not_hidden(implementation: str) -> None:
    case = Case(T=150, window=40)
    query, key, value = case.inputs()
    out, lse = case.attend(implementation)(query.at[:, 77].set(jnp.nan), key, value)
    rows = np.arange(150) == 77
    assert np.isnan(out[:, rows]).all() and np.isnan(lse[:, rows]).all()
    expected = reference_with_gradients(case)
    assert_close(np.asarray(out)[:, ~rows], expected["out"][:, ~rows], "out")
    assert_close(np.asarray(lse)[:, ~rows], expected["lse"][:, ~rows], "lse")


def test_scores_of_minus_infinity_are_no_nan(implementation: str) -> None:
    """Even where a row's first blocks have no other."""
    case = Case(T=400, H=1, window=250, padded=True)
    query, key, value = case.inputs()
    arrays = jnp.abs(query), key.at[:, 64:192].set(-jnp.inf), value
    out, lse = case.attend(implementation)(*arrays)
    expected = case.attend("reference")(*arrays)
    assert np.isfinite(expected[0]).all()
    assert_close(np.asarray(out), np.asarray(expected[0]), "out")
    assert_close(np.asarray(lse), np.asarray(expected[1]), "lse")
