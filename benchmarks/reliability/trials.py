"""Trials, one after the other: a JSON line for each, and what they come to."""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from benchmarks.side_by_side import cpu_model
from longformer_jax.processes import versions

Record = dict[str, Any]


class Part(Protocol):
    """A module of this package.

    Attributes:
      TRIALS: how many there are.
    """

    TRIALS: int

    def prepare(self, folder: Path) -> AbstractContextManager[Any]:
        """What all trials share; it may write to a folder, which holds what earlier calls have left there."""
        ...

    def trial(self, rng: random.Random, number: int, shared: Any) -> Record:
        """What came out: among it `fault`, in words, or None."""
        ...

    def table(self, records: Sequence[Record]) -> str:
        """What they come to, for people."""
        ...


def run(name: str, part: Part, out: Path, numbers: Iterable[int]) -> int:
    """Runs the trials that are not in OUT/NAME.jsonl yet, prints the table of all, and returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.jsonl"
    earlier = read(path)
    path.write_text("".join(json.dumps(record) + "\n" for record in earlier))  # without half a line
    done = {record["trial"] for record in earlier}
    todo = [number for number in numbers if number not in done]
    if todo:
        with part.prepare(out / name) as shared, path.open("a", buffering=1) as file:
            for number in todo:
                began = time.monotonic()
                record = part.trial(random.Random(f"{name} {number}"), number, shared)
                seconds = round(time.monotonic() - began, 2)
                file.write(json.dumps({"trial": number, "seconds": seconds, **record}) + "\n")
                if record["fault"]:
                    print(f"trial {number}: {record['fault']}", flush=True)
    records = read(path)
    faults = [record for record in records if record["fault"]]
    print(f"{part.table(records)}\n\n{len(records)} trials, {len(faults)} with a fault; {_where_and_when()}")
    return 1 if faults else 0


def read(path: Path) -> list[Record]:
    """The records of the trials that have ended."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _where_and_when() -> str:
    found = {name.removeprefix("version of "): version for name, version in versions().items()}
    programs = ", ".join(f"{name} {version}" for name, version in found.items() if name in ("python", "jax"))
    cpus = len(os.sched_getaffinity(0))
    return f"{programs}, {cpus} threads of {cpu_model()}, {datetime.now(UTC):%Y-%m-%d}"


def crosstable(records: Iterable[Mapping[str, Any]], rows: str, columns: str) -> str:
    """How many there are of each pair of two fields, as Markdown."""
    counts = Counter((str(record[rows]), str(record[columns])) for record in records)
    names = sorted({column for _, column in counts})
    lines = [[rows, *names, "all"], ["---"] * (len(names) + 2)]
    for row in sorted({row for row, _ in counts}):
        numbers = [counts[row, column] for column in names]
        lines.append([row, *map(str, [*numbers, sum(numbers)])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
