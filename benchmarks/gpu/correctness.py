"""Whether an implementation is right: every case of the op's test suite on the device, and more head_dims.

The measure is the error of a plain attention in the same dtype, both against a float32 reference: at most twice that is
allowed, as rounding inputs and results costs so much already. Then 20 runs must agree bit for bit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.results import OK
from longformer_jax.attention import api
from longformer_jax.attention.pallas import hopper_attention
from pallas_kernels import mosaic
from tests.attention.cases import (
    ALL_ARRAYS,
    CASES,
    SHARED_CASES,
    Case,
    plain_attention,
    value_and_gradients,
    with_head_dims,
)

Task = dict[str, Any]
DTYPES = ("bfloat16", "float32", "float16")
RUNS = 20  # on a GPU; an interpreter is asked for two
SHAPES = tuple(
    Case(f"head_dim_{Dk}_{Dv}{'_causal' if causal else ''}", T=700, H=3, Dk=Dk, Dv=Dv, window=100, causal=causal)
    for Dk, Dv in ((32, 32), (64, 64), (80, 80), (96, 96), (128, 128), (128, 64), (256, 256))
    for causal in (False, True)
)
# The positions of the paper's character model, and what is largest.
SHARED_SHAPES = tuple(
    Case(f"shared_{dim}_{R}", T=700, H=3, Dk=dim, Dv=dim, R=R, window=200, causal=True)
    for dim, R in ((64, 22), (64, 126), (64, 188), (128, 64), (128, 128), (128, 192))
)


class LongCase(Case):
    """Its arrays are made where they are needed."""

    def inputs(self, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(2), 3)
        shapes = ((self.B, self.T, self.H, dim) for dim in (self.Dk, self.Dk, self.Dv))
        query, key, value = (jax.random.normal(k, x).astype(dtype) for k, x in zip(keys, shapes, strict=True))
        return query, key, value

    def cotangents(self, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
        out, lse = jax.random.split(jax.random.key(3))
        rows = (self.B, self.T, self.H)
        return jax.random.normal(out, (*rows, self.Dv)).astype(dtype), jax.random.normal(lse, rows)


# What a kernel meets first, the simplest before all others; all in shapes that every set of kernels takes.
_HEADS: dict[str, Any] = {"Dk": 64, "Dv": 64}
CORE = (
    Case("first", T=320, H=2, window=64, **_HEADS),
    Case("ids", T=700, H=3, window=(150, 80), padded=True, segments="long", **_HEADS),
    LongCase("long", T=32768, H=12, window=256, **_HEADS),
    LongCase("long_causal", T=32768, H=12, window=256, causal=True, **_HEADS),
    Case("dilations", T=701, H=4, window=60, dilation=(1, 1, 3, 2), **_HEADS),
    Case("dropped", B=2, T=500, window=80, dropout_rate=0.2, **_HEADS),
    Case("wide", T=700, H=3, Dk=128, Dv=128, window=100),
    Case("wide_keys", T=700, H=3, Dk=128, Dv=64, window=100, causal=True),
)
ALL = (*CORE, *SHAPES, *SHARED_SHAPES, *CASES, *SHARED_CASES)
# The Hopper kernels without overlap, whose bits must be the same.
SERIAL = {"pallas_mosaic_gpu": "pallas_mosaic_gpu_serial"}
SERIAL |= {f"{name}_interpret": f"{serial}_interpret" for name, serial in SERIAL.items()}
IMPLEMENTATIONS: dict[str, Callable] = {
    "pallas_mosaic_gpu_serial": functools.partial(hopper_attention, overlap=False),
    "pallas_mosaic_gpu_serial_interpret": functools.partial(hopper_attention, overlap=False, interpret=True),
}
EXACT = "highest"  # products of float32 inputs in float32, not TF32
DENSE = {"T": 2048, "H": 2}  # no more than this has a dense reference


def dtypes_of(implementation: str) -> tuple[str, ...]:
    return mosaic.DTYPES if implementation.startswith("pallas_mosaic") else DTYPES


@functools.cache
def cases_of(implementation: str) -> dict[str, Case]:
    """All cases by name, as the implementation can take them."""
    cases: Sequence[Case] = ALL
    if implementation.startswith("pallas_mosaic"):
        dims = mosaic.HEAD_DIMS
        cases = [c if (c.Dk, c.Dv) in dims else with_head_dims(c, dims, n) for n, c in enumerate(cases)]
    return {case.name: case for case in cases}


def core_tasks(implementation: str, names: Sequence[str] = tuple(case.name for case in CORE)) -> list[Task]:
    """First contact: forward alone before the backward, without overlap before with it; in all dtypes at the end."""

    def check(name: str, dtype: str = "bfloat16", implementation: str = implementation, work: str = "both") -> Task:
        key = {"implementation": implementation, "case": name, "dtype": dtype, "work": work}
        return {"part": "correctness"} | key

    first, *others = names
    tasks = []
    if serial := SERIAL.get(implementation):
        tasks = [check(first, implementation=serial, work=work) for work in ("forward", "both")]
    tasks += [check(first, work=work) for work in ("forward", "both")]
    for name in others:
        tasks += [check(name)]
    if serial:
        same = {"implementation": implementation, "beside": serial, "dtype": "bfloat16"}
        bits = [{"part": "same_bits", "case": name} | same for name in names if "long" not in name]
        tasks[4:4] = bits[:1]
        tasks += bits[1:]
    return tasks + [check(name, dtype) for dtype in dtypes_of(implementation)[1:2] for name in names[:3]]


def tasks_of(implementation: str, dtypes: Sequence[str] = DTYPES) -> list[Task]:
    """Every case in every one of these dtypes that the implementation takes."""
    return [
        {"part": "correctness", "implementation": implementation, "case": name, "dtype": dtype, "work": "both"}
        for dtype in dtypes_of(implementation)
        if dtype in dtypes
        for name in cases_of(implementation)
    ]


def prepare(task: Task) -> Callable[[], dict[str, Any]]:
    """Compiles a case; returns what runs it."""
    case, dtype, forward = cases_of(task["implementation"])[task["case"]], task["dtype"], task["work"] == "forward"
    run = _compiled(task["implementation"], case, dtype, forward)
    same, compare = _comparer(run.out_info), comparison(case, dtype, forward)

    def check() -> dict[str, Any]:
        arguments = case.inputs(dtype), case.cotangents(dtype)
        found = run(*arguments)
        runs = RUNS if jax.default_backend() == "gpu" else 2
        repeatable = all(same(run(*arguments), found) for _ in range(runs - 1))
        return verdict(found, repeatable, compare())

    return check


def prepare_same_bits(task: Task) -> Callable[[], dict[str, Any]]:
    """Compiles a case with two implementations; returns what compares their results bit for bit."""
    case, dtype = cases_of(task["implementation"])[task["case"]], task["dtype"]
    ours, others = (_compiled(task[name], case, dtype, False) for name in ("implementation", "beside"))

    def check() -> dict[str, Any]:
        arguments = case.inputs(dtype), case.cotangents(dtype)
        return same_bits(ours(*arguments), others(*arguments), task["beside"])

    return check


def same_bits(found: Sequence[jax.Array], others: Sequence[jax.Array], beside: str) -> dict[str, Any]:
    """Interpreted kernels may differ by rounding, as XLA fuses their operations with others."""
    differ = {}
    for name, x, y in zip(ALL_ARRAYS, found, others, strict=False):
        if not _comparer([x])([x], [y]):
            x, y, unit = np.asarray(x, np.float32), np.asarray(y, np.float32), jnp.finfo(x.dtype).eps
            distance = np.where(x == y, 0.0, np.abs(x - y)).max() / np.abs(y[np.isfinite(y)]).max(initial=1e-30)
            differ[name] = float(np.nan_to_num(distance / unit, nan=1e9, posinf=1e9))
    if not differ or jax.default_backend() != "gpu" and max(differ.values()) <= 4:
        return {"outcome": OK, "units": differ}
    by = ", ".join(f"{name} by {units:.1f} units in the last place of its largest" for name, units in differ.items())
    return {"outcome": "wrong", "failed": list(differ), "units": differ, "reason": f"not the bits of {beside}: {by}"}


Expected = list[tuple[str, np.ndarray, float]]


def comparison(case: Case, dtype: str, forward: bool = False) -> Callable[[], Expected]:
    """Compiles the references; returns what computes, for each array, its name, the truth and the error allowed.

    Of a long case the truth is the blockwise path's in float32, and the errors of a plain attention are those of a
    shorter one.
    """
    small = dataclasses.replace(case, **DENSE) if isinstance(case, LongCase) else case
    with jax.default_matmul_precision(EXACT):
        references = _runner(small.attend("reference"), forward, widen=True), _runner(plain_attention(small), forward)
        both = _compile(lambda *arguments: [run(*arguments) for run in references], small, dtype)
        longer = None if small is case else _compile(_runner(case.attend("xla"), forward, widen=True), case, dtype)

    def arrays(found: Sequence[jax.Array]) -> list[np.ndarray]:
        return [np.asarray(x, np.float32) for x in found]

    def compute() -> Expected:
        dense, simple = map(arrays, both(small.inputs(dtype), small.cotangents(dtype)))
        expected = arrays(longer(case.inputs(dtype), case.cotangents(dtype))) if longer else dense
        allowed = []
        for x, y, whole in zip(dense, simple, expected, strict=True):
            # Float32 rounding of the largest entry is always allowed; lse is -inf where a row sees nothing.
            floor = 16 * np.finfo(np.float32).eps * max(1.0, np.abs(whole[np.isfinite(whole)]).max(initial=0.0))
            finite = np.isfinite(x) & np.isfinite(y)
            error = np.abs(y[finite] - x[finite]).max(initial=0.0)
            allowed.append(float(max(2 * error, floor)))
        return list(zip(ALL_ARRAYS, expected, allowed, strict=False))

    return compute


def verdict(found: Sequence[jax.Array], repeatable: bool, expected: Expected) -> dict[str, Any]:
    errors, allowed, failed, reasons = {}, {}, [], []
    for (name, truth, bound), x in zip(expected, found, strict=True):
        x, finite = np.asarray(x, np.float32), np.isfinite(truth)
        error = float(np.abs(np.where(finite, x, 0.0) - np.where(finite, truth, 0.0)).max())
        errors[name], allowed[name] = None if np.isnan(error) else error, bound
        if np.isnan(x).any():
            reasons.append(f"{name} has {np.isnan(x).sum()} NaN")
        elif not error <= bound:
            reasons.append(f"{name} is off by {error:.1e} of {bound:.1e}")
        elif not np.array_equal(np.isneginf(x), ~finite):
            reasons.append(f"{name} is -inf in other places")
        else:
            continue
        failed.append(name)
    if not repeatable:
        reasons.append("runs differ")
    reason = {"reason": "; ".join(reasons)} if reasons else {}
    outcome = {"outcome": "wrong" if reasons else OK, "failed": failed, "repeatable": repeatable}
    return outcome | reason | {"error": errors, "allowed": allowed}


def _compiled(implementation: str, case: Case, dtype: str, forward: bool) -> Any:
    api.IMPLEMENTATIONS.update(IMPLEMENTATIONS)
    return _compile(_runner(case.attend(implementation), forward), case, dtype)


def _runner(attend: Callable, forward: bool, *, widen: bool = False) -> Callable:
    """A function of inputs and cotangents; where `widen`, all is computed in float32."""

    def run(*arguments: Any) -> Any:
        if widen:
            arguments = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
        return attend(*arguments[0]) if forward else value_and_gradients(attend)(*arguments)

    return run


def _compile(run: Callable, case: Case, dtype: str) -> Any:
    shapes = jax.eval_shape(lambda: (case.inputs(dtype), case.cotangents(dtype)))
    return jax.jit(run).lower(*shapes).compile()


def _comparer(shapes: Any) -> Callable[[Any, Any], bool]:
    """Compiles what compares results of these shapes bit for bit, on the device."""

    def bits(x: jax.Array) -> jax.Array:
        return jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])

    def equal(found: Sequence[jax.Array], others: Sequence[jax.Array]) -> jax.Array:
        return jnp.stack([jnp.all(bits(x) == bits(y)) for x, y in zip(found, others, strict=True)]).all()

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
    compiled = jax.jit(equal).lower(shapes, shapes).compile()
    return lambda found, others: bool(compiled(list(found), list(others)))
