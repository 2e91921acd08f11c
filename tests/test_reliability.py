"""benchmarks/reliability: a few trials of each part, and that a fault would be seen."""

import itertools
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.reliability import endurance, flips, kills, trials
from longformer_jax import InputError


def test_trials_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []

    def trial(rng: random.Random, number: int, shared: str) -> trials.Record:
        drawn.append((number, rng.random()))
        return {"of": shared, "fault": "broken" if number == 3 else None}

    part: Any = SimpleNamespace(prepare=lambda _: nullcontext("all"), trial=trial, table=lambda found: f"{len(found)}")
    assert trials.run("part", part, tmp_path, range(2)) == 0
    with (tmp_path / "part.jsonl").open("a") as file:
        file.write('{"trial": 2, "unfini')
    assert trials.run("part", part, tmp_path, range(5)) == 1
    assert [number for number, _ in drawn] == [0, 1, 2, 3, 4] and len({x for _, x in drawn}) == 5
    assert "trial 3: broken\n5\n\n5 trials, 1 with a fault; python 3" in capsys.readouterr().out


def test_how_a_broken_run_may_end() -> None:
    line, lines = "error: no room\n", "error: no room\nerror: no room\n"
    for fault, status, errors in (
        ("SIGKILL", -9, ""),
        ("SIGTERM", 0, ""),
        ("SIGINT", 130, "error: interrupted\n"),
        ("disk full", 1, line),
        ("disk full", 0, ""),
    ):
        assert kills.is_expected(fault, status, errors)
    for fault, status, errors in (
        ("SIGTERM", 1, line),
        ("SIGINT", 0, "Traceback\n"),
        ("disk full", 1, ""),
        ("read-only", 1, lines),
        ("read-only", -6, line),
    ):
        assert not kills.is_expected(fault, status, errors)


def test_flips_in_models(tmp_path: Path) -> None:
    found = [*itertools.islice(flips.models(tmp_path), 2)]
    records = [flips.trial(random.Random(number), number, found) for number in range(40)]
    assert [record["fault"] for record in records] == [None] * 40
    assert {"named", "harmless", "unnoticed"} == {record["outcome"] for record in records}


@pytest.mark.parametrize(
    ("says", "has_sum", "outcome"),
    [
        ("same", True, "harmless"),
        ("other", False, "unnoticed"),
        ("other", True, "fault"),
        (InputError("file is damaged"), True, "named"),
        (InputError("something is damaged"), True, "fault"),
        (KeyError("x"), False, "fault"),
    ],
)
def test_what_a_flip_leads_to(tmp_path: Path, says: Any, has_sum: bool, outcome: str) -> None:
    def read(directory: Path) -> str:
        if (directory / "file").read_bytes() == b"content":
            return "same"
        if isinstance(says, Exception):
            raise says
        return says

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_bytes(b"content")
    target = flips.make(tmp_path, "files", tmp_path / "files", read, lambda _: has_sum)
    record = flips.trial(random.Random(0), 0, [target])
    assert (record["outcome"], record["fault"] is None) == (outcome, outcome != "fault")


def test_what_grows() -> None:
    def samples(**last: int) -> list[dict[str, int]]:
        """A hundred, the last ten of which may hold more, with a save under way in every other one."""
        usual = {"memory": 10**9, "open files": 10, "programs": 4}
        saving = {"memory": 2 * 10**9, "open files": 40, "programs": 4}
        return [(saving if i % 2 else usual) | {"step": i} | (last if i >= 90 else {}) for i in range(100)]

    assert all(before == after for _, before, after in endurance.ends(samples()))
    assert endurance.ends(samples(programs=5))[-1] == ("programs", 4, 5)


@pytest.mark.slow
def test_trials(run_python: Callable, tmp_path: Path) -> None:
    for part, numbers in (("kills", "3:4"), ("configurations", "0:3")):
        ran = run_python("-m", "benchmarks.reliability", part, tmp_path, f"--trials={numbers}")
        assert ran.returncode == 0, ran
        assert "trials, 0 with a fault; " in ran.stdout


@pytest.mark.slow
def test_endurance(compilation_cache: Path, tmp_path: Path) -> None:
    record = endurance.follow("char_lm", 1000, tmp_path)
    assert len(record["samples"]) >= 90
    assert all(sample["memory"] > 10**8 and sample["programs"] > 1 for sample in record["samples"])
    # In so few steps the allocator still grows, and a program or two may be new.
    assert {name for name, more in record["grown"].items() if more > endurance.SLACK[name]} <= {"memory", "programs"}
