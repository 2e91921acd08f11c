"""Finds block sizes for the GPU that this runs on, and writes them to pallas_kernels/block_sizes/DEVICE.json.

    python -m benchmarks.tune                                  bfloat16, the usual head_dims
    python -m benchmarks.tune --dtype=float32 --head-dim=64,64

Each pass is measured on its own, with 256 keys a side and 32,768 positions, over blocks, warps and stages. What the
compiler or the GPU refuses, such as blocks that do not fit into shared memory, is passed over. Where nothing is left,
the exit status is 1.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.timing import RefusedError, measure_jax
from benchmarks.gpu.worker import device_works
from pallas_kernels.block_sizes import PASSES, BlockSizes, table_key, table_path
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.triton.backward import backward_dkdv, backward_dq
from pallas_kernels.triton.forward import forward
from pallas_kernels.triton.tiles import Keys
from pallas_kernels.walk import Walk

HEAD_DIMS = ((64, 64), (128, 128), (128, 64), (32, 32))
CANDIDATES = tuple(
    BlockSizes(*sizes)
    for sizes in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3))
    if sizes[0] * sizes[1] // sizes[2] in range(256, 2049)  # of scores per warp: neither idle nor spilling
)
HEADS, LENGTH, WINDOW = 12, 32768, 256


def runner(
    kernel: str, dtype: str, key_dim: int, value_dim: int, length: int, window: int, interpret: bool
) -> Callable:
    """sizes -> milliseconds of one pass."""
    spec = Spec(window, window, 0, (1,) * HEADS, key_dim**-0.5, 0.0, interpret)

    def array(index: int, head_dim: int) -> jax.Array:
        return jax.random.normal(jax.random.key(index), (1, length, HEADS, head_dim), dtype)

    query, keys, value, dout = array(0, key_dim), Keys(array(1, key_dim)), array(2, value_dim), array(3, value_dim)
    out, row = array(4, value_dim), jnp.ones((1, length, HEADS), jnp.float32)

    def measure(sizes: BlockSizes) -> float:
        walk = Walk(length, length, window, window, 0, spec.dilations, sizes.rows, sizes.columns)
        if kernel == "forward":
            found = measure_jax(lambda q, k, v: forward(spec, walk, sizes, q, k, v, Limits()), query, keys, value)
        elif kernel == "dq":
            arrays = query, keys, value, out, dout, row, row
            found = measure_jax(lambda *x: backward_dq(spec, walk, sizes, x, Limits()), *arrays)
        else:
            arrays = query, keys, value, dout, row, row
            transposed = walk.transposed(sizes.rows, sizes.columns)
            found = measure_jax(lambda *x: backward_dkdv(spec, transposed, sizes, x, Limits()), *arrays)
        return found["milliseconds"]

    return measure


def best(measure: Callable[[BlockSizes], float], candidates: Sequence[BlockSizes]) -> tuple[BlockSizes, float]:
    """The fastest of the candidates.

    Raises:
      RefusedError: none of them runs; it says what was wrong with the last.
      JaxRuntimeError: one has left the device unusable.
    """
    times: dict[BlockSizes, float] = {}
    reason = ""
    for sizes in candidates:
        try:
            times[sizes] = measure(sizes)
        except (RefusedError, jax.errors.JaxRuntimeError) as error:
            if not device_works():
                raise
            reason = next(iter(str(error).splitlines()), "")
            print(f"    {sizes}: {reason[:100]}", file=sys.stderr)
        else:
            print(f"    {sizes}: {times[sizes]:.3f} ms", file=sys.stderr)
    if not times:
        raise RefusedError(f"no candidate runs; the last says: {reason}")
    return min(times.items(), key=lambda item: item[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--head-dim", metavar="KEY,VALUE", action="append", help=f"default: {HEAD_DIMS}")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on any device: interpreted, two candidates")
    parser.add_argument("--output", type=Path, help="default: the package's table for this device")
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu" and not options.tiny:
        parser.error(f"JAX sees no GPU but {device.device_kind}; --tiny rehearses on any device")
    try:
        given = [tuple(int(x) for x in pair.split(",")) for pair in options.head_dim or []]
        pairs: list[Any] = [(key_dim, value_dim) for key_dim, value_dim in given]
    except ValueError:
        parser.error(f"--head-dim is {options.head_dim}; expected pairs such as 128,64")

    path = options.output or table_path(device.device_kind)
    table = json.loads(path.read_text()) if path.is_file() else {}
    candidates = CANDIDATES[:2] if options.tiny else CANDIDATES
    length, window = (64, 16) if options.tiny else (LENGTH, WINDOW)
    status = 0
    for key_dim, value_dim in pairs or HEAD_DIMS:
        for kernel in PASSES:
            name = table_key(kernel, options.dtype, key_dim, value_dim)
            print(f"  {name}", file=sys.stderr)
            measure = runner(kernel, options.dtype, key_dim, value_dim, length, window, options.tiny)
            try:
                sizes, milliseconds = best(measure, candidates)
            except RefusedError as error:
                print(f"error: {name}: {error}", file=sys.stderr)
                status = 1
                continue
            table[name] = vars(sizes)
            print(f"{name}: {sizes}, {milliseconds:.3f} ms")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")  # after each, as a run may be cut short
    return status


if __name__ == "__main__":
    sys.exit(main())
