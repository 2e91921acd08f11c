"""Part 2: one layer of attention in bfloat16 at many lengths, beside what else can be installed.

B=1, H=12, D=64, 256 keys a side (causal: 256 to the left), dilation 1 and 4. Each figure also as a fraction of the rate
of a large matrix product on the same device, counting the FLOPs of visible pairs only, whatever a side computes.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu import torch_sides
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import measure_jax
from longformer_jax import banded_attention

# The most telling first, for a run that is cut short.
LENGTHS = (32768, 4096, 8192, 16384, 65536, 131072, 1024, 2048, 262144, 524288, 1048576)
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

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head."""
        T, d = self.length, self.dilation
        steps = range(-self.window, 1 if self.causal else self.window + 1)
        return sum(max(0, T - abs(m) * d) for m in steps)

    def flops(self, work: str) -> float:
        """Two products forward, five more backward, with one of the forward's anew."""
        products = 2 if work == "forward" else 7
        return products * 2.0 * self.pairs * self.heads * self.head_dim

    def inputs(self) -> tuple[jax.Array, ...]:
        """query, key, value and a cotangent, [1, T, H, D]."""
        keys = jax.random.split(jax.random.key(0), 4)
        return tuple(jax.random.normal(k, (1, self.length, self.heads, self.head_dim), self.dtype) for k in keys)


def _ours(layer: Layer, implementation: str) -> Callable:
    options: dict[str, Any] = {"window": layer.window, "causal": layer.causal, "dilation": layer.dilation}
    return partial(banded_attention, **options, implementation=implementation)


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
    return _ours(layer, "xla")


def _tokamax(layer: Layer) -> Callable:
    if layer.dilation > 1:
        raise NotImplementedError("tokamax has no dilation")
    import tokamax

    window = (layer.window, 0 if layer.causal else layer.window)
    return partial(tokamax.dot_product_attention, is_causal=layer.causal, local_window_size=window)


JAX_SIDES: dict[str, Callable[[Layer], Callable]] = {
    "xla": _xla,
    "full_cudnn": _full,
    "cudnn_window": _cudnn_window,
    "tokamax": _tokamax,
}


def measure_jax_side(attention: Callable, layer: Layer, work: str) -> dict[str, float]:
    *inputs, cotangent = layer.inputs()
    if work == "forward":
        return measure_jax(lambda *qkv: (attention(*qkv),), *inputs)

    def gradients(query, key, value, cotangent):
        return jax.vjp(attention, query, key, value)[1](cotangent)

    return measure_jax(gradients, *inputs, cotangent)


def measure(results: Results, implementations: tuple[str, ...], layers: list[Layer], deadline: float) -> None:
    """Adds a record for each side, layer and kind of work that is not there yet; stops at the deadline."""
    if not results["matmul"]:
        results.add("matmul", matmul_rate(layers[0].dtype))
    peak = results["matmul"][0]["flops_per_second"]
    ours = {name: partial(_ours, implementation=name) for name in implementations}
    on_gpu = jax.devices()[0].platform == "gpu"
    sides = ours | (JAX_SIDES | torch_sides.SIDES if on_gpu else {"xla": _xla})

    for layer in layers:
        for name, make in sides.items():
            for work in WORKS:
                key = {"side": name, "work": work} | dataclasses.asdict(layer)
                if results.has("speed", **key):
                    continue
                if time.monotonic() > deadline:
                    print("speed: out of time; the same command goes on from here")
                    return
                record = _measure_side(make, name in torch_sides.SIDES, layer, work)
                if "milliseconds" in record:
                    record["of_matmul"] = layer.flops(work) / (record["milliseconds"] / 1e3) / peak
                results.add("speed", record, **key)
                print(f"  {_line(key | record)}", file=sys.stderr)


def _measure_side(make: Callable, is_torch: bool, layer: Layer, work: str) -> dict[str, Any]:
    """Figures, or why there are none: peers that are not installed or cannot do a case are named, not passed over."""
    try:
        side = make(layer)
        return side(work) if is_torch else measure_jax_side(side, layer, work)
    except ImportError as error:
        return {"skipped": f"not installed: {error.name}"}
    except NotImplementedError as error:
        return {"skipped": str(error)}
    except Exception as error:  # a peer's failure is a result, too
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def matmul_rate(dtype: str, size: int = 8192) -> dict[str, float]:
    """The rate of a large matrix product, the measure for all others."""
    size = size if jax.devices()[0].platform == "gpu" else 512
    x, y = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    found = measure_jax(jnp.matmul, x, y)
    return {"size": size, "flops_per_second": 2.0 * size**3 / (found["milliseconds"] / 1e3)}


def _line(record: dict[str, Any]) -> str:
    what = f"{record['side']:>18} {record['work']:>7} T={record['length']:<7}"
    what += f" {'causal' if record['causal'] else 'both sides':>10} dilation {record['dilation']}"
    if "milliseconds" not in record:
        return f"{what}  {record.get('skipped') or record.get('failed')}"
    figures = f"{record['milliseconds']:9.3f} ms  {record['bytes'] / 1e6:9.1f} MB  {record['of_matmul']:6.1%} of matmul"
    return f"{what}  {figures}"


def table(results: Results) -> str:
    """Times beside ours in markdown, one row a layer and kind of work."""
    found = [record for record in results["speed"] if "milliseconds" in record]
    sides = list(dict.fromkeys(record["side"] for record in found))
    lines = ["| | T | dilation | work | " + " | ".join(sides) + " |", "|" + "---|" * (4 + len(sides))]
    rows: dict[tuple, dict[str, float]] = {}
    for record in found:
        row = record["causal"], record["length"], record["dilation"], record["work"]
        rows.setdefault(row, {})[record["side"]] = record["milliseconds"]
    for (causal, length, dilation, work), times in sorted(rows.items()):
        cells = " | ".join(f"{times[side]:.3f}" if side in times else "" for side in sides)
        lines.append(f"| {'causal' if causal else 'both sides'} | {length} | {dilation} | {work} | {cells} |")
    return "\n".join(lines)
