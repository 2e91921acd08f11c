"""What the blockwise implementations promise about memory, read off the compiled program without running it."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from longformer_jax import banded_attention
from tests.attention.cases import IMPLEMENTATIONS

BLOCKWISE = [name for name in IMPLEMENTATIONS if name != "reference"]
SHORT, LONG, WINDOW, H, D = 4096, 32768, 256, 4, 64
KINDS: dict[str, dict] = {
    "plain": {},
    "everything": {"dilation": (1, 1, 2, 3), "causal": True, "key_offset": 5, "dropout_rate": 0.1},
}


def lowered(T: int, implementation: str, kind: str, backward: bool) -> jax.stages.Lowered:
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    inputs = (shape((1, T, H, D)),) * 3
    limits: dict = {}
    if kind == "everything":
        limits = {
            "key_mask": jax.ShapeDtypeStruct((1, T), bool),
            "segment_ids": jax.ShapeDtypeStruct((1, T), jnp.int32),
            "dropout_seed": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def forward(inputs: tuple, limits: dict):
        options: dict = {**KINDS[kind], **limits, "return_lse": True, "implementation": implementation}
        return banded_attention(*inputs, window=WINDOW, **options)

    def gradients(inputs: tuple, limits: dict, cotangents: tuple) -> tuple:
        return jax.vjp(lambda inputs: forward(inputs, limits), inputs)[1](cotangents)

    cotangents = shape((1, T, H, D)), shape((1, T, H))
    return jax.jit(gradients).lower(inputs, limits, cotangents) if backward else jax.jit(forward).lower(inputs, limits)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", BLOCKWISE)
def test_temporary_memory_grows_linearly(implementation: str, kind: str, direction: str) -> None:
    temporary = {}
    for T in (SHORT, LONG):
        analysis = lowered(T, implementation, kind, direction == "backward").compile().memory_analysis()
        assert analysis is not None
        temporary[T] = analysis.temp_size_in_bytes
    assert 0 < temporary[LONG] <= 1.02 * LONG / SHORT * temporary[SHORT]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", BLOCKWISE)
def test_no_array_is_larger_than_the_inputs(implementation: str, kind: str, direction: str) -> None:
    """Neither T x T nor T x window x head_dim, nor even the scores of one head: they are twice as large or more."""
    program = lowered(LONG, implementation, kind, direction == "backward").as_text()
    shapes = {tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", program)}
    assert (1, LONG, H, D) in shapes
    padding = 1.01  # dilated heads view lengths that their dilation divides
    assert max(map(math.prod, shapes)) <= padding * LONG * H * D < LONG * 2 * WINDOW
