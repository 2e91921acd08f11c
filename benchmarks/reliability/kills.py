"""Runs that are broken off at random moments, and started again, end as a run does that nothing has happened to.

Each trial trains one of the kinds of experiments by train.py, and breaks it off up to three times: by SIGKILL, SIGTERM
or SIGINT, or by a disk that is full or a directory that cannot be written to from some moment on. Moments are drawn
over the whole run: while it starts, at a step, while a checkpoint or the best parameters are being written, at the end
of the first phase, and at the end of the run. Then it runs to its end. Its parameters, the optimizer's state, the model
that it leaves and all figures of its log have to be those of the unbroken run, bit for bit. Some trials go on with 8, 4
and 2 simulated devices, where the figures have to agree up to rounding.

train.py runs in forks of this process, which spares each the seconds that its libraries take to load.

Full disks and read-only directories are real ones, mounted where nobody else sees them, which takes the rights of root.
"""

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.reliability.experiments import EXPERIMENTS, KINDS, experiment
from benchmarks.reliability.forks import Fork, run_train
from benchmarks.reliability.trials import Record, crosstable
from longformer_jax.checkpoints import Checkpoints
from longformer_jax.checksums import file_sum
from longformer_jax.training import ExperimentConfig
from longformer_jax.training.metrics import read_metrics
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import abstract_state

TRIALS = 50
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
DISK = ("disk full", "read-only")
MOMENTS = ("start", "step", "step", "save", "save", "phase's end", "run's end")
BEST = ("best", "best")  # of a kind that keeps the best parameters, too; later on there may be none that are better
DEVICES = (8, 4, 2)
# Of all scores of a run, in runs on other devices: what rounding makes of dozens of steps of training.
TOLERANCE = 1e-4
DISK_SIZE = 64 * 2**20
TIMEOUT = 600  # seconds, after which a run counts as one that hangs


@dataclass(frozen=True)
class Lab:
    """The folder of all trials, and whether directories can be mounted."""

    folder: Path
    mounts: bool

    def run(self, kind: str, workdir: Path, devices: int | None = None) -> Fork:
        """train.py, whose output is in the file `log`."""
        flags = [f"--config={EXPERIMENTS}:{kind}@{self.folder / 'data' / kind}", f"--workdir={workdir}"]
        if devices:  # whose number is not to change the number of microbatches
            flags.append("--config.phases[0].sequences_per_device=8")
        train = functools.partial(run_train, flags, devices=devices, programs=self.folder / "compiled")
        return Fork(train, self.log, self.folder / "errors")

    @property
    def log(self) -> Path:
        """What the last run has printed."""
        return self.folder / "log"

    def unbroken(self, kind: str, devices: int | None = None) -> Path:
        """The workdir of a run that nothing happens to."""
        name = kind if devices is None else f"{kind}-{devices}"
        workdir = self.folder / "unbroken" / name
        if not (workdir / "curve.png").exists():
            shutil.rmtree(workdir, ignore_errors=True)
            workdir.parent.mkdir(exist_ok=True)
            with self.run(kind, workdir, devices) as run:
                assert (run.wait(), run.errors) == (0, ""), run.errors
        return workdir


@contextmanager
def prepare(folder: Path) -> Iterator[Lab]:
    """The data, and a table of mounts of this process's own, where that can be had."""
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        experiment(kind, folder / "data" / kind)
    try:
        os.unshare(os.CLONE_NEWNS)
        mount("--make-rprivate", "/")
        mounts = True
    except (AttributeError, OSError, subprocess.CalledProcessError) as error:
        print(f"No disk will be full and no directory read-only, as nothing can be mounted here: {error}")
        mounts = False
    yield Lab(folder, mounts)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@contextmanager
