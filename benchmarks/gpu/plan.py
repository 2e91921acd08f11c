"""What there is to do, in stages: what tells most comes first."""

import dataclasses
import importlib.util
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

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
STAGES = ("core", "headline", "training", "correctness", "shapes", "lengths", "profile")
SWEEP = "sweep"  # a stage for itself
FLEX_SECONDS = 240.0  # PyTorch compiles half a minute for each layer
FLEX_SHARDS = 8
FLEX_LENGTHS = range(4096, 131072 + 1)  # where goals are set for
TRAINING_PHASES = (5, 3, 1)
DEVICE = Job("device", [{"part": "rates"}], timed=True)  # tells what the device is, too
AT_ONCE = 20  # processes, most of which compile while one is measured and some wait
SHARDS = {
    "core": 8,
    "correctness": 14,
    "training": 8,
    "shapes": 2,
    "lengths": 3,
    "sweep": 14,
}  # processes of one implementation
# NVIDIA's tools; what they print is in the log of the job.
PROFILER = (
    "ncu", "--clock-control=none", "--kernel-name=regex:banded_attention", "--launch-count=3", "--section=SpeedOfLight",
    "--section=ComputeWorkloadAnalysis", "--section=MemoryWorkloadAnalysis", "--section=WarpStateStats",
    "--section=SchedulerStats",
)  # fmt: skip
MEMCHECK = ("compute-sanitizer", "--tool=memcheck", "--error-exitcode=9")
TINY_CASES = ("ids",)
TINY_LAYERS = (speed.Layer(64, False, 1, window=8, heads=2, head_dim=64),)


class Stage(NamedTuple):
    jobs: list[Job]
    side_by_side: int


def stage(
    name: str,
    implementations: Sequence[str],
    results: Results,
    *,
    tiny: bool = False,
    head_dims: Sequence[sweep.Dims] | None = None,
) -> Stage:
    """One of STAGES, or SWEEP, of these head_dims, for some implementations, and their peers.

    An implementation of which no core case has passed is left out of all that follows.
    """
    if name == "core":
        tasks = {one: _core_tasks(one, tiny) for one in implementations}
        return _stage(name, [Job(f"core_{one}", tasks[one], seconds=75) for one in implementations], tiny)
    implementations = [one for one in implementations if works(results, one)]
    if name == "correctness":
        jobs = [] if tiny else [Job(f"correctness_{o}", correctness.tasks_of(o), seconds=400) for o in implementations]
        return _stage(name, jobs)
    if name == "training":
        sides = ("xla",) if tiny else (*implementations[:1], "xla")
        tasks = {one: _training_tasks(one, tiny) for one in sides}
        # Each layer has kernels of its own, which the compiler takes one after the other: too long for others to wait.
        limits: dict[str, Any] = {"seconds": 800.0, "compile_seconds": 390.0, "task_seconds": 50.0, "timed": True}
        return _stage(name, [Job(f"training_{one}", todo, **limits) for one, todo in tasks.items()], tiny)
    if name == "profile":
        return Stage([] if tiny else _profile_jobs(implementations, results), 1)
    if name == "shapes":
        sides = [] if tiny else [*implementations, "xla"]
        tasks = {side: speed.tasks_of(side, speed.OTHER_LAYERS, ["both"]) for side in sides}
        return _stage(name, [Job(f"shapes_{o}", todo, timed=True, autotuned=o == "xla") for o, todo in tasks.items()])
    if name == SWEEP:
        tasks = {one: sweep.tasks_of(one, head_dims, tiny=tiny) for one in implementations}
        jobs = [
            Job(f"sweep_{one}", todo, seconds=3600, task_seconds=5, timed=True) for one, todo in tasks.items() if todo
        ]
        return _stage(name, jobs, tiny)
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
            job = Job(f"{name}_{side}", tasks, timed=True, autotuned=side == "xla", warm=[package])
            if side == "flex":
                tasks = [task for task in tasks if task["length"] in FLEX_LENGTHS and task["dilation"] == 1]
                job = dataclasses.replace(job, tasks=tasks, seconds=FLEX_SECONDS)
            jobs.append(job)
    return _stage(name, [] if tiny and name == "lengths" else jobs, tiny)


def _stage(name: str, jobs: Sequence[Job], tiny: bool = False) -> Stage:
    """Each job of one of ours as SHARDS processes, each with every so many-th of its tasks.

    Tiny: a rehearsal on a slow device, interpreted, two jobs at a time.
    """
    if tiny:
        limits = {"seconds": 900.0, "task_seconds": 300.0, "compile_seconds": 300.0}
        return Stage([dataclasses.replace(job, **limits) for job in jobs], 2)
    shards = []
    for job in jobs:
        is_ours = any(job.name.startswith(f"{name}_{one}") for one in OURS)
        count = SHARDS.get(name, 1) if is_ours else FLEX_SHARDS if job.name == "lengths_flex" else 1
        for n in range(count):
            number = f"_{n}" if count > 1 else ""
            shards.append(dataclasses.replace(job, name=job.name + number, tasks=job.tasks[n::count]))
    return Stage(shards, AT_ONCE)


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


def _training_tasks(implementation: str, tiny: bool) -> list[dict[str, Any]]:
    """Steps of training, the last phase first, as it compiles longest, and with and without remat; then attention's
    share of them. Of xla the first phase's alone, as it compiles longer still."""
    variant = "smoke" if tiny else ""  # of configs/char_lm/enwik8_small.py
    phases = (1,) if tiny or implementation == "xla" else TRAINING_PHASES
    key = {"config": "enwik8_small", "implementation": implementation, "variant": variant}
    remat = (True,) if tiny or implementation == "xla" else (True, False)
    steps = [{"part": "training"} | key | {"phase": phase, "remat": one} for one in remat for phase in phases]
    return steps + [{"part": "attention"} | key | {"phase": phase} for phase in phases]
