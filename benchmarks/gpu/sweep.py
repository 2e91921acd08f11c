"""The tuning space of Mosaic's kernels: every pass with many tilings, the default ones first."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.results import OK, SKIPPED, Record, Results
from benchmarks.gpu.timing import RefusedError, prepare_jax
from longformer_jax.attention.pallas import hopper_gpu, mma_gpu
from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic.attention import HEAD_DIMS, SHARED_HEAD_DIMS
from pallas_kernels.mosaic.backward import backward_dkdv, backward_dq
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.tiling import MmaTiling, Tiling, hopper_tiling, mma_tiling
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

AnyTiling = Tiling | MmaTiling
Dims = tuple[int, int, int]
# What promises most first: in this order are tilings tried that differ from the default in as many ways.
SPACES: dict[str, tuple[type[AnyTiling], dict[str, tuple[Any, ...]]]] = {
    "pallas_mosaic_gpu": (
        Tiling,
        {
            "warpgroups": (4, 3, 2, 1),
            "own_in_registers": (True, False),
            "delta_inside": (True, False),
            "turns": (True, False),
            "overlap": (True, False),
            "scores_together": (True, False),
            "unmasked_loop": (True, False),
            "own_stages": (2, 1),
            "stages": (4, 3, 2),
            "columns": (64, 128),
            "persistent": (True, False),
            "sum_columns": (None, 128, 64),
        },
    ),
    "pallas_mosaic_mma": (
        MmaTiling,
        {"columns": (16, 32, 64, 128), "unmasked_loop": (True, False), "sum_columns": (None, 128, 64)},
    ),
}
ALL_DIMS = (*((key, value, 0) for key, value in HEAD_DIMS), *SHARED_HEAD_DIMS)  # of key, value and shared key
_HEADLINE = (64, 64, 0)
_MOST_CHANGES = 3  # from the default tiling; of other head_dims than the headline's one less
_SHOWN = 6  # of a kernel, in the table


def _default(dims: Dims, kernel: str, space: type[AnyTiling]) -> AnyTiling:
    return (hopper_tiling if space is Tiling else mma_tiling)(kernel, *dims)


def _is_worth_a_try(dims: Dims, kernel: str, tiling: AnyTiling) -> bool:
    if tiling.sum_columns is not None and (kernel == "forward" or max(dims) <= tiling.sum_columns):
        return False  # computes all columns in one launch all the same
    if isinstance(tiling, MmaTiling):
        return True
    without_registers = dims[2] == 0 and (  # known to spill
        (tiling.warpgroups == 4 and (kernel != "forward" or dims == (128, 128, 0) or tiling.overlap))
        or (tiling.warpgroups == 3 and (tiling.columns == 128 or (kernel != "forward" and dims != _HEADLINE)))
        or (tiling.warpgroups == 3 and tiling.own_in_registers and (kernel, dims) != ("forward", _HEADLINE))
        or (tiling.own_in_registers and (kernel, dims) == ("dkdv", (128, 128, 0)))
    )
    return not (
        without_registers
        or (tiling.delta_inside and kernel != "dq")
        or (tiling.scores_together and kernel == "forward")  # has one score product only
        or (tiling.own_stages > 1 and not tiling.persistent)  # a program with one item has no use for more
    )


def _tilings(space: type[AnyTiling], values: dict[str, tuple[Any, ...]]) -> Iterator[AnyTiling]:
    for combination in itertools.product(*values.values()):
        try:
            yield space(**dict(zip(values, combination, strict=True)))
        except ValueError:  # one that contradicts itself
            continue


def cases(implementation: str, wanted: Sequence[Dims] = ALL_DIMS) -> list[tuple[Dims, str, AnyTiling]]:
    """(head_dims, kernel, tiling): what differs from the default in fewest ways first, the headline's head_dims ahead
    of the others."""
    space, values = SPACES[implementation]

    def distance(case: tuple[Dims, str, AnyTiling]) -> int:
        dims, kernel, tiling = case
        default = _default(dims, kernel, space)
        return sum(getattr(default, name) != getattr(tiling, name) for name in values) + (dims != _HEADLINE)

    every = itertools.product(wanted, PASSES, _tilings(space, values))
    return sorted((x for x in every if _is_worth_a_try(*x) and distance(x) <= _MOST_CHANGES), key=distance)


def tasks_of(implementation: str, wanted: Sequence[Dims] | None = None, *, tiny: bool = False) -> list[dict[str, Any]]:
    """Of the wanted head_dims, None of all; `tiny` is a rehearsal: interpreted, the default tilings, small shapes."""
    name = implementation.removesuffix("_interpret")
    if name not in SPACES:
        return []
    if tiny:
        small = {"length": 128, "window": 40, "heads": 1}
        return [task_of(implementation, *case) | small for case in cases(name)[: len(PASSES)]]
    return [task_of(implementation, *case) for case in cases(name, wanted or ALL_DIMS)]


def task_of(implementation: str, dims: Dims, kernel: str, tiling: AnyTiling) -> dict[str, Any]:
    """At the headline's shape."""
    key = {"part": "sweep", "implementation": implementation, "length": 32768, "window": 256, "heads": 12}
    names = dict(zip(("key_dim", "value_dim", "shared_dim"), dims, strict=True))
    return key | {"kernel": kernel} | names | dataclasses.asdict(tiling)


