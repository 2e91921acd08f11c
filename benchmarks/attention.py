"""One layer of sliding-window attention on two CPU threads: this project beside its peers, call by call.

    python benchmarks/attention.py --torch-python=PATH
    python benchmarks/attention.py --torch-python=PATH --figure     the forward at more lengths, for benchmarks/plot.py

PATH is the Python of an environment with torch, transformers and local-attention; without it those peers are named and
skipped. Every side is a process of its own (peers/side.py), twice: under glibc's default allocator, and under one that
keeps freed memory, which saves PyTorch most of its page faults. All are asked for one call each in random order, round
after round, so that a busy machine slows all alike. Peak memory comes from a fresh process per case. Ratios compare
medians, each side at its default and each side at its own best setting. Prints a table and writes JSON.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "default": {},
    "keep": {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"},
}
JAX_SIDES = ("ours", "ours_dilated", "ours_global", "jax")
TORCH_SIDES = ("huggingface", "flex", "local", "sdpa")

PEERS = ("jax", *TORCH_SIDES)

# For the figure: none longer than these, as they would take minutes a call or fill the memory.
FIGURE_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
FIGURE_SIDES = {"ours": 32768, "huggingface": 32768, "flex": 32768, "local": 16384, "sdpa": 16384}

Case = tuple[str, int]  # what is computed ("forward", or "both" it and the backward), and T
Measured = dict[tuple[Case, str, str], float]  # by case, side and setting


def runs(side: str, case: Case) -> bool:
    """What is left out: a backward that does not exist, quadratic sides at length, peers that fill the memory there."""
    work, length = case
    if length > 4096 and (side in ("jax", "sdpa", "local") or (work == "both" and side in PEERS)):
        return False
    return (side, work) != ("flex", "both")


class Side:
    """A serving process: it starts in the background, `versions()` waits for it, `ask(line)` gives an answer."""

    def __init__(self, command: list[str], setting: str) -> None:
        self.process = subprocess.Popen(
            [*command, "--serve"],
            env=os.environ | SETTINGS[setting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def versions(self) -> dict[str, str]:
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line: str) -> dict:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()  # closes the pipes


def in_figure(side: str, case: Case) -> bool:
    return case[1] <= FIGURE_SIDES.get(side, 0)


def measure_times(
    commands: dict[str, list[str]], cases: list[Case], rounds: int, runs: Callable[[str, Case], bool] = runs
) -> tuple[Measured, dict[str, str]]:
    """Median milliseconds, and the versions of what ran."""
    samples: dict[tuple[Case, str, str], list[float]] = {}
    versions: dict[str, str] = {}
    for length in sorted({length for _, length in cases}):
        at_length = [case for case in cases if case[1] == length]
        with ExitStack() as stack:  # a set of processes for each length, as they keep what memory they had
            sides = {
                (name, setting): stack.enter_context(Side(command, setting))
                for name, command in commands.items()
                for setting in SETTINGS
                if any(runs(name, case) for case in at_length)
            }
            for side in sides.values():
                versions |= side.versions()
            calls = [(case, name, setting) for name, setting in sides for case in at_length if runs(name, case)]
            for round_number in range(rounds + 1):
                print(f"  length {length}, round {round_number} of {rounds}", file=sys.stderr)
                random.Random(round_number).shuffle(calls)
                for case, name, setting in calls:
                    answer = sides[name, setting].ask(f"{case[0]} {length}")
                    if round_number:  # the round before the first compiles and warms up
                        samples.setdefault((case, name, setting), []).append(answer["milliseconds"])
    return {key: statistics.median(values) for key, values in samples.items()}, versions


def measure_peaks(
    commands: dict[str, list[str]], cases: list[Case], runs: Callable[[str, Case], bool] = runs
) -> Measured:
    """Bytes, each from a process that ran nothing else."""
    peaks: Measured = {}
    for name, command in commands.items():
        for work, length in cases:
            if not runs(name, (work, length)):
                continue
            print(f"  peak memory of {name}, {work} at {length}", file=sys.stderr)
            side = [*command, f"--work={work}", f"--length={length}", "--repeats=1"]
            for setting in SETTINGS:
                # With one arena only, all that was freed before the call can be handed back, and counts when reused.
                environment = os.environ | SETTINGS[setting] | {"MALLOC_ARENA_MAX": "1"}
                ran = subprocess.run(side, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                peaks[(work, length), name, setting] = json.loads(ran.stdout)["bytes"]
    return peaks


def ratio(measured: Measured, over: tuple[Case, str], under: tuple[Case, str]) -> dict[str, float]:
    """The first divided by the second: both at glibc's default, and each at the better of its settings."""

    def at(side: tuple[Case, str]) -> dict[str, float]:
        settings = {setting: measured[*side, setting] for setting in SETTINGS}
        return settings | {"best": min(settings.values())}

    return {setting: at(over)[setting] / at(under)[setting] for setting in ("default", "best")}


