"""What a shared key promises beyond its numbers: it is never copied to the heads, and costs no gradient unasked."""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from longformer_jax import banded_attention
from longformer_jax.attention.api import IMPLEMENTATIONS
from tests.attention.test_linear_memory import BLOCKWISE

T, S, H, D, R = 1024, 4096, 4, 64, 96  # a copy of the shared key for each head would be larger than any input
SHAPES = (1, T, H, D + R), (1, S, H, D), (1, S, H, D), (S, R)


def shapes_in(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Of all arrays of a program and of the programs in it."""
    for equation in jaxpr.eqns:
        for x in (*equation.invars, *equation.outvars):
            yield getattr(getattr(x.aval, "inner_aval", x.aval), "shape", ())  # of a reference, of what it refers to
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name.endswith("_interpret")])
def test_kernels_do_not_copy_it_to_the_heads(implementation: str) -> None:
    """Forward and backward, by what is traced: neither an argument of a kernel nor in one."""
    T, S, H, D, R = 128, 256, 4, 64, 96

    def run(arrays: tuple, cotangent: jax.Array):
        def attend(query, key, value, shared_key):
            return banded_attention(
                query, key, value, window=32, causal=True, shared_key=shared_key, key_offset=S - T,
                implementation=implementation,
            )  # fmt: skip

        out, pullback = jax.vjp(attend, *arrays)
        return out, pullback(cotangent)

    shapes = (1, T, H, D + R), (1, S, H, D), (1, S, H, D), (S, R), (1, T, H, D)
    *arrays, cotangent = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    sizes = {math.prod(shape) for shape in shapes_in(jax.make_jaxpr(run)(tuple(arrays), cotangent).jaxpr)}
    assert T * H * (D + R) <= max(sizes) < S * H * R


@functools.cache
def compiled(implementation: str, arguments: int) -> jax.stages.Compiled:
    """Forward and backward, with the gradients of the first so many arrays."""

    def run(arrays: tuple, cotangent: jax.Array):
        def attend(*some: jax.Array) -> jax.Array:
            query, key, value, shared_key = *some, *arrays[len(some) :]
            return banded_attention(
                query, key, value, window=512, dilation=(1, 1, 2, 3), causal=True, shared_key=shared_key,
                key_offset=3000, implementation=implementation,
            )  # fmt: skip

        out, pullback = jax.vjp(attend, *arrays[:arguments])
        return out, pullback(cotangent)

    arrays = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES)
    return jax.jit(run).lower(arrays, jax.ShapeDtypeStruct((1, T, H, D), jnp.float32)).compile()


@pytest.mark.parametrize("implementation", BLOCKWISE)
def test_it_is_not_copied_to_the_heads(implementation: str) -> None:
    text = compiled(implementation, 4).as_text()
    sizes = {math.prod(map(int, shape.split(","))) for shape in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)}
    padding = 1.01  # dilated heads view lengths that their dilation divides
    assert S * H * D <= max(sizes) <= padding * S * H * D < S * H * R


@pytest.mark.parametrize("implementation", BLOCKWISE)
def test_a_gradient_that_nobody_asks_for_is_not_computed(implementation: str) -> None:
    products = {n: compiled(implementation, n).as_text().count(" dot(") for n in (3, 4)}
    dilations = 3  # each is a walk of its own, whose step has one product less
    assert products[3] == products[4] - dilations > 0
