"""Part 1: every case of the op's test suite on the device, and the head_dims that kernels differ in.

The measure is the error of a plain attention in the same dtype, both against a float32 reference: at most twice that is
allowed, as rounding inputs and results costs so much already. Then 20 runs must agree bit for bit.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.results import Results
from pallas_kernels import mosaic
from tests.attention.cases import ARRAYS, Case, plain_attention, value_and_gradients, with_head_dims

DTYPES = ("bfloat16", "float32", "float16")
RUNS = 20
SHAPES = tuple(
    Case(f"head_dim_{Dk}_{Dv}{'_causal' if causal else ''}", T=700, H=3, Dk=Dk, Dv=Dv, window=100, causal=causal)
    for Dk, Dv in ((32, 32), (64, 64), (80, 80), (96, 96), (128, 128), (128, 64), (256, 256))
    for causal in (False, True)
)
# Products of float32 inputs in float32, not TF32.
EXACT = "highest"


def supported(implementation: str, cases: Sequence[Case]) -> tuple[list[Case], tuple[str, ...]]:
    """The cases as an implementation can take them, and the dtypes."""
    if implementation.startswith("pallas_mosaic"):
        return [with_head_dims(case, mosaic.HEAD_DIMS, n) for n, case in enumerate(cases)], mosaic.DTYPES
    return list(cases), DTYPES


def check(results: Results, implementation: str, cases: Sequence[Case], dtypes: Sequence[str], deadline: float) -> bool:
    """Adds a record for each case and dtype; returns whether all that were checked passed."""
    wanted = [
        (case, dtype)
        for dtype in dtypes
        for case in cases
        if not results.has("correctness", implementation=implementation, case=case.name, dtype=dtype)
    ]
    with ThreadPoolExecutor(8) as pool:  # compilation takes most of the time, and has the processor's cores
        compiled = [pool.submit(_compile, case, dtype, implementation) for case, dtype in wanted]
        for (case, dtype), waiting in zip(wanted, compiled, strict=True):
            if time.monotonic() > deadline:
                waiting.cancel()
                continue
            try:
                record = _check_case(case, dtype, waiting.result())
            except Exception as error:  # a kernel that does not compile or run has failed, and the others go on
                record = {"passed": False, "failed": ["exception"], "message": f"{type(error).__name__}: {error}"[:500]}
            results.add("correctness", record, implementation=implementation, case=case.name, dtype=dtype)
            if not record["passed"]:
                print(f"  FAILED {case.name} {dtype}: {record}", file=sys.stderr)
    done = [record for record in results["correctness"] if record["implementation"] == implementation]
    print(
        f"correctness of {implementation}: {sum(record['passed'] for record in done)} of {len(done)} cases passed, "
        f"{len(wanted) - sum(results.has('correctness', case=c.name, dtype=d) for c, d in wanted)} left for another run"
    )
    return all(record["passed"] for record in done)


def _compile(case: Case, dtype: str, implementation: str) -> tuple[Any, Any, Any]:
    arguments = case.inputs(dtype), case.cotangents(dtype)
    ours = jax.jit(value_and_gradients(case.attend(implementation))).lower(*arguments).compile()
    with jax.default_matmul_precision(EXACT):
        plain = jax.jit(value_and_gradients(plain_attention(case))).lower(*arguments).compile()
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
        oracle = jax.jit(value_and_gradients(case.attend("reference"))).lower(*wide).compile()
    return ours, plain, oracle


def _check_case(case: Case, dtype: str, compiled: tuple[Any, Any, Any]) -> dict[str, Any]:
    ours, plain, oracle = compiled
    arguments = case.inputs(dtype), case.cotangents(dtype)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    found, simple, exact = (
        [np.asarray(x, np.float32) for x in f(*given)]
        for f, given in ((ours, arguments), (plain, arguments), (oracle, wide))
    )
    errors, allowed, failed = {}, {}, []
    for name, x, y, truth in zip(ARRAYS, found, simple, exact, strict=True):
        finite = np.isfinite(truth)
        # Float32 rounding of the largest entry is always allowed; a plain attention has NaN where a row sees nothing.
        floor = 16 * np.finfo(np.float32).eps * max(1.0, np.abs(truth[finite]).max(initial=0.0))
        plain_error = np.abs(np.where(finite & np.isfinite(y), y - truth, 0.0)).max()
        errors[name] = float(np.abs(np.where(finite, x, 0.0) - np.where(finite, truth, 0.0)).max())
        allowed[name] = float(max(2 * plain_error, floor))
        if not (errors[name] <= allowed[name] and np.array_equal(np.isneginf(x), ~finite)):
            failed.append(name)
    again = [[np.asarray(x, np.float32) for x in ours(*arguments)] for _ in range(RUNS - 1)]
    repeatable = all(np.array_equal(x, y, equal_nan=True) for run in again for x, y in zip(run, found, strict=True))
    return {
        "passed": not failed and repeatable,
        "repeatable": repeatable,
        "failed": failed,
        "error": errors,
        "allowed": allowed,
    }
