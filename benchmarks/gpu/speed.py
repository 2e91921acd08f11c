"""One layer of attention in bfloat16 at many lengths, beside what else can be installed.

B=1, H=12, D=64, 256 keys a side (causal: 256 to the left), dilation 1 and 4. FLOPs are those of visible pairs only,
whatever a side computes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from benchmarks.gpu import torch_sides
from benchmarks.gpu.timing import CHAIN, prepare_jax
from longformer_jax import banded_attention

HEADLINE = 32768
# The most telling first, for a run that is cut short.
LENGTHS = (HEADLINE, 4096, 8192, 16384, 65536, 131072, 1024, 2048, 262144, 524288, 1048576)
WORKS = ("forward", "both")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer, `length` queries and keys; window counts keys to one side."""

    length: int
    causal: bool = False
    dilation: int = 1
    window: int = 256
    heads: int = 12
    head_dim: int = 64
    dtype: str = "bfloat16"
    value_dim: int | None = None  # head_dim where None
    shared_dim: int = 0  # of a key that all heads share, beside head_dim numbers of each head's own

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head."""
        T, d = self.length, self.dilation
        steps = range(-self.window, 1 if self.causal else self.window + 1)
        return sum(max(0, T - abs(m) * d) for m in steps)

    def flops(self, work: str) -> float:
        """Two products forward, five more backward, with one of the forward's anew; no gradient of a shared key."""
        key_dim, value_dim = self.head_dim + self.shared_dim, self.value_dim or self.head_dim
        summed = key_dim + value_dim if work == "forward" else 4 * key_dim + 3 * value_dim - self.shared_dim
        return 2.0 * self.pairs * self.heads * summed

    def shapes(self, work: str = "both") -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of query, key, value and the shared key if there is one; before them of a cotangent, for the gradients."""
        dims = self.head_dim + self.shared_dim, self.head_dim, self.value_dim or self.head_dim
        query, key, value = (jax.ShapeDtypeStruct((1, self.length, self.heads, dim), self.dtype) for dim in dims)
        shared = [jax.ShapeDtypeStruct((self.length, self.shared_dim), self.dtype)] * (self.shared_dim > 0)
        return *([value] if work == "both" else []), query, key, value, *shared

    def inputs(self, work: str = "both") -> tuple[jax.Array, ...]:
        shapes = self.shapes(work)
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return tuple(jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, shapes, strict=True))


LAYERS = tuple(
    Layer(length, causal, dilation)
    for length in LENGTHS
    for dilation in (1, 4)
    for causal in (False, True)
    if dilation == 1 or length in (4096, HEADLINE)
)
# What models ask for besides bfloat16 with head_dims 64; and the positions of the paper's character model, below.
_OTHER_ARRAYS = (
    ("bfloat16", 128, 64), ("bfloat16", 128, 128), ("float32", 64, 64), ("float32", 128, 64), ("float16", 64, 64),
    ("bfloat16", 32, 32),
)  # fmt: skip
OTHER_LAYERS = tuple(
    Layer(8192, causal, head_dim=key_dim, value_dim=value_dim, dtype=dtype)
    for dtype, key_dim, value_dim in _OTHER_ARRAYS
    for causal in (False, True)
) + tuple(Layer(8192, causal=True, shared_dim=shared_dim) for shared_dim in (64, 128, 192))


def _ours(layer: Layer, *, implementation: str) -> Callable:
    options: dict[str, Any] = {"window": layer.window, "causal": layer.causal, "dilation": layer.dilation}
    options["implementation"] = implementation
    return lambda query, key, value, shared_key=None: banded_attention(
        query, key, value, shared_key=shared_key, **options
    )


def _full(layer: Layer) -> Callable:
    if layer.dilation > 1 or layer.length > 131072:
        raise NotImplementedError("sees all keys whatever the dilation; quadratic")
    return partial(jax.nn.dot_product_attention, is_causal=layer.causal, implementation="cudnn")


def _cudnn_window(layer: Layer) -> Callable:
    if layer.dilation > 1 or not layer.causal:
        raise NotImplementedError("cuDNN has a sliding window for causal attention without dilation only")
    window = (layer.window, 0)
    return partial(jax.nn.dot_product_attention, is_causal=True, local_window_size=window, implementation="cudnn")


def _xla(layer: Layer) -> Callable:
    if layer.length > 131072:
        raise NotImplementedError("left out at this length, for time")
    return _ours(layer, implementation="xla")


def _tokamax(layer: Layer) -> Callable:
    if layer.dilation > 1 or layer.length > 131072:
        raise NotImplementedError("tokamax has no dilation; its backward is quadratic")
    import tokamax

    window = (layer.window, 0 if layer.causal else layer.window)
    # Not its XLA path, which would be quadratic.
    options: dict[str, Any] = {"is_causal": layer.causal, "local_window_size": window, "implementation": "mosaic"}
    return partial(tokamax.dot_product_attention, **options)


def _jla(layer: Layer) -> Callable:
    if layer.dilation > 1 or not layer.causal:
        raise NotImplementedError("jax-linear-attention has a causal window without dilation only")
    from jla.ops.mosaic_gpu.attention import flash_attention

    return partial(flash_attention, sliding_window=layer.window + 1)  # it counts the query's own position, too


# Of a library's name: what it can do of a layer, as a function of query, key and value; raises NotImplementedError.
JAX_SIDES: dict[str, Callable[[Layer], Callable]] = {
    "xla": _xla,
    "full_cudnn": _full,
    "cudnn_window": _cudnn_window,
    "tokamax": _tokamax,
    "jla": _jla,
}
SLOW = ("xla", "full_cudnn", "tokamax")  # beside a call of these at the headline's length a launch is nothing


def tasks_of(side: str, layers: Sequence[Layer], works: Sequence[str] = WORKS) -> list[dict[str, Any]]:
    return [
        {"part": "speed", "side": side, "work": work} | dataclasses.asdict(layer) for layer in layers for work in works
    ]


def prepare(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Compiles a side of JAX's; returns what measures it, or a side of PyTorch's."""
    layer = Layer(**{field.name: task[field.name] for field in dataclasses.fields(Layer)})
    side, work = task["side"], task["work"]
    if make := torch_sides.SIDES.get(side):
        measure_torch = make(layer)(work)
        return lambda: _record(layer, work, measure_torch())
    attention = JAX_SIDES.get(side, partial(_ours, implementation=side))(layer)
    chain = 1 if side in SLOW and layer.length >= HEADLINE and (side, work) != ("tokamax", "forward") else CHAIN
    run = attention if work == "forward" else _gradients(attention)
    measure = prepare_jax(run, *layer.shapes(work), chain=chain)
    return lambda: _record(layer, work, measure(*layer.inputs(work)))


def prepare_once(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Compiles a layer's forward and backward; returns what runs it once, for a profiler to look at."""
    layer = Layer(task["length"])
    run = jax.jit(_gradients(_ours(layer, implementation=task["implementation"]))).lower(*layer.shapes()).compile()

    def once() -> dict[str, Any]:
        jax.block_until_ready(run(*layer.inputs()))
        return {}

    return once


def _gradients(attention: Callable) -> Callable:
    def gradients(cotangent, query, key, value, *shared_key):
        return jax.vjp(lambda *x: attention(*x, *shared_key), query, key, value)[1](cotangent)

    return gradients


def _record(layer: Layer, work: str, found: dict[str, float]) -> dict[str, float]:
    return found | {"flops_per_second": layer.flops(work) / (found["milliseconds"] / 1e3)}