def summarise(times: Measured, peaks: Measured, cases: list[Case]) -> list[dict]:
    """Rows of {what, default, best}: ratios to the peers (above 1: this project is better), growth, and costs."""
    rows = []
    names = {name for _, name, _ in times}
    for what, measured in (("time", times), ("peak memory", peaks)):
        for name in [peer for peer in PEERS if peer in names]:
            for case in [case for case in cases if runs(name, case)]:
                found = ratio(measured, (case, name), (case, "ours"))
                rows.append({"what": f"{what}, {case[0]} at {case[1]}: {name} / ours"} | found)
        for (work, short), (_, long) in zip(cases[::2], cases[1::2], strict=True):
            found = ratio(measured, ((work, long), "ours"), ((work, short), "ours"))
            per_token = {setting: value * short / long for setting, value in found.items()}
            rows.append({"what": f"{what} per token, {work}: at {long} / at {short}"} | per_token)
    for name, what in (("ours_dilated", "dilation 4 on 2 of 12 heads"), ("ours_global", "16 global keys")):
        for case in cases:
            found = ratio(times, (case, name), (case, "ours"))
            rows.append({"what": f"time, {case[0]} at {case[1]}: with {what} / without"} | found)
    return rows


def table(results: dict) -> str:
    """All of it as markdown."""
    lines = ["| computed | T | side | allocator | ms | peak MB |", "|---|---|---|---|---|---|"]
    for row in results["measured"]:
        numbers = f"{row['milliseconds']:.1f} | {row['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {row['work']} | {row['length']} | {row['side']} | {row['setting']} | {numbers} |")
    if not results["ratios"]:
        return "\n".join(lines)
    lines += ["", "| ratio | each at its default | each at its best |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['default']:.2f} | {row['best']:.2f} |" for row in results["ratios"]]
    return "\n".join(lines)


def cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path, help="Python of an environment with torch and transformers")
    parser.add_argument("--quick", action="store_true", help="short sequences and few rounds; writes no JSON")
    parser.add_argument("--figure", action="store_true", help="the forward at more lengths, for benchmarks/plot.py")
    parser.add_argument("--output", type=Path, help="default: results/attention_cpu.json, or figure_cpu.json")
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each case")
    options = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    lengths, rounds = ((1024, 4096), 3) if options.quick else ((4096, 32768), options.rounds)
    cases: list[Case] = [(work, length) for work in ("forward", "both") for length in lengths]
    commands = {name: [sys.executable, str(HERE / "peers" / "attention_jax.py"), name] for name in JAX_SIDES}
    if options.torch_python:
        script = str(HERE / "peers" / "attention_torch.py")
        commands |= {name: [str(options.torch_python), script, name] for name in TORCH_SIDES}
    else:
        print(f"skipped, as --torch-python is not given: {', '.join(TORCH_SIDES)}", file=sys.stderr)

    which = runs
    if options.figure:
        which, rounds, cases = in_figure, min(rounds, 5), [("forward", length) for length in FIGURE_LENGTHS]
        commands = {name: command for name, command in commands.items() if name in FIGURE_SIDES}
    times, versions = measure_times(commands, cases, rounds, which)
    peaks = measure_peaks(commands, cases, which)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": versions,
        "layer": "B=1, H=12, D=64, 256 keys a side, float32",
        "settings": SETTINGS,
        "ratios": [] if options.figure else summarise(times, peaks, cases),
        "measured": [
            {"work": case[0], "length": case[1], "side": name, "setting": setting}
            | {"milliseconds": round(times[case, name, setting], 2), "peak_bytes": peaks[case, name, setting]}
            for case, name, setting in sorted(times)
        ],
    }
    print(table(results))
    if not options.quick:
        output = options.output or HERE / "results" / ("figure_cpu.json" if options.figure else "attention_cpu.json")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
