"""What `implementation=None` is to mean on the GPU of a results file: the fastest that it has shown to be right."""

import json
import math

from benchmarks.gpu import correctness, plan
from benchmarks.gpu.results import OK, Record, Results
from longformer_jax.attention.choice import filled_up, table_key, table_path
from longformer_jax.files import write_text
from pallas_kernels import mosaic

Arrays = tuple[str, int, int, int]  # dtype, head_dim of key, of value, of shared key
Shape = tuple[int, bool, int]  # length, causal, dilation


def choose(results: Results) -> dict[Arrays, str]:
    """The fastest of forward and backward for each kind of arrays measured, by the geometric mean over the shapes.

    Those that lack a case, or have failed in one, of a dtype are not chosen for it. Where `xla` was not measured, one
    that is to be chosen has to be faster than `xla` with fewer numbers.
    """
    times: dict[Arrays, dict[str, dict[Shape, float]]] = {}
    for record in results["speed"]:
        if record["work"] == "both" and record["outcome"] == OK and record["side"] in (*plan.OURS, "xla"):
            shape = record["length"], record["causal"], record["dilation"]
            of_arrays = times.setdefault(_arrays(record), {})
            of_arrays.setdefault(record["side"], {})[shape] = record["milliseconds"]
    chosen = {}
    for arrays, sides in times.items():
        right = {side: shapes for side, shapes in sides.items() if side == "xla" or not lacks(results, side, *arrays)}
        right.setdefault("xla", _of_fewer_numbers(times, arrays))
        common = set.intersection(*(set(shapes) for shapes in right.values()))
        means = {side: sum(math.log(shapes[one]) for one in common) for side, shapes in right.items()}
        fastest = min(means, key=lambda side: means[side])
        if common and (fastest != "xla" or "xla" in sides):
            chosen[arrays] = fastest
    return chosen


def _of_fewer_numbers(times: dict[Arrays, dict[str, dict[Shape, float]]], arrays: Arrays) -> dict[Shape, float]:
    """For each shape what `xla` takes for keys of no more numbers, none of them shared, and no longer sequences: for
    the smallest shared key of the entry, it takes no less."""
    dtype, key_dim, value_dim, shared_dim = arrays
    smallest = key_dim + max(0, shared_dim - filled_up(1) + 1)
    least: dict[Shape, float] = {}
    for length, causal, dilation in {shape for shapes in times[arrays].values() for shape in shapes}:
        for (other, key, value, shared), sides in times.items():
            if (other, value, shared) == (dtype, value_dim, 0) and key <= smallest:
                for shape, time in sides.get("xla", {}).items():
                    if shape[0] <= length and shape[1:] == (causal, dilation):
                        least[length, causal, dilation] = max(time, least.get((length, causal, dilation), 0.0))
    return least


def lacks(
    results: Results, implementation: str, dtype: str, key_dim: int, value_dim: int, shared_dim: int
) -> str | None:
    """Why an implementation has not been shown to be right with such arrays; None where it has."""
    cases = correctness.cases_of(implementation).values()
    shown = {_as_computed(implementation, case.Dk, case.Dv, case.R) for case in cases}
    if _as_computed(implementation, key_dim, value_dim, shared_dim) not in shown:
        return f"{implementation} has no case with head_dim {key_dim} and {value_dim}, and {shared_dim} of a shared key"
    tasks = correctness.tasks_of(implementation) + correctness.core_tasks(implementation)
    tasks = [task for task in tasks if task["dtype"] == dtype]
    found = [results.find(**task) for task in tasks]
    missing, failed = found.count(None), sum(r is not None and r["outcome"] != OK for r in found)
    if not tasks:
        return f"{implementation} has no kernels for {dtype}"
    if missing or failed:
        return f"{implementation} in {dtype}: of {len(tasks)} cases {failed} have failed, {missing} have not been tried"
    return None


def _as_computed(implementation: str, *dims: int) -> tuple[int, ...]:
    """The head_dims that the kernels compute with: Mosaic's fill up all of them, Triton's the shared key."""
    if "mosaic" in implementation and not mosaic.unsupported("bfloat16", *dims):
        return mosaic.filled_up_dims(*dims)
    return (*dims[:2], filled_up(dims[2]))


def write(results: Results) -> str:
    """Writes the table of the file's device; returns what to tell."""
    chosen = choose(results)
    table = {table_key(*arrays): name for arrays, name in sorted(chosen.items())}
    path = table_path(results.values["device"])
    write_text(path, json.dumps(table, indent=1) + "\n")
    reasons = [reason for name in plan.OURS for arrays in sorted(chosen) if (reason := lacks(results, name, *arrays))]
    told = [f"{key}: {name}" for key, name in table.items()] + list(dict.fromkeys(reasons)) + [f"written to {path}"]
    return "\n".join(told)


def _arrays(record: Record) -> Arrays:
    shared_dim = record.get("shared_dim", 0)
    return record["dtype"], record["head_dim"], record["value_dim"] or record["head_dim"], filled_up(shared_dim)
