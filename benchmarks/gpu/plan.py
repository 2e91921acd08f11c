"""What there is to do, in stages: what tells most comes first."""

import dataclasses
import importlib.util
import math
import shutil
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu import correctness, speed, sweep
from benchmarks.gpu.results import OK, SKIPPED, Results
from benchmarks.gpu.supervisor import Job

OURS = ("pallas_mosaic_gpu", "pallas_triton", "pallas_mosaic_mma")
# Peers, and the package that each needs.
PEERS = {
    "xla": "jax",
    "cudnn_window": "jax",
    "jla": "jla",
    "full_cudnn": "jax",
    "huggingface": "transformers",
    "tokamax": "tokamax",
    "flash_attention": "flash_attn",
    "flex": "torch",
}
# The distributions by which what they measure is told from that of other versions.
PACKAGES = {
    "xla": ("jax",),
    "cudnn_window": ("jax",),
    "jla": ("jax", "jax-linear-attention"),
    "full_cudnn": ("jax",),
    "huggingface": ("torch", "transformers"),
    "tokamax": ("jax", "tokamax"),
    "flash_attention": ("torch", "flash-attn"),
    "flex": ("torch",),
}
STAGES = ("core", "training", "headline", "correctness", "shapes", "lengths", "profile", "fallbacks")
SWEEP = "sweep"  # a stage for itself
FLEX_SECONDS = 200.0  # PyTorch compiles half a minute for each layer
# Slow to compile or to run, so they are measured at some lengths only, like those of ours that are no first choice.
SLOW = "flex", "xla"
SOME_LENGTHS = (4096, 8192, speed.HEADLINE, 131072)
AUTOTUNED = ("xla", "cudnn_window", "full_cudnn")
# Each layer has kernels of its own, which the compiler takes one after the other: of the longer phases every so
# many-th layer is measured. Phase, this step, remat.
TRAINING = ((5, 2, False), (3, 2, False), (1, 1, True), (1, 1, False))
DEVICE = Job("device", [{"part": "rates"}], timed=True, autotuned=True)  # tells what the device is, too
AT_ONCE, TINY_AT_ONCE = 18, 2  # processes, most of which compile while one is measured
USUAL_DTYPES = "bfloat16", "float32"
SHARDS = {"core": 8, "correctness": 10, "fallbacks": 10, "training": 7, "shapes": 2, "lengths": 3, "sweep": 14}
LEAST_TASKS = 4  # worth a further process
# NVIDIA's tools; what they print is in the log of the job.
PROFILER = (
    "ncu", "--clock-control=none", "--kernel-name=regex:banded_attention", "--launch-count=3", "--section=SpeedOfLight",
    "--section=ComputeWorkloadAnalysis", "--section=MemoryWorkloadAnalysis", "--section=WarpStateStats",
    "--section=SchedulerStats",
)  # fmt: skip
MEMCHECK = ("compute-sanitizer", "--tool=memcheck", "--error-exitcode=9")
TINY_CASES = ("ids",)
TINY_LAYERS = (speed.Layer(64, False, 1, window=8, heads=2, head_dim=64),)


def jobs(
    names: Sequence[str],
    implementations: Sequence[str],
    results: Results,
    *,
    tiny: bool = False,
    head_dims: Sequence[sweep.Dims] | None = None,
) -> list[Job]:
    """What is left of some STAGES, or of SWEEP with these head_dims, for some implementations and their peers.

    Each task is in one job, though several stages may have it. A job of ours is as many processes as SHARDS says at
    most, each with every so many-th of its tasks. An implementation of which no core case has passed is left out of all
    that follows. Tiny: a rehearsal on a slow device, interpreted.
    """
    planned, known = [], set()
    for name in names:
        for job in _jobs_of(name, implementations, results, tiny, head_dims):
            tasks = []
            for task in job.tasks:
                if (key := tuple(task.items())) not in known and not results.has(**task):
                    known.add(key)
                    tasks.append(task)
            planned += _split(name, dataclasses.replace(job, tasks=tasks), tiny)
    # While what autotunes is compiled, nothing is measured. No choice is made without the headline's.
    return sorted(planned, key=lambda job: job.autotuned and not job.name.startswith("headline"))


def _split(name: str, job: Job, tiny: bool) -> list[Job]:
    if tiny:
        limits = {"seconds": 900.0, "task_seconds": 300.0, "compile_seconds": 300.0}
        return [dataclasses.replace(job, **limits)] if job.tasks else []
    is_split = any(job.name.startswith(f"{name}_{one}") for one in (*OURS, "flex"))
    least = 1 if name in ("core", "training") else LEAST_TASKS
    most = SHARDS.get(name, 1) if is_split else 1
    count = min(most, math.ceil(len(job.tasks) / least))
    if count == 1:
        return [job]
    return [dataclasses.replace(job, name=f"{job.name}_{n}", tasks=job.tasks[n::count]) for n in range(count)]


