"""What None is to mean on a GPU, from the file of its results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.gpu import choose, correctness, plan, speed
from benchmarks.gpu.results import Results
from longformer_jax.attention import choice

ROOT = Path(__file__).resolve().parents[1]


def test_the_fastest_that_is_right_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_FOLDER", tmp_path)
    results = Results(tmp_path / "results.json")
    results.values["device"] = "NVIDIA H100 80GB HBM3"
    milliseconds = {"pallas_mosaic_gpu": 1.0, "pallas_triton": 2.0, "xla": 3.0, "flex": 0.1}
    narrow = next(layer for layer in speed.OTHER_LAYERS if layer.head_dim == 32)  # which Mosaic's kernels fill up
    for side, time_of_side in milliseconds.items():
        for task in speed.tasks_of(side, (*speed.LAYERS[:2], narrow)):
            results[task["part"]].append(task | {"outcome": "ok", "milliseconds": time_of_side})
    for name in plan.OURS:
        for task in correctness.tasks_of(name) + correctness.core_tasks(name):
            results[task["part"]].append(task | {"outcome": "ok"})
    path, arrays = choice.table_path(results.values["device"]), ("bfloat16 32 32", "bfloat16 64 64")
    wrong = results.find("same_bits", implementation="pallas_mosaic_gpu")

    assert f"{arrays[0]}: pallas_mosaic_gpu\n{arrays[1]}: pallas_mosaic_gpu\n" in choose.write(results)
    assert json.loads(path.read_text()) == dict.fromkeys(arrays, "pallas_mosaic_gpu")
    # One case that failed, and one that was not tried, and the next best is chosen.
    wrong["outcome"] = "wrong"
    told = choose.write(results)
    assert json.loads(path.read_text()) == dict.fromkeys(arrays, "pallas_triton")
    assert re.search(r"pallas_mosaic_gpu in bfloat16: of \d+ cases 1 have failed, 0 have not been tried", told)
    results.values["correctness"] = [r for r in results["correctness"] if r["case"] != "everything"]
    choose.write(results)
    assert json.loads(path.read_text()) == dict.fromkeys(arrays, "xla")


def test_the_tables_say_what_the_results_say() -> None:
    results = {
        choice.table_path(json.loads(file.read_text())["device"]): Results(file)
        for file in (ROOT / "benchmarks" / "results").glob("gpu_*.json")
        if "correctness" in json.loads(file.read_text())
    }
    tables = {table: json.loads(table.read_text()) for table in choice._FOLDER.glob("*.json")}
    assert tables
    for path, table in tables.items():
        chosen = choose.choose(results[path]).items()
        assert table == {choice.table_key(*arrays): name for arrays, name in chosen}


@pytest.mark.parametrize(("milliseconds", "is_chosen"), [(2.9, True), (3.1, False)])
def test_xla_that_was_not_measured_is_as_fast_as_with_fewer_numbers(
    tmp_path: Path, milliseconds: float, is_chosen: bool
) -> None:
    results, key = Results(tmp_path / "results.json"), {"work": "both", "causal": True, "dilation": 1}
    key |= {"dtype": "bfloat16", "value_dim": None, "outcome": "ok"}
    # Head_dim 128 is more than 64 + 1, which belong to the same entry as those below; so is the longer sequence.
    for dim, length, of_xla in ((32, 4096, 1.0), (64, 4096, 3.0), (128, 4096, 9.0), (64, 16384, 9.0)):
        of_xla = {"side": "xla", "head_dim": dim, "value_dim": 64, "length": length, "milliseconds": of_xla}
        results["speed"].append(key | of_xla)
    shared = {"side": "pallas_mosaic_gpu", "head_dim": 64, "shared_dim": 22, "milliseconds": milliseconds}
    shared["length"] = 8192
    results["speed"].append(key | shared)
    for task in correctness.tasks_of("pallas_mosaic_gpu") + correctness.core_tasks("pallas_mosaic_gpu"):
        results[task["part"]].append(task | {"outcome": "ok"})
    found = choose.choose(results).get(("bfloat16", 64, 64, 64))
    assert found == ("pallas_mosaic_gpu" if is_chosen else None)
