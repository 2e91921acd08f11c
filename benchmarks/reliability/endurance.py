"""10,000 steps of each kind of experiment: does anything grow?

Each trial is one run of a tiny experiment by train.py, with 100 checkpoints and 40 validations. A hundred times it is
looked at from outside: resident memory, open files, threads, files in the workdir, and how many programs have been
compiled. The least that there is in the last tenth is compared with the least in the third, when nothing is new any
more; in between there is more, while a checkpoint is written.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.reliability.experiments import EXPERIMENTS, KINDS
from benchmarks.reliability.trials import Record

TRIALS = len(KINDS)
ROOT = Path(__file__).resolve().parents[2]
STEPS = 10_000
SAMPLES = 100
# What may come and go, by the allocator or while a checkpoint is written.
SLACK = {"memory": 16 * 2**20, "open files": 4, "threads": 4, "files": 0, "checkpoints": 1, "programs": 0}

# train.py, which says on standard error when a program is compiled, or taken from the cache of programs.
COUNTING = """
import runpy, sys
import jax
def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        print("compiled", file=sys.stderr, flush=True)
jax.monitoring.register_event_duration_secs_listener(listen)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def prepare(folder: Path) -> Iterator[Path]:
    """The folder of the runs."""
    folder.mkdir(exist_ok=True)
    yield folder


def trial(rng: random.Random, number: int, shared: Path) -> Record:
    """A run of one kind, from its beginning to its end."""
    return follow(KINDS[number], STEPS, shared)


def follow(kind: str, total: int, folder: Path) -> Record:
    """What a run of so many steps holds at each of `SAMPLES` moments, and what of it has grown."""
    workdir = folder / kind
    shutil.rmtree(workdir, ignore_errors=True)
    config = f"{EXPERIMENTS}:{kind}@{folder / 'data' / kind}"
    intervals = {"log": total // SAMPLES, "checkpoint": max(total // 100, 100), "eval": max(total // 40, 40)}
    flags = [f"--config={config}", f"--workdir={workdir}"]
    flags += [f"--config.{name}_interval={steps}" for name, steps in intervals.items()]
    phases = (total,) if kind == "task" else (total // 10, total - total // 10)
    flags += [f"--config.phases[{index}].steps={steps}" for index, steps in enumerate(phases)]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(ROOT / "train.py"), *flags],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    compiled, others = [], []

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            (compiled if line == "compiled\n" else others).append(line)

    listener = threading.Thread(target=listen)
    listener.start()
    samples = []
    assert process.stdout
    with process:
        for line in process.stdout:
            if line.startswith("step ") and "validation" not in line:
                step = int(line.split()[1].split("/")[0].replace(",", ""))
                if step < total:  # not while it ends
                    samples.append({"step": step, **look_at(process.pid, workdir), "programs": len(compiled)})
    listener.join()
    record: Record = {"kind": kind, "steps": total, "samples": samples, "fault": None}
    if process.returncode or others:
        return record | {"fault": f"status {process.returncode}: {''.join(others)[-1000:]}"}
    grown = {name: after - before for name, before, after in ends(samples)}
    too_much = [name for name, more in grown.items() if more > SLACK[name]]
    return record | {"grown": grown, "fault": f"more {', '.join(too_much)}" if too_much else None}


def look_at(pid: int, workdir: Path) -> dict[str, int]:
    """What a process holds; of the files, those that are not on their way."""
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "open files": len(os.listdir(place / "fd")),
        "threads": len(os.listdir(place / "task")),
        "files": sum(len(files) for where, _, files in os.walk(workdir) if "checkpoints" not in where),
        "checkpoints": sum(name.isdecimal() for name in os.listdir(workdir / "checkpoints")),
    }


def ends(samples: Sequence[dict[str, int]]) -> list[tuple[str, int, int]]:
    """The least that there is in the third tenth of a run, when nothing is new any more, and in the last."""
    begin, size = len(samples) // 5, max(len(samples) // 10, 1)
    names = [name for name in samples[0] if name != "step"]
    parts = samples[begin : begin + size], samples[-size:]
    before, after = ({name: min(sample[name] for sample in part) for name in names} for part in parts)
    return [(name, before[name], after[name]) for name in names]


def table(records: Sequence[Record]) -> str:
    """The least that there was in the third tenth of a run, and in the last."""
    names = [name for name, *_ in ends(records[0]["samples"])]
    lines = [["kind", "steps", "memory, MiB", *names[1:]], ["---"] * (len(names) + 2)]
    for record in records:
        scale = {"memory": 2**20}
        found = [(name, *(n // scale.get(name, 1) for n in numbers)) for name, *numbers in ends(record["samples"])]
        values = [f"{before:,} → {after:,}" for _, before, after in found]
        lines.append([record["kind"], f"{record['steps']:,}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