def _jobs_of(
    name: str,
    implementations: Sequence[str],
    results: Results,
    tiny: bool,
    head_dims: Sequence[sweep.Dims] | None,
) -> list[Job]:
    if name == "core":
        tasks = {one: _core_tasks(one, tiny) for one in implementations}
        return [Job(f"core_{one}", tasks[one], seconds=75) for one in implementations]
    implementations = [one for one in implementations if works(results, one)]
    if name in ("correctness", "fallbacks"):
        pairs = [] if tiny else _checks(implementations, fallbacks=name == "fallbacks")
        return [
            Job(f"{name}_{o}_{dtype}", correctness.tasks_of(o, [dtype]), seconds=400, compile_seconds=150)
            for o, dtype in pairs
        ]
    if name == "training":
        sides = ("xla",) if tiny else implementations[:1]
        tasks = {one: _training_tasks(one, tiny) for one in sides}
        limits: dict[str, Any] = {"seconds": 800.0, "compile_seconds": 390.0, "task_seconds": 50.0, "timed": True}
        return [Job(f"training_{one}", todo, **limits) for one, todo in tasks.items()]
    if name == "profile":
        return [] if tiny else _profile_jobs(implementations, results)
    if name == "shapes":
        sides = [] if tiny else [*implementations, "xla"]
        tasks = {side: speed.tasks_of(side, speed.OTHER_LAYERS, ["both"]) for side in sides}
        return [Job(f"shapes_{o}", todo, 200.0, timed=True, autotuned=o in AUTOTUNED) for o, todo in tasks.items()]
    if name == SWEEP:
        tasks = {one: sweep.tasks_of(one, head_dims, tiny=tiny) for one in implementations}
        return [Job(f"sweep_{one}", todo, seconds=3600, task_seconds=5, timed=True) for one, todo in tasks.items()]
    headline = [layer for layer in speed.LAYERS if layer.length == speed.HEADLINE and layer.dilation == 1]
    layers = list(TINY_LAYERS) if tiny else headline if name == "headline" else list(speed.LAYERS)
    jobs = []
    for side in (*implementations, *PEERS):
        tasks = speed.tasks_of(side, layers)
        package = PEERS.get(side, "jax")
        if importlib.util.find_spec(package) is None:
            for task in (task for task in tasks if not results.has(**task)):
                results.add(record={"outcome": SKIPPED, "reason": f"not installed: {package}"}, **task)
        elif not (tiny and "cudnn" in side):
            if name == "lengths" and side in (*implementations[1:], *SLOW):
                tasks = [task for task in tasks if task["length"] in SOME_LENGTHS]
            seconds = FLEX_SECONDS if side == "flex" else 120.0
            jobs.append(Job(f"{name}_{side}", tasks, seconds, timed=True, autotuned=side in AUTOTUNED, warm=[package]))
    return [] if tiny and name == "lengths" else jobs


def _profile_jobs(implementations: Sequence[str], results: Results) -> list[Job]:
    jobs = []
    for one in implementations:
        profile: dict[str, Any] = {"part": "profile", "implementation": one, "length": speed.HEADLINE}
        memcheck: dict[str, Any] = {
            "part": "memcheck",
            "implementation": one,
            "case": "first",
            "dtype": "bfloat16",
            "work": "both",
        }
        for task, wrapper in ((profile, PROFILER), (memcheck, MEMCHECK)):
            if shutil.which(wrapper[0]):
                limits = {"seconds": 60.0, "task_seconds": 50.0}
                jobs.append(Job(f"{task['part']}_{one}", [task], timed=True, wrapper=wrapper, **limits))
            else:
                results.add(record={"outcome": SKIPPED, "reason": f"not installed: {wrapper[0]}"}, **task)
    return jobs


def works(results: Results, implementation: str) -> bool:
    """Whether one of the core cases has passed, or none was tried."""
    found = [r["outcome"] for r in results["correctness"] if r["implementation"] == implementation]
    return OK in found or not found


def _core_tasks(implementation: str, tiny: bool) -> list[dict[str, Any]]:
    return correctness.core_tasks(implementation, *[TINY_CASES] * tiny)


def _checks(implementations: Sequence[str], *, fallbacks: bool) -> list[tuple[str, str]]:
    """(implementation, dtype): those that come first for what models mostly have, or all others."""
    every = [(one, dtype) for dtype in correctness.DTYPES for one in implementations]
    every = [(one, dtype) for one, dtype in every if dtype in correctness.dtypes_of(one)]
    first = [next((pair for pair in every if pair[1] == dtype), None) for dtype in USUAL_DTYPES]
    return [pair for pair in every if (pair in first) != fallbacks]


def _training_tasks(implementation: str, tiny: bool) -> list[dict[str, Any]]:
    """Steps of training, what compiles longest first; then attention's share of them."""
    variant = "smoke" if tiny else ""  # of configs/char_lm/enwik8_small.py
    key = {"config": "enwik8_small", "implementation": implementation, "variant": variant}
    chosen = TRAINING[-1:] if tiny else TRAINING
    steps = [{"part": "training"} | key | {"phase": n, "every": every, "remat": remat} for n, every, remat in chosen]
    shares = dict.fromkeys((n, every) for n, every, _ in chosen)
    return steps + [{"part": "attention"} | key | {"phase": n, "every": every} for n, every in shares]
