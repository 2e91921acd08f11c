"""Runs jobs in processes of their own, each within its time, and goes on whatever becomes of one.

Nothing here touches the device, which a failed kernel can leave unusable for a process.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import Record, Results

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.05
LEAST = 8.0  # seconds below which no process is started
_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # others need room on the device, too
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "1",
}


# XLA would try dozens of kernels for each product, each compiled on all processors and run on the device.
_UNTUNED = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false --xla_gpu_force_compilation_parallelism=1"


def _environment(autotuned: bool) -> dict[str, str]:
    environment = _ENVIRONMENT | dict(os.environ)
    if not autotuned:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_UNTUNED}".strip()
    return environment


@dataclasses.dataclass(frozen=True)
class Job:
    """Tasks of one implementation or peer.

    Attributes:
      name: of the job, for the log and its file.
      tasks: in their order; each a part and the key of its record.
      seconds: for the whole job, new processes after failures included, starting up and waiting for others not.
      task_seconds: that a task may take once it is compiled.
      compile_seconds: that it may take before; both never more than half of the job's.
      timed: while one of its tasks runs, no other job's does, and no autotuned one's is compiled.
      autotuned: compiling tries things out on the device, which others may do at the same time; else products are
        what cuBLAS takes at first sight.
      warm: packages that the tasks will import, which may be done before.
      wrapper: a command that the process is started by; its status is the verdict.
    """

    name: str
    tasks: Sequence[dict[str, Any]]
    seconds: float = 60.0
    task_seconds: float = 20.0
    compile_seconds: float = 90.0
    timed: bool = False
    autotuned: bool = False
    warm: Sequence[str] = ()
    wrapper: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of a supervisor: seconds until a process has started up, modules it imports."""

    start_seconds: float = 90.0
    modules: Sequence[str] = ()


