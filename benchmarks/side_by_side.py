"""The measuring that the CPU benchmarks share: processes side by side, call by call.

Every side is a process of its own (peers/side.py), twice: under glibc's default allocator, and under one that keeps
freed memory, which saves PyTorch most of its page faults. All are asked for one call each in random order, round after
round, so that a busy machine slows all alike. Peak memory comes from a fresh process per case. Ratios compare medians,
each side at its default and each side at its own best setting.
"""

import argparse
import dataclasses
import itertools
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
Case = tuple[str, int]  # what is computed ("forward", or "both" it and the backward), and T
Measured = dict[tuple[Case, str, str], float]  # by case, side and setting
Summaries = dict[str, Callable[[Measured, Measured], list[dict]]]  # for each part, from times and peaks


@dataclasses.dataclass(frozen=True)
class Part:
    """sides: the longest sequence that each takes, forward and both; more would take minutes a call or all memory.

    Of lengths that are not `together` each has its own processes, as they keep what memory they had. Of the sides
    `peak_only` no time is taken: all that are timed have to fit into memory at once, those of both allocator settings
    or, where these are `settings_apart`, those of one and then those of the other.
    """

    sides: dict[str, tuple[int, int]]
    works: tuple[str, ...]
    lengths: tuple[int, ...]
    rounds: int
    together: bool = False
    peak_only: tuple[str, ...] = ()
    settings_apart: bool = False
    settings: tuple[str, ...] = tuple(SETTINGS)

    @property
    def cases(self) -> list[Case]:
        return [(work, length) for work in self.works for length in self.lengths]

    def runs(self, side: str, case: Case) -> bool:
        return case[1] <= self.sides[side][case[0] == "both"]


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


def measure_times(part: Part, commands: dict[str, list[str]]) -> tuple[Measured, dict[str, str]]:
    """Median milliseconds, and the versions of what ran."""
    samples: dict[tuple[Case, str, str], list[float]] = {}
    versions: dict[str, str] = {}
    groups = [part.lengths] if part.together else [(length,) for length in part.lengths]
    at_once = [(setting,) for setting in part.settings] if part.settings_apart else [part.settings]
    for lengths, settings in itertools.product(groups, at_once):
        cases = [case for case in part.cases if case[1] in lengths]
        with ExitStack() as stack:
            sides = {
                (name, setting): stack.enter_context(Side(command, setting))
                for name, command in commands.items()
                for setting in settings
                if name not in part.peak_only and any(part.runs(name, case) for case in cases)
            }
            for side in sides.values():
                versions |= side.versions()
            calls = [(case, name, setting) for name, setting in sides for case in cases if part.runs(name, case)]
            for round_number in range(part.rounds + 1):
                print(f"  length {lengths}, {settings}, round {round_number} of {part.rounds}", file=sys.stderr)
                random.Random(round_number).shuffle(calls)
                for case, name, setting in calls:
                    answer = sides[name, setting].ask(f"{case[0]} {case[1]}")
                    if round_number:  # the round before the first compiles and warms up
                        samples.setdefault((case, name, setting), []).append(answer["milliseconds"])
    return {key: statistics.median(values) for key, values in samples.items()}, versions


def measure_peaks(part: Part, commands: dict[str, list[str]]) -> Measured:
    """Bytes, each from a process that ran nothing else."""
    peaks: Measured = {}
    for name, command in commands.items():
        for work, length in part.cases:
            if not part.runs(name, (work, length)):
                continue
            print(f"  peak memory of {name}, {work} at {length}", file=sys.stderr)
            side = [*command, f"--work={work}", f"--length={length}", "--repeats=1"]
            for setting in part.settings:
                # With one arena only, all that was freed before the call can be handed back, and counts when reused.
                environment = os.environ | SETTINGS[setting] | {"MALLOC_ARENA_MAX": "1"}
                ran = subprocess.run(side, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                peaks[(work, length), name, setting] = json.loads(ran.stdout)["bytes"]
    return peaks


def ratio(measured: Measured, over: tuple[Case, str], under: tuple[Case, str]) -> dict[str, float]:
    """The first divided by the second: both at glibc's default, and each at the better of its settings."""

    def at(side: tuple[Case, str]) -> dict[str, float]:
        settings = {setting: measured[*side, setting] for setting in SETTINGS if (*side, setting) in measured}
        return settings | {"best": min(settings.values())}

    return {setting: at(over)[setting] / at(under)[setting] for setting in ("default", "best")}


def beside_peers(times: Measured, peaks: Measured) -> list[dict]:
    """Rows of {what, default, best}; above 1: this project is better."""
    return [
        {"what": f"{what}, {case[0]} at {case[1]}: {name} / ours"} | ratio(measured, (case, name), (case, "ours"))
        for what, measured in (("time", times), ("peak memory", peaks))
        for case, name in sorted({(case, name) for case, name, _ in measured})
        if name != "ours"
    ]


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
    """Its name, and whether it has AVX-512, which some names do not tell and XLA uses."""
    fields = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    found = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    name = found.get("model name", platform.machine())
    return f"{name}, AVX-512" if "avx512f" in found.get("flags", "").split() else name


def run(
    parts: dict[str, Part],
    summaries: Summaries,
    *,
    description: str,
    script: str,
    torch_peers: tuple[str, ...],
    subject: str,
    output_name: str,
    quick: tuple[int, ...],
) -> None:
    """The command line of a benchmark: measures one of its parts, prints tables and writes results/….json.

    Args:
      parts: by name; the command line names one.
      summaries: for each part, from times and peaks to rows of {what, default, best}.
      description: of the command.
      script: peers/SCRIPT_jax.py and peers/SCRIPT_torch.py serve the sides.
      torch_peers: the sides that peers/SCRIPT_torch.py serves.
      subject: what is measured, in words.
      output_name: "{}_cpu.json", with the part's name for {}.
      quick: the lengths of --quick.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--torch-python", type=Path, help="Python of an environment with torch and transformers")
    parser.add_argument("--quick", action="store_true", help="short, shallow, one round; writes no JSON")
    parser.add_argument("--rounds", type=int, help="timed calls of each case")
    parser.add_argument("--output", type=Path, help=f"in place of results/{output_name.format('PART')}")
    options = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    part = parts[options.part]
    if options.quick:
        part = dataclasses.replace(part, lengths=quick, rounds=1, settings=("default",))
    part = dataclasses.replace(part, rounds=options.rounds or part.rounds)
    commands = {}
    for name in part.sides:
        is_torch = name in torch_peers
        if is_torch and not options.torch_python:
            print(f"{name} is skipped, as --torch-python is not given", file=sys.stderr)
            continue
        python, kind = (options.torch_python, "torch") if is_torch else (sys.executable, "jax")
        commands[name] = [str(python), str(HERE / "peers" / f"{script}_{kind}.py"), name, *["--quick"] * options.quick]

    times, versions = measure_times(part, commands)
    peaks = measure_peaks(part, commands)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": versions,
        "layer": subject,
        "rounds": part.rounds,
        "settings": SETTINGS,
        "ratios": summaries[options.part](times, peaks),
        "measured": [
            {"work": case[0], "length": case[1], "side": name, "setting": setting}
            | {"milliseconds": round(times[case, name, setting], 2), "peak_bytes": peaks[case, name, setting]}
            for case, name, setting in sorted(times)
        ],
    }
    print(table(results))
    if not options.quick:
        output = options.output or HERE / "results" / output_name.format(options.part)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n")