def prepare(task: dict[str, Any]) -> Callable[[], Record]:
    """Compiles one pass in bfloat16, B=1, `window` keys to either side; dq's time is that of delta, too.

    Raises:
      NotImplementedError: the compiler does not take the tiling, as with too little shared memory.
    """
    run, shapes = call_of(task)
    try:
        measure = prepare_jax(run, *shapes)
    except RefusedError as error:
        raise NotImplementedError(str(error)[:200]) from error
    return lambda: measure(*_arrays(shapes))


def call_of(task: dict[str, Any]) -> tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]:
    """The pass and its arguments' shapes."""
    name, kernel, window = task["implementation"].removesuffix("_interpret"), task["kernel"], task["window"]
    interpret = name != task["implementation"]
    space, _ = SPACES[name]
    tiling = space(**{field.name: task[field.name] for field in dataclasses.fields(space)})

    def run(*arrays: jax.Array) -> Any:
        gpu = {"pallas_mosaic_gpu": hopper_gpu, "pallas_mosaic_mma": mma_gpu}[name](interpret)
        query, key, value, out, dout, lse, dlse, *shared = arrays
        _, length, heads, key_dim = query.shape
        own, keys = {"query": query}, {"key": key, "value": value}
        rows = {"out": out, "dout": dout, "lse": lse, "dlse": dlse}
        if shared:
            own["query_shared"], keys["shared_key"] = shared
        scale = (key_dim + task["shared_dim"]) ** -0.5
        spec = Spec(window, window, 0, (1,) * heads, scale, 0.0, interpret)
        walk = Walk(length, length, window, window, 0, spec.dilations, tiling.rows, tiling.columns)
        if kernel == "forward":
            return forward(spec, walk, tiling, own, keys, Limits(), gpu)
        if kernel == "dq":
            return backward_dq(spec, walk, tiling, own, keys, rows, Limits(), gpu)
        walk = walk.transposed(tiling.rows, tiling.columns)
        terms = {"dout": rows["dout"], "bits": rows["lse"], "delta": rows["dlse"]}
        return backward_dkdv(spec, walk, tiling, own, keys, terms, Limits(), gpu)

    return run, _shapes(task["length"], task["heads"], task["key_dim"], task["value_dim"], task["shared_dim"])


def _shapes(length: int, heads: int, key_dim: int, value_dim: int, shared_dim: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """query, key, value, out, dout, lse, dlse, and where there is a shared key the query's part of it, and itself."""

    def array(heads: int, dim: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length, heads, dim), jnp.bfloat16)

    row = jax.ShapeDtypeStruct((1, length, heads), jnp.float32)
    arrays = [array(heads, dim) for dim in (key_dim, key_dim, value_dim, value_dim, value_dim)]
    shared = [array(heads, shared_dim), array(1, shared_dim)] if shared_dim else []
    return *arrays, row, row, *shared


@functools.cache
def _arrays(shapes: tuple[jax.ShapeDtypeStruct, ...]) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(n), x.shape, x.dtype) for n, x in enumerate(shapes)]


def tables(results: Results) -> str:
    """One for each implementation."""
    return "\n\n".join(table(results, name) for name in dict.fromkeys(r["implementation"] for r in results["sweep"]))


def table(results: Results, implementation: str) -> str:
    """The fastest of every kernel, and what failed in another way than that the compiler did not take it."""
    dims = ["kernel", "key_dim", "value_dim", "shared_dim"]
    columns = [*dims, *SPACES[implementation.removesuffix("_interpret")][1]]
    lines = [f"{implementation}:", "", "| " + " | ".join([*columns, "ms"]) + " |", "|---" * (len(columns) + 1) + "|"]
    found = [r for r in results["sweep"] if r["implementation"] == implementation and r["outcome"] != SKIPPED]
    found.sort(key=lambda r: ([r[name] for name in dims], r.get("milliseconds", 0)))
    for _, rows in itertools.groupby(found, key=lambda r: [r[name] for name in dims]):
        failed, measured = [], []
        for r in rows:
            (measured if r["outcome"] == OK else failed).append(r)
        for r in (*measured[:_SHOWN], *failed):
            time = f"{r['milliseconds']:.3f}" if r["outcome"] == OK else r["outcome"]
            lines.append("| " + " | ".join(map(str, [*(r[name] for name in columns), time])) + " |")
    return "\n".join(lines)
