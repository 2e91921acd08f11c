"""The tuning space of Mosaic's kernels: what is in it, in which order, and its rehearsal."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.aot import VARIANTS
from benchmarks.gpu import sweep
from benchmarks.gpu.results import Results
from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic.tiling import hopper_tiling, mma_tiling
from tests.pallas_kernels.test_lowering import lowered

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {"pallas_mosaic_gpu": hopper_tiling, "pallas_mosaic_mma": mma_tiling}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_rehearsal(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = ["benchmarks.gpu", "--tiny", "--sweep", f"--output={file}", "--minutes=10"]
    ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-3000:]
    records = json.loads(file.read_text())["sweep"]
    found = {(record["implementation"], record["kernel"]) for record in records}
    assert found == set(itertools.product((f"{name}_interpret" for name in DEFAULTS), PASSES))
    assert all(record["milliseconds"] > 0 for record in records)
    assert [ran.stdout.count(f"\n| {kernel} |") for kernel in PASSES] == [2, 2, 2]


@pytest.mark.parametrize("implementation", DEFAULTS)
def test_it_begins_at_the_defaults_and_goes_away_from_them(implementation: str) -> None:
    default = DEFAULTS[implementation]
    cases = sweep.cases(implementation)
    assert cases[: len(PASSES)] == [((64, 64, 0), kernel, default(kernel, 64, 64)) for kernel in PASSES]
    assert {(dims, kernel) for dims, kernel, _ in cases} == set(itertools.product(sweep.ALL_DIMS, PASSES))
    assert len(cases) == len(set(cases)) < 2000
    changes = [
        sum(value != vars(default(kernel, *dims))[field] for field, value in vars(tiling).items())
        for dims, kernel, tiling in cases
        if dims == (64, 64, 0)
    ]
    assert changes == sorted(changes) and changes[len(PASSES)] == 1 and changes[-1] <= 3


def test_what_is_said_to_compile_is_in_it() -> None:
    cases = sweep.cases("pallas_mosaic_gpu")
    for variant in VARIANTS:
        place = cases.index(((*variant.dims, 0), variant.kernel, variant.tiling))
        assert place < (30 if len(variant.changes) == 1 and variant.dims == (64, 64) else len(cases))


def test_it_measures_what_the_tiling_says() -> None:
    task = next(x for x in sweep.tasks_of("pallas_mosaic_gpu") if x["delta_inside"]) | {"length": 256, "heads": 2}
    assert task["kernel"] == "dq"
    texts = [lowered(*flat(sweep.call_of(task | {"delta_inside": inside}))) for inside in (True, False)]
    assert all("banded_attention_dq" in text for text in texts)
    assert ["stablehlo.reduce(" in text for text in texts] == [False, True]  # where XLA computes delta


def flat(call: tuple) -> tuple:
    return call[0], *call[1]


def test_the_table_shows_the_fastest_and_what_failed(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    outcomes = [{"outcome": "ok", "milliseconds": 9.0 - n} for n in range(8)]
    outcomes += [{"outcome": "skipped", "reason": "too large"}, {"outcome": "hung", "reason": "killed"}]
    tasks = [task for task in sweep.tasks_of("pallas_mosaic_gpu") if task["kernel"] == "dq"]
    for task, record in zip(tasks, outcomes, strict=False):
        results.add(record=record, **task)
    lines = sweep.table(results, "pallas_mosaic_gpu").splitlines()[4:]
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines] == [
        *(f"{ms:.3f}" for ms in (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)),
        "hung",
    ]
