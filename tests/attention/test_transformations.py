"""Every implementation under jit, vmap, grad, checkpoint and scan, with all that limits a query's view."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import banded_attention
from tests.attention.cases import (
    ALL_ARRAYS,
    IMPLEMENTATIONS,
    Case,
    assert_close,
    compiled,
    plain_attention,
    with_gradients,
)
from tests.attention.conftest import parameters

CASE = Case(
    B=2, T=300, window=40, dilation=(1, 2), masked=True, segments="shared", dropout_rate=0.2, dead_rows=True, R=3
)  # fmt: skip
# What maps or scans a kernel does all else, too.
rather_not_interpreted = pytest.mark.parametrize("implementation", parameters(IMPLEMENTATIONS, pytest.mark.exhaustive))


@pytest.fixture
def attend(implementation: str) -> Callable:
    return CASE.attend(implementation)


@functools.cache
def plain(implementation: str) -> Callable:
    """Compiled once for all tests that compare with it."""
    return compiled(CASE.attend(implementation))


def assert_all_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in expected:
        assert_close(found[name], expected[name], name)


@rather_not_interpreted
def test_eager_equals_jit(attend: Callable, implementation: str) -> None:
    jitted = plain(implementation)(CASE.inputs(), CASE.cotangents())
    outputs, pullback = jax.vjp(attend, *CASE.inputs())
    eager = dict(zip(jitted, map(np.asarray, (*outputs, *pullback(CASE.cotangents()))), strict=True))
    assert_all_close(eager, jitted)


def test_outside_of_jit_nothing_is_compiled_again(implementation: str, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(T=45, window=7, dilation=(1, 2), masked=True)

    def compiled_programs() -> int:
        caplog.clear()
        with jax.log_compiles():
            outputs, pullback = jax.vjp(case.attend(implementation), *case.inputs())
            jax.block_until_ready((outputs, pullback(case.cotangents())))
        return sum(record.message.startswith("Compiling") for record in caplog.records)

    # The first call loads the interpreter of kernels, after which JAX compiles once more.
    first, _, third = (compiled_programs() for _ in range(3))
    assert first > 0 and third == 0


@rather_not_interpreted
def test_checkpoint(attend: Callable, implementation: str) -> None:
    arrays = CASE.inputs(), CASE.cotangents()
    assert_all_close(with_gradients(jax.checkpoint(attend), *arrays), plain(implementation)(*arrays))


@rather_not_interpreted
@pytest.mark.parametrize("only", ["out", "lse"])
def test_gradient_through_one_output(only: str, attend: Callable, implementation: str) -> None:
    """The other output's cotangent is a zero that was never written down."""
    dout, dlse = CASE.cotangents()
    place, cotangents = {"out": (0, (dout, 0 * dlse)), "lse": (1, (0 * dout, dlse))}[only]

    def loss(*inputs: jax.Array) -> jax.Array:
        output = attend(*inputs)[place]
        return jnp.where(jnp.isfinite(output), output * cotangents[place], 0.0).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*CASE.inputs())
    expected = plain(implementation)(CASE.inputs(), cotangents)
    for name, gradient in zip(ALL_ARRAYS[2:], gradients, strict=True):
        assert_close(np.asarray(gradient), expected[name], name)


