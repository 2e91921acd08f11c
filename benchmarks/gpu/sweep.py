"""The tuning space of Mosaic's kernels: every pass with every tiling that compiles, as tables."""

import dataclasses
import itertools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import measure_jax
from longformer_jax.attention.pallas import hopper_gpu, mma_gpu
from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic.attention import HEAD_DIMS
from pallas_kernels.mosaic.backward import backward_dkdv, backward_dq
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling, hopper_tiling, mma_tiling
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

# Three warpgroups have no registers for 128 columns; a program with one item has no use for more than one at a time.
_SIZES = (1, 64), (1, 128), (2, 64), (2, 128), (3, 64)
_SCHEDULES = (1, True), (2, True), (1, False)
_LOOPS = (3, True, True), (4, True, True), *((stages, False, loop) for stages in (2, 3, 4) for loop in (True, False))
AnyTiling = Tiling | MmaTiling
TILINGS: dict[str, tuple[AnyTiling, ...]] = {
    "pallas_mosaic_gpu": tuple(
        Tiling(*sizes, stages, own_stages, overlap, persistent, loop)
        for sizes, (stages, overlap, loop), (own_stages, persistent) in itertools.product(_SIZES, _LOOPS, _SCHEDULES)
    ),
    "pallas_mosaic_mma": tuple(itertools.starmap(MmaTiling, itertools.product((16, 32, 64, 128), (True, False)))),
}
_GPUS = {"pallas_mosaic_gpu": hopper_gpu, "pallas_mosaic_mma": mma_gpu}


def _changes(dims: tuple[int, int], kernel: str, candidate: AnyTiling) -> int:
    """In how many ways the tiling is not the default one."""
    default = dataclasses.asdict((hopper_tiling if isinstance(candidate, Tiling) else mma_tiling)(kernel, *dims))
    return sum(default[name] != value for name, value in dataclasses.asdict(candidate).items())


def runner(
    kernel: str, dims: tuple[int, int], gpu: Gpu, *, length: int, window: int, heads: int, interpret: bool
) -> Callable:
    """tiling -> milliseconds of one pass in bfloat16, B=1, `window` keys to either side."""
    key_dim, value_dim = dims
    spec = Spec(window, window, 0, (1,) * heads, key_dim**-0.5, 0.0, interpret)

    def array(index: int, head_dim: int) -> jax.Array:
        return jax.random.normal(jax.random.key(index), (1, length, heads, head_dim), "bfloat16")

    query, key, value, dout = array(0, key_dim), array(1, key_dim), array(2, value_dim), array(3, value_dim)
    row = jnp.ones((1, length, heads), jnp.float32)

    def run(tiling: AnyTiling, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        walk = Walk(length, length, window, window, 0, spec.dilations, tiling.rows, tiling.columns)
        if kernel == "forward":
            query, key, value, *_ = arrays
            return forward(spec, walk, tiling, query, key, value, Limits(), gpu)
        if kernel == "dq":
            return (backward_dq(spec, walk, tiling, arrays, Limits(), gpu),)
        walk = walk.transposed(tiling.rows, tiling.columns)
        return backward_dkdv(spec, walk, tiling, arrays, Limits(), gpu)

    def measure(tiling: AnyTiling) -> float:
        return measure_jax(lambda *arrays: run(tiling, *arrays), query, key, value, dout, row, row)["milliseconds"]

    return measure


def sweep(results: Results, implementation: str, *, tiny: bool = False) -> str:
    """Adds a record for each case that is not there yet, and returns all of them as a table, the fastest first.

    The defaults come first and what differs most from them last, as all take hours.
    `tiny` is a rehearsal: interpreted, one tiling, small shapes.
    """
    tilings, all_dims, length = TILINGS[implementation], HEAD_DIMS, 32768
    window, heads = 256, 12
    if tiny:
        tilings, all_dims, length, window, heads = tilings[:1], ((64, 64),), 128, 40, 1
    gpu = _GPUS[implementation](interpret=tiny)
    cases = sorted(itertools.product(all_dims, PASSES, tilings), key=lambda case: _changes(*case))
    for dims, kernel, candidate in cases:
        key = {"implementation": implementation, "kernel": kernel, "key_dim": dims[0], "value_dim": dims[1]}
        key |= {"length": length} | vars(candidate)
        if results.has("sweep", **key):
            continue
        measure = runner(kernel, dims, gpu, length=length, window=window, heads=heads, interpret=tiny)
        try:
            record = {"milliseconds": measure(candidate)}
        except Exception as error:  # whatever the compiler has against it, such as too much shared memory
            record = {"skipped": f"{type(error).__name__}: {error}"[:200]}
        results.add("sweep", record, **key)
        print(f"  {key} {record}", file=sys.stderr)
    rows = sorted(
        (r for r in results["sweep"] if r["implementation"] == implementation),
        key=lambda r: (r["key_dim"], r["value_dim"], r["kernel"], r.get("milliseconds", 1e9)),
    )
    sizes = [field.name for field in dataclasses.fields(tilings[0])]
    lines = [f"{implementation}:", ""]
    lines += ["| " + " | ".join(["kernel", "head_dim", *sizes, "ms"]) + " |", "|---" * (3 + len(sizes)) + "|"]
    for r in rows:
        time = f"{r['milliseconds']:.3f}" if "milliseconds" in r else r["skipped"].split(":")[0]
        cells = [r["kernel"], f"{r['key_dim']}, {r['value_dim']}", *(r[name] for name in sizes), time]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
