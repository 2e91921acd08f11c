"""The tuning space of the Hopper kernels: every pass with every tiling that compiles, as a table."""

import itertools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import measure_jax
from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic.attention import HEAD_DIMS
from pallas_kernels.mosaic.backward import backward_dkdv, backward_dq
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.launch import Tiling
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

TILINGS = tuple(Tiling(*sizes) for sizes in itertools.product((1, 2, 3), (64, 128), (2, 3, 4)))


def runner(kernel: str, dims: tuple[int, int], *, length: int, window: int, heads: int, interpret: bool) -> Callable:
    """tiling -> milliseconds of one pass in bfloat16, B=1, `window` keys to either side."""
    key_dim, value_dim = dims
    spec = Spec(window, window, 0, (1,) * heads, key_dim**-0.5, 0.0, interpret)

    def array(index: int, head_dim: int) -> jax.Array:
        return jax.random.normal(jax.random.key(index), (1, length, heads, head_dim), "bfloat16")

    query, key, value, dout = array(0, key_dim), array(1, key_dim), array(2, value_dim), array(3, value_dim)
    row = jnp.ones((1, length, heads), jnp.float32)

    def run(tiling: Tiling, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        walk = Walk(length, length, window, window, 0, spec.dilations, tiling.rows, tiling.columns)
        if kernel == "forward":
            query, key, value, *_ = arrays
            return forward(spec, walk, tiling, query, key, value, Limits())
        if kernel == "dq":
            return (backward_dq(spec, walk, tiling, arrays, Limits()),)
        return backward_dkdv(spec, walk.transposed(tiling.rows, tiling.columns), tiling, arrays, Limits())

    def measure(tiling: Tiling) -> float:
        return measure_jax(lambda *arrays: run(tiling, *arrays), query, key, value, dout, row, row)["milliseconds"]

    return measure


def sweep(results: Results, *, tiny: bool = False) -> str:
    """Adds a record for each case that is not there yet, and returns all of them as a table, the fastest first.

    `tiny` is a rehearsal: interpreted, one tiling, small shapes.
    """
    tilings, all_dims, length = ((Tiling(1, 64, 2),), ((64, 64),), 128) if tiny else (TILINGS, HEAD_DIMS, 32768)
    window, heads = (40, 1) if tiny else (256, 12)
    for dims, kernel, tiling in itertools.product(all_dims, PASSES, tilings):
        key = {"kernel": kernel, "key_dim": dims[0], "value_dim": dims[1], "length": length} | vars(tiling)
        if results.has("sweep", **key):
            continue
        measure = runner(kernel, dims, length=length, window=window, heads=heads, interpret=tiny)
        try:
            record = {"milliseconds": measure(tiling)}
        except Exception as error:  # whatever the compiler has against this tiling, such as too much shared memory
            record = {"skipped": f"{type(error).__name__}: {error}"[:200]}
        results.add("sweep", record, **key)
        print(f"  {key} {record}", file=sys.stderr)
    rows = sorted(
        results["sweep"], key=lambda r: (r["key_dim"], r["value_dim"], r["kernel"], r.get("milliseconds", 1e9))
    )
    lines = ["| kernel | head_dim | warpgroups | columns | stages | ms |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['kernel']} | {r['key_dim']}, {r['value_dim']} | {r['warpgroups']} | {r['columns']} | {r['stages']} | "
        + (f"{r['milliseconds']:.3f} |" if "milliseconds" in r else f"{r['skipped'].split(':')[0]} |")
        for r in rows
    ]
    return "\n".join(lines)
