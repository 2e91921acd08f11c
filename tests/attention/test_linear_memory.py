"""What the blockwise implementations promise about memory, read off the compiled program without running it."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from longformer_jax import banded_attention
from tests.attention.cases import IMPLEMENTATIONS, INTERPRETED

BLOCKWISE = [name for name in IMPLEMENTATIONS if name not in ("reference", INTERPRETED)]
SHORT, LONG, WINDOW, H, D, LAYERS = 4096, 32768, 512, 4, 64, 2
KINDS: dict[str, dict] = {
    "plain": {},
    "everything": {"dilation": (1, 1, 2, 3), "causal": True, "key_offset": 5, "dropout_rate": 0.1},
}
every_program = pytest.mark.parametrize(
    ("implementation", "kind", "use"),
    [
        pytest.param(*program, marks=[pytest.mark.slow] if program[1:] == ("everything", "layers") else [])
        for program in itertools.product(BLOCKWISE, KINDS, ["forward", "backward", "layers"])
    ],
)


def lowered(T: int, implementation: str, kind: str, use: str) -> jax.stages.Lowered:
    """The op's forward, or its gradients, or those of a scan over layers that use it."""
    x, lse = jax.ShapeDtypeStruct((1, T, H, D), jnp.float32), jax.ShapeDtypeStruct((1, T, H), jnp.float32)
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

    def backward(inputs: tuple, limits: dict, cotangents: tuple) -> tuple:
        return jax.vjp(lambda inputs: forward(inputs, limits), inputs)[1](cotangents)

    def layers(x: jax.Array, limits: dict, cotangent: jax.Array) -> tuple:
        def scanned(x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda x, _: (x + forward((x, x, x), limits)[0], None), x, length=LAYERS)[0]

        return jax.vjp(scanned, x)[1](cotangent)

    if use == "forward":
        return jax.jit(forward).lower((x, x, x), limits)
    if use == "backward":
        return jax.jit(backward).lower((x, x, x), limits, (x, lse))
    return jax.jit(layers).lower(x, limits, x)


@every_program
def test_temporary_memory_grows_linearly(implementation: str, kind: str, use: str) -> None:
    temporary = {}
    for T in (SHORT, LONG):
        analysis = lowered(T, implementation, kind, use).compile().memory_analysis()
        assert analysis is not None
        temporary[T] = analysis.temp_size_in_bytes
    assert 0 < temporary[LONG] <= 1.02 * LONG / SHORT * temporary[SHORT]


@every_program
def test_no_array_is_larger_than_the_inputs(implementation: str, kind: str, use: str) -> None:
    """Neither T x T nor T x window x head_dim, nor even the scores or the mask of one head, T x window."""
    program = lowered(LONG, implementation, kind, use).as_text()
    shapes = {tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", program)}
    assert (1, LONG, H, D) in shapes
    inputs = LONG * H * D * (LAYERS if use == "layers" else 1)
    padding = 1.01  # dilated heads view lengths that their dilation divides
    assert max(map(math.prod, shapes)) <= padding * inputs < LONG * 2 * WINDOW


@pytest.mark.parametrize("dilation", [(97, 89, 83), (1, 2, 3, 5, 7, 11, 13)])
def test_dilations_without_a_common_divisor(dilation: tuple[int, ...]) -> None:
    """Lengths are filled up to a multiple of each head's own dilation, and not of the product of all."""
    x = jax.ShapeDtypeStruct((1, 1000, len(dilation), 8), jnp.float32)

    def total(*arrays: jax.Array) -> jax.Array:
        return banded_attention(*arrays, window=4, dilation=dilation, implementation="xla").sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x).as_text()
    shapes = [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"tensor<((?:\d+x)+)[a-z]", program)]
    assert x.size <= max(map(math.prod, shapes)) <= 4 * x.size  # of which are the scores of a block