class Process:
    """One process that goes through the rest of a job."""

    def __init__(self, job: Job, tasks: list[dict[str, Any]], folder: Path, number: int, modules) -> None:
        self.tasks = tasks
        self.state, self.current, self.since = "starting", None, time.monotonic()
        self._spent = 0.0
        self.recorded = 0
        folder.mkdir(parents=True, exist_ok=True)
        file, journal, self._log = (folder / f"{job.name}.{number}.{kind}" for kind in ("tasks", "journal", "log"))
        file.write_text(json.dumps(tasks))
        journal.write_text("")
        options = [*(f"--import={name}" for name in modules), *(f"--warm={name}" for name in job.warm)]
        options += [f"--supervisor={os.getpid()}"]
        options += [f"--lock={folder / 'lock'}"] + ["--timed"] * job.timed + ["--autotuned"] * job.autotuned
        with self._log.open("w") as log:
            self._popen = subprocess.Popen(
                [*job.wrapper, sys.executable, "-m", "benchmarks.gpu.worker", str(file), str(journal), *options],
                cwd=ROOT, env=_environment(job.autotuned), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._journal, self._offset = journal, 0

    def read(self) -> list[dict[str, Any]]:
        """The lines that the journal has got since; notes what the process is at."""
        with self._journal.open() as file:
            file.seek(self._offset)
            lines = [line for line in file.readlines() if line.endswith("\n")]
        self._offset += sum(len(line.encode()) for line in lines)
        found = [json.loads(line) for line in lines]
        for line in found:
            now = time.monotonic()
            self._spent, self.since = self.spent(now), now
            if line.get("ready"):
                self.state = "compiling"
            elif "record" in line:
                self.current, self.recorded = None, line["task"] + 1
            elif "state" in line:
                self.current, self.state = line["task"], line["state"]
        return found

    def spent(self, now: float) -> float:
        """Seconds at work, not those of starting up and of waiting for other processes."""
        return self._spent + (now - self.since) * (self.state in ("compiling", "running"))

    @property
    def ended(self) -> int | None:
        """The exit status, None while it runs."""
        return self._popen.poll()

    def kill(self, wait: float = 5.0) -> None:
        """Ends it, and waits so many seconds; a driver may hold it: then it is left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=wait)

    def last_words(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        telling = [line for line in text.splitlines() if re.search("CUDA|error|Check failed", line, re.IGNORECASE)]
        return (telling or text.splitlines() or [""])[-1].strip()[:250]


class _Running:
    """A job under way: its processes, one after the other."""

    def __init__(self, job: Job, tasks: list[dict[str, Any]]) -> None:
        self.job, self.rest, self.spent, self.number = job, tasks, 0.0, 0
        self.process: Process | None = None


class Supervisor:
    def __init__(self, results: Results, deadline: float, limits: Limits | None = None, say=print) -> None:
        """`deadline` is one of time.monotonic(): at that time nothing that was started runs any more."""
        self.results, self.deadline, self.limits, self._say = results, deadline, limits or Limits(), say
        self.folder = results.path.parent / f"{results.path.stem}_logs"
        self.facts: dict[str, Any] = {}
        self.complete = True

    def run(self, jobs: Sequence[Job], side_by_side: int = 1) -> None:
        """Goes through the jobs' tasks that have no record yet, so many jobs at a time."""
        waiting = []
        for job in jobs:
            tasks = [task for task in job.tasks if not self.results.has(**task)]
            if tasks:
                waiting.append(_Running(job, tasks))
        running: list[_Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side and self._start(waiting[0]):
                    running.append(waiting.pop(0))
                if not running:
                    self.complete = False
                    self._say("  no time is left")
                    break
                time.sleep(POLL)
                running = [one for one in running if self._goes_on(one)]
        finally:  # also when this process is told to end
            processes = [one.process for one in running if one.process]
            for process in processes:  # all, before any of them is waited for
                process.kill(wait=0)
            until = time.monotonic() + 2
            for process in processes:
                process.kill(wait=max(0, until - time.monotonic()))
            for one in running:
                if one.process:
                    self._take(one)

    def _start(self, one: _Running) -> bool:
        if self.deadline - time.monotonic() < LEAST:
            return False
        one.number += 1
        one.process = Process(one.job, one.rest, self.folder, one.number, self.limits.modules)
        return True

    def _goes_on(self, one: _Running) -> bool:
        """Looks after a job; whether it still runs."""
        process, job, now = one.process, one.job, time.monotonic()
        assert process
        status = process.ended  # asked before reading, so that nothing is missed
        self._take(one)
        if status is None:
            overdue = self._overdue(one, now)
            out_of_time = one.spent + process.spent(now) > job.seconds
            if not overdue and not out_of_time and now < self.deadline - 1:
                return True
            process.kill()
            self._take(one)
            if not overdue or process.current is None:
                return self._give_up(one, overdue or ("its time is over" if out_of_time else "the time is over"))
            self._record(one, process.current, {"outcome": "hung", "reason": f"{overdue}; killed"})
        else:
            process.kill()  # what it may have left behind, such as a compiler
            if status == 0:
                return False
            if not self._accounts_for(one, status):
                return self._give_up(one, f"{_status(status)} before its first task: {process.last_words()}")
        one.rest = one.rest[process.recorded :]
        one.spent += process.spent(now)
        if not one.rest:
            return False
        if job.seconds - one.spent < 2:
            return self._give_up(one, "its time is over")
        return self._start(one) or self._give_up(one, "the time is over")

    def _accounts_for(self, one: _Running, status: int) -> bool:
        """Records what a process that failed was at, if it was at anything."""
        process, job = one.process, one.job
        assert process
        if process.current is not None:
            words = process.last_words()
            reason = f"{_status(status)} while {process.state}" + f": {words}" * bool(words)
            self._record(one, process.current, {"outcome": "died", "reason": reason})
        elif job.wrapper and process.recorded:  # what went well for the process did not for its wrapper
            reason = f"{job.wrapper[0]} {_status(status)}: {process.last_words()}"
            self._record(one, process.recorded - 1, {"outcome": "wrong", "reason": reason})
        return bool(process.current is not None or process.recorded)

    def _overdue(self, one: _Running, now: float) -> str | None:
        process, job = one.process, one.job
        assert process
        limit = {
            "starting": self.limits.start_seconds,
            # So that what hangs is found before the job's time is over, and there is some left for what is behind it.
            "compiling": min(job.compile_seconds, job.seconds / 2),
            "running": min(job.task_seconds, job.seconds / 2),
        }.get(process.state)
        if limit is None or now - process.since <= limit:
            return None
        return f"no end {limit:.0f} s after {process.state} had begun"

    def _take(self, one: _Running) -> None:
        process = one.process
        assert process
        for line in process.read():
            self.facts = line.get("facts", self.facts)
            if "record" in line:
                self._add(process.tasks[line["task"]], line["record"])

    def _record(self, one: _Running, number: int, record: Record) -> None:
        assert one.process
        self._add(one.process.tasks[number], record)
        one.process.recorded = number + 1

    def _add(self, task: dict[str, Any], record: Record) -> None:
        self.results.add(record=record, **task)
        said = record.get("reason") or (f"{record['milliseconds']:.3f} ms" if "milliseconds" in record else "")
        self._say(f"  {' '.join(str(x) for x in task.values())}: {record['outcome']} {said}".rstrip())

    def _give_up(self, one: _Running, why: str) -> bool:
        self.complete = False
        self._say(f"  {one.job.name}: {why}")
        return False


def _status(status: int) -> str:
    if status < 0:
        return f"died with {signal.Signals(-status).name}"
    return f"ended with status {status}"


def ends_with_children(run: Callable[[], int]) -> int:
    """Runs it so that SIGTERM ends it like an exception, which takes the processes that it has started along."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return run()
    finally:
        signal.signal(signal.SIGTERM, before)