def own_disk(folder: Path, lab: Lab) -> Iterator[None]:
    """A small disk, where that can be had."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if lab.mounts:
        mount("-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", folder)
    try:
        yield
    finally:
        if lab.mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder)


@contextmanager
def full(folder: Path, rng: random.Random) -> Iterator[str]:
    """Leaves little room on the disk of a folder."""
    left = rng.choice([0, 2 ** rng.randint(10, 18)])
    with (folder / "ballast").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(2**16)):
                pass
        file.truncate(max(file.tell() - left, 0))
    yield f"{left} bytes left"
    (folder / "ballast").unlink()


@contextmanager
def read_only(workdir: Path, rng: random.Random) -> Iterator[str]:
    """Lets nothing new be written to the workdir or to its checkpoints; what is open stays so."""
    place = rng.choice([workdir, workdir / "checkpoints"])
    place = place if place.exists() else workdir
    place.mkdir(exist_ok=True)
    mount("--bind", place, place)
    mount("-o", "remount,ro,bind", place)
    yield place.name
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def draw_moment(
    rng: random.Random, kinds: Sequence[str], start: int, end: int, total: int
) -> tuple[str, Callable[[str, Path], bool]]:
    """A moment, in words, and whether it has come, by the output and the workdir; of steps, one between two of them."""
    kind = rng.choice(kinds)
    step, delay = rng.randint(start + 1, end), rng.uniform(0, 1)
    came: list[float] = []

    def later(there: bool, seconds: float) -> bool:
        """Whether it is so many seconds after what is there now."""
        if there and not came:
            came.append(time.monotonic() + seconds)
        return bool(came) and time.monotonic() >= came[0]

    def has_come(output: str, workdir: Path) -> bool:
        at_step = f"\nstep {step}/" in output
        match kind:
            case "start":
                return later(True, 3 * delay)
            case "step":
                return later(at_step, delay / 20)
            case "save":
                return at_step and any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
            case "best":
                return any(path.name != "params" for path in (workdir / "best").glob("*/*"))
            case "phase's end":
                return later("\ncompiling phase 2" in output or f"\nstep {total - 10}/" in output, delay)
            case _:
                return later(f"\nstep {total}/" in output, delay / 2)

    return kind, has_come


def break_off(
    lab: Lab, kind: str, workdir: Path, rng: random.Random, devices: int | None, part: tuple[int, int]
) -> Record:
    """Starts a run, breaks it off in a part of its steps, and tells what came of it: `ended` where it was faster."""
    config = experiment(kind, lab.folder / "data" / kind)
    total, moments = config.total_steps, MOMENTS + BEST * (config.keep_best and not part[0])
    fault = rng.choice([*SIGNALS, *(DISK if lab.mounts and devices is None else ())])
    moment, has_come = draw_moment(rng, moments if devices is None else ("step", "save"), *part, total)
    record: Record = {"fault": None, "break": fault, "moment": moment, "detail": None}
    with ExitStack() as stack:
        run = stack.enter_context(lab.run(kind, workdir, devices))
        while run.poll() is None and not has_come(lab.log.read_text(), workdir):
            time.sleep(0.005)
        record["ended"] = run.poll() is not None
        if fault in SIGNALS:
            run.send(SIGNALS[fault])
        elif fault == "read-only":
            record["detail"] = stack.enter_context(read_only(workdir, rng))
        else:
            record["detail"] = stack.enter_context(full(workdir.parent, rng))
        status, errors = run.wait(TIMEOUT), run.errors
        if status is None:
            return record | {"fault": f"hangs after {fault}", "errors": errors[-2000:]}
    saving = [path.name for path in (workdir / "checkpoints").glob("*tmp*")]
    record |= {"status": status, "errors": errors[-2000:], "saving": len(saving), "step": _last(workdir)}
    if not is_expected(fault, status, errors):
        record["fault"] = f"{fault} ends with status {status} and {errors[-300:]!r}"
    return record


def is_expected(fault: str, status: int, errors: str) -> bool:
    """Whether a run that meets a fault ends in the right way: with at most one line on standard error."""
    if errors and not (errors.startswith("error: ") and errors.count("\n") == 1):
        return False
    if fault in SIGNALS:  # before it listens, they end it
        return status in (0, -SIGNALS[fault]) or (fault == "SIGINT" and status == 130)
    return (status in (1, 2)) == bool(errors)  # without, it needed no more room, or was over


def _last(workdir: Path) -> int:
    """The last step in the log."""
    return max((record["step"] for record in read_metrics(workdir / "metrics.jsonl")), default=0)


def trial(rng: random.Random, number: int, shared: Lab) -> Record:
    """Breaks a run off, up to three times, and lets it run to its end."""
    lab = shared
    kind = KINDS[0] if number % 2 == 0 else KINDS[1 + number // 2 % 2]
    devices = DEVICES if number % 5 == 4 else None
    record: Record = {"kind": kind, "devices": devices, "fault": None, "breaks": []}
    folder = lab.folder / f"trial{number}"
    with own_disk(folder, lab):
        workdir = folder / "run"
        total = experiment(kind, lab.folder / "data" / kind).total_steps
        parts = [(0, total // 3), (total // 3, 2 * total // 3)] if devices else [(0, total)] * rng.randint(1, 3)
        for index, part in enumerate(parts):
            begin = max(part[0], _last(workdir))
            end = max(part[1], begin + 1)
            broken = break_off(lab, kind, workdir, rng, devices and devices[index], (begin, end))
            record["breaks"].append(broken)
            record["fault"] = record["fault"] or broken["fault"]
            if _last(workdir) >= total:
                break
        with lab.run(kind, workdir, devices and devices[-1]) as run:
            status, errors = run.wait(TIMEOUT), run.errors
        if (status, errors) != (0, ""):
            record["fault"] = record["fault"] or f"does not go on: {status}, {errors[-500:]}"
            return record
        unbroken = lab.unbroken(kind, devices and devices[0])
        with Fork(
            lambda: print(json.dumps(compare(workdir, unbroken, devices is not None))), lab.log, lab.folder / "errors"
        ) as run:
            record |= json.loads(lab.log.read_text()) if run.wait() == 0 else {"differs": [run.errors]}
        record["fault"] = record["fault"] or ", ".join(record["differs"]) or None
    return record


def compare(workdir: Path, unbroken: Path, rounding: bool) -> Record:
    """What differs between two finished runs, in words."""
    differs = [
        f"{path.name} is left over" for path in workdir.rglob("*") if "tmp" in path.name or "partial" in path.name
    ]
    names = [{path.name for path in place.iterdir()} for place in (workdir, unbroken)]
    differs += [f"{name} is not in both" for name in names[0] ^ names[1]]
    ours, theirs = (_figures(place) for place in (workdir, unbroken))
    if [record.keys() for record in ours] != [record.keys() for record in theirs]:
        differs.append("the log has other lines")
    elif rounding:
        one, other = ([record.get("bpc", record.get("loss")) for record in figures] for figures in (ours, theirs))
        largest = float(np.max(np.abs(np.divide(one, other) - 1)))
        differs += ["the scores differ"] if largest > TOLERANCE else []
        return {"differs": differs, "largest": largest}
    else:
        differs += ["the figures of the log differ"] if ours != theirs else []
    differs += sorted({f"{name} differs" for name, _ in _contents(workdir) ^ _contents(unbroken)})
    return {"differs": differs}


def _figures(workdir: Path) -> list[dict[str, Any]]:
    """The records of a log, without what depends on the time that they took."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "mfu" and not k.endswith("_per_second")} for record in records]


def _contents(workdir: Path) -> set[tuple[str, str]]:
    """The last state of a run and the files of its model, by digests."""
    config = ExperimentConfig.load(workdir)
    with Checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        state = checkpoints.restore(abstract_state(config, make_mesh(config.mesh)), config.total_steps)
    tensors = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    found = {(jax.tree_util.keystr(path), hashlib.sha256(tensor.tobytes()).hexdigest()) for path, tensor in tensors}
    return found | {(path.name, file_sum(path)) for path in (workdir / "model").iterdir()}


def table(records: Sequence[Record]) -> str:
    """Where runs were broken off, and what came of it."""
    breaks = [broken for record in records for broken in record["breaks"]]
    landed = [broken for broken in breaks if not broken["ended"]]
    saving = sum(bool(broken.get("saving")) for broken in landed)
    several = [record["largest"] for record in records if "largest" in record]
    lines = [
        crosstable(landed, "break", "moment"),
        "",
        f"{len(landed)} of {len(breaks)} breaks came before the run's end; {saving} left a checkpoint half-written.",
    ]
    if several:
        lines.append(f"{len(several)} runs on 8, 4 and 2 devices; the scores differ by {max(several):.1e} at most.")
    return "\n".join(lines)
