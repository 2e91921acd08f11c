"""Every case of the op's suite lowers for CUDA on a machine without a GPU."""

import functools
import itertools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from longformer_jax import banded_attention
from tests.attention.cases import CASE

H100 = "NVIDIA H100 80GB HBM3"


def lowered(f: Callable, *arguments, kind: str = H100, platform: str = "gpu") -> str:
    device = AbstractDevice(device_kind=kind, num_cores=132, platform=platform)
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def kernels(text: str) -> list[str]:
    return sorted(re.findall(r'name = "(banded_attention\w+)"', text))


def value_and_gradients(attend: Callable) -> Callable:
    def run(inputs: tuple, cotangents: tuple) -> tuple:
        outputs, pullback = jax.vjp(attend, *inputs)
        return outputs, pullback(cotangents)

    return run


DTYPES = ["bfloat16", "float32", "bfloat16", "float16"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*zip(CASE, itertools.cycle(DTYPES), strict=False)])
def test_every_case_lowers(name: str, dtype: str) -> None:
    case = CASE[name]
    text = lowered(value_and_gradients(case.attend("pallas_triton")), case.inputs(dtype), case.cotangents(dtype))
    assert text.count("banded_attention_dkdv") and text.count("banded_attention_dq")
    assert (text.count("banded_attention_dshared") > 0) == (case.R > 0)


SHAPE = jax.ShapeDtypeStruct((2, 100, 4, 64), jnp.bfloat16)


def attend(query, key, value, **options):
    return banded_attention(query, key, value, window=20, **options)


def shared_attend(query, key, value, shared_key, **options):
    return attend(query, key, value, shared_key=shared_key, **options)


def test_the_kernels_name_what_they_need() -> None:
    sentence = (
        r"^implementation 'pallas_triton' is not available here: its kernels need an NVIDIA GPU; this device is cpu "
    )
    with pytest.raises(NotImplementedError, match=sentence):
        jax.eval_shape(lambda x: attend(x, x, x, implementation="pallas_triton"), SHAPE)
    large = jax.ShapeDtypeStruct((2, 100, 4, 264), jnp.bfloat16)
    sentence = r": head_dim is 264 of query and key, 64 of value; the kernels take at most 256"
    with pytest.raises(NotImplementedError, match=sentence):
        lowered(lambda *x: attend(*x, implementation="pallas_triton"), large, large, SHAPE)
    query, shared = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 100, 4, 400), (100, 336)))
    sentence = r": head_dim is 64 of key, 336 of shared_key; the kernels take at most 128 and 256"
    with pytest.raises(NotImplementedError, match=sentence):
        lowered(lambda *x: shared_attend(*x, implementation="pallas_triton"), query, SHAPE, SHAPE, shared)
    sentence = r": head_dim of shared_key is 336; the kernels take up to 192"
    for name in ("pallas_mosaic_gpu", "pallas_mosaic_mma"):
        with pytest.raises(NotImplementedError, match=sentence):
            lowered(functools.partial(shared_attend, implementation=name), query, SHAPE, SHAPE, shared)


def moved(ours: Callable, *arrays) -> list[tuple[str, str]]:
    """Operations that may copy an array of numbers, and their results' types, of forward and backward."""
    text = lowered(value_and_gradients(ours), arrays, SHAPE)
    moves = re.findall(
        r"stablehlo\.(transpose|pad|concatenate|gather|slice|dynamic_slice|reshape)\b.*?->\s*(\S+)", text
    )
    return [move for move in moves if "bf16" in move[1]]


@pytest.mark.parametrize("dilation", [1, (1, 1, 4, 4), 3])
def test_nothing_is_copied_around_the_kernels(dilation: int | tuple[int, ...]) -> None:
    """Whatever the lengths and dilations, the arrays go to the kernels as they are."""
    assert not moved(functools.partial(attend, dilation=dilation, implementation="pallas_triton"), *(SHAPE,) * 3)


def test_nothing_is_copied_for_a_shared_key() -> None:
    """But heads become positions, as the same bytes are read, for its own gradient."""
    query, shared = (jax.ShapeDtypeStruct(shape, SHAPE.dtype) for shape in ((2, 100, 4, 192), (100, 128)))
    ours = functools.partial(shared_attend, dilation=(1, 1, 4, 4), implementation="pallas_triton")
    moves = moved(ours, query, SHAPE, SHAPE, shared)
    assert {name for name, _ in moves} == {"reshape"} and all("x400x1x" in result for _, result in moves)