@pytest.mark.parametrize("shared_by", [(), pytest.param((CASE.B,), marks=pytest.mark.slow)])
def test_vmap_over_every_array(shared_by: tuple[int, ...], implementation: str) -> None:
    """Seeds, masks and segments are mapped too."""
    N, rng = 3, np.random.default_rng(5)
    B, T, H, D, R = CASE.B, CASE.T, CASE.H, CASE.Dk, CASE.R
    shapes = (B, T, H, D + R), (B, T, H, D), (B, T, H, D), (*shared_by, T, R), (B, T, H, D)
    query, key, value, shared, dout = (jnp.array(rng.normal(size=(N, *shape)), jnp.float32) for shape in shapes)
    dlse = jnp.array(rng.normal(size=(N, B, T, H)), jnp.float32)
    masks = jnp.array(rng.random((N, B, T)) < 0.5)
    segments = jnp.array(rng.integers(0, 2, (N, B, T)))
    seeds = jnp.arange(N)

    def run(query, key, value, shared, dout, dlse, mask, ids, seed):
        limits = {"key_mask": mask, "segment_ids": ids, "dropout_rate": 0.2, "dropout_seed": seed}
        options: dict = {**CASE.band, **limits, "return_lse": True, "implementation": implementation}
        attend = lambda shared, *arrays: banded_attention(*arrays, shared_key=shared, **options)  # noqa: E731
        outputs, pullback = jax.vjp(attend, shared, query, key, value)
        return *outputs, *pullback((dout, dlse))

    arguments = query, key, value, shared, dout, dlse, masks, segments, seeds
    mapped = jax.jit(jax.vmap(run))(*arguments)
    single = jax.jit(run)
    for n in range(N):
        for place, expected in enumerate(single(*(x[n] for x in arguments))):
            assert_close(np.asarray(mapped[place][n]), np.asarray(expected), f"output {place} of {n}")


@rather_not_interpreted
def test_vmap_over_queries_alone(attend: Callable) -> None:
    query, *others = CASE.inputs()
    queries = jnp.stack([query, -query])
    out, lse = jax.vmap(attend, in_axes=(0, None, None, None))(queries, *others)
    for n in range(2):
        expected = attend(queries[n], *others)
        assert_close(np.asarray(out[n]), np.asarray(expected[0]), "out")
        assert_close(np.asarray(lse[n]), np.asarray(expected[1]), "lse")


# In the last case plain float32 attention itself is off by 1.3e-2: dense softmax, twice differentiated, cancels there.
@pytest.mark.parametrize(
    ("implementation", "factor", "tolerance"),
    [("xla", 6, 1e-5), ("xla", 12, 1e-5), ("reference", 6, 1e-5), ("reference", 12, 1e-2)],
)
def test_second_derivatives(implementation: str, factor: int, tolerance: float) -> None:
    """In reverse mode, along a random direction, and where a hidden key's score is far above those that are seen."""
    case = Case(T=9, window=1)
    inputs = [factor * x for x in case.inputs()]
    direction = jax.random.normal(jax.random.key(0), inputs[0].shape)

    def slope(query: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda query: (case.attend(implementation)(query, *inputs[1:])[0] ** 2).sum())(query)
        return (gradient * direction).sum()

    with jax.enable_x64():
        query, key, value, along = (jnp.asarray(np.asarray(x), jnp.float64) for x in (*inputs, direction))
        gradient = jax.grad(lambda query: (plain_attention(case)(query, key, value)[0] ** 2).sum())
        step = 1e-6
        expected = np.asarray((gradient(query + step * along) - gradient(query - step * along)) / (2 * step))
    found = np.asarray(jax.grad(slope)(inputs[0]))
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_scan_over_layers(attend: Callable) -> None:
    """As a model does it: layers scanned, each one rematerialised, gradients of inputs and of parameters."""
    (_, x, _, shared), cotangent = CASE.inputs(), CASE.cotangents()[0]
    weights = jnp.array(np.random.default_rng(6).normal(size=(3, 1, 1, CASE.H, CASE.Dk)), jnp.float32)

    def layer(x: jax.Array, weight: jax.Array, attend: Callable = attend) -> tuple[jax.Array, None]:
        # A part only, as at the start of training: the rounding of each layer is not multiplied by the next.
        query = jnp.concatenate([x, x[..., : CASE.R]], axis=-1)
        return x + 0.1 * attend(query, x * weight, x, shared)[0], None

    def scanned(x: jax.Array, weights: jax.Array) -> jax.Array:
        return (jax.lax.scan(jax.checkpoint(layer), x, weights)[0] * cotangent).sum()

    def unrolled(x: jax.Array, weights: jax.Array) -> jax.Array:
        for weight in weights:
            x, _ = layer(x, weight, CASE.attend("reference"))
        return (x * cotangent).sum()

    found, expected = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(x, weights) for f in (scanned, unrolled))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(np.asarray(a), np.asarray(b), "loss or gradient")
