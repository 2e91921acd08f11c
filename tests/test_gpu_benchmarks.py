"""The commands for a GPU, rehearsed on whatever there is: small shapes, interpreted kernels."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from benchmarks import hopper_model, plot, tune
from benchmarks.gpu import __main__ as commands
from benchmarks.gpu import correctness, plan, report, speed, sweep, timing, worker
from benchmarks.gpu import supervisor as supervisor_module
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervisor import Job, Limits, Supervisor
from pallas_kernels.block_sizes import PASSES, BlockSizes
from pallas_kernels.mosaic import HEAD_DIMS
from tests.attention.cases import ARRAYS, CASE
from tests.attention.oracle import visible_keys

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_whole_command(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = "benchmarks.gpu", "--tiny", f"--output={file}", "--minutes=9"
    ran = run(*command)
    assert not ran.returncode, ran.stderr[-3000:]
    results = json.loads(file.read_text())
    assert {"date", "device", "versions", "rates"} <= results.keys()
    ours = [f"{name}_interpret" for name in plan.OURS]
    tried = {record["implementation"] for record in results["correctness"]}
    assert tried == {*ours, "pallas_mosaic_gpu_serial_interpret"}
    assert all(record["outcome"] == "ok" for record in results["correctness"] + results["same_bits"])
    measured = [record for record in results["speed"] if record["outcome"] == "ok"]
    assert {record["side"] for record in measured} == {*ours, "xla"}
    assert all(record["milliseconds"] > 0 and record["flops_per_second"] > 0 for record in measured)
    (record,), (attention,) = results["training"], results["attention"]
    assert record["phase"] == attention["phase"] == 1 and record["characters_per_second"] > 0
    assert attention["milliseconds"] > 0 and results["code"]
    assert "the same command goes on" not in ran.stdout

    # What is there is not measured again.
    again = run(*command)
    assert not again.returncode, again.stderr[-3000:]
    assert json.loads(file.read_text())["speed"] == results["speed"]

    # Of other code only what peers have found is kept.
    key = {"work": "both", "length": 1, "causal": False, "dilation": 1, "dtype": "bfloat16", "head_dim": 64}
    key |= {"value_dim": None, "milliseconds": 1.0}
    records = [{"side": side, "outcome": "ok"} | key for side in ("pallas_triton", "xla", "flex")]
    file.write_text(json.dumps({"device": results["device"], "code": "another", "speed": records}))
    other = run("benchmarks.gpu", "--tiny", f"--output={file}", "--minutes=9", "--only=profile")
    assert not other.returncode, other.stderr[-3000:]
    assert [record["side"] for record in json.loads(file.read_text())["speed"]] == ["flex"]
    assert "forgot 2 records of other code" in other.stderr


@pytest.mark.parametrize("dims", HEAD_DIMS)
@pytest.mark.parametrize("kernel", PASSES)
def test_the_model_of_the_hopper_kernels(kernel: str, dims: tuple[int, int]) -> None:
    length = 768  # a whole number of blocks
    found = hopper_model.model(kernel, dims, length, 100)
    assert found.band == sum(len(visible_keys(i, 0, length, window=100)) for i in range(length))
    assert 1 < found.computed / found.band < 1.6  # blocks of 64 x 64 on a narrow band
    assert found.items * found.tiling.rows == length
    assert found.least < found.moved
    assert found.blocks * found.tiling.columns * found.tiling.rows >= found.computed
    assert found.programs_per_core >= 1  # it fits into shared memory


def test_hopper_kernels_are_checked_where_they_can_be() -> None:
    tasks, cases = correctness.tasks_of("pallas_mosaic_gpu"), correctness.cases_of("pallas_mosaic_gpu")
    assert {task["dtype"] for task in tasks} == {"bfloat16", "float16"}
    assert {(case.Dk, case.Dv) for case in cases.values()} == {(64, 64), (128, 128), (128, 64)}
    assert list(cases) == [case.name for case in correctness.ALL]
    assert cases["head_dim_128_64"] == correctness.cases_of("pallas_triton")["head_dim_128_64"]
    assert tuple(correctness.cases_of("pallas_triton").values()) == correctness.ALL


@pytest.mark.slow
def test_a_real_run(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"all work and no play makes jack a dull boy\n" * 500)
    ran = run("benchmarks.gpu", "--tiny", "--train=0.2", f"--data={file}", f"--output={tmp_path / 'results.json'}")
    assert not ran.returncode, ran.stderr[-3000:]
    values = json.loads((tmp_path / "results.json").read_text())
    (record,) = values["run"]
    assert record["curve"][-1]["validation_bpc"] < record["curve"][0]["validation_bpc"]
    assert not commands._is_outdated("run", record, values, commands.codes(values["versions"]))  # by the next command


@pytest.mark.slow
def test_tuning_writes_a_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    ran = run("benchmarks.tune", "--tiny", "--dtype=float32", "--head-dim=16,16", f"--output={file}")
    assert not ran.returncode, ran.stderr[-3000:]
    table = json.loads(file.read_text())
    assert table.keys() == {f"{kernel} float32 16 16" for kernel in PASSES}
    assert all(BlockSizes(**sizes) in tune.CANDIDATES for sizes in table.values())


def refused(sizes: BlockSizes) -> float:
    """Whichever are not of one stage, four warps and 64 rows or more."""
    if sizes.num_stages > 1 or sizes.rows == 32:
        raise timing.RefusedError("RuntimeError: too much shared memory\nof many lines")
    if sizes.num_warps == 8:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: the GPU does not take it")
    return float(sizes.rows + sizes.columns)


def test_tuning_passes_over_what_the_compiler_refuses_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes, milliseconds = tune.best(refused, tune.CANDIDATES)
    assert (sizes.rows, sizes.columns, milliseconds) == (64, 32, 96)
    with pytest.raises(TypeError):
        tune.best(lambda sizes: refused(sizes, "an argument too many"), tune.CANDIDATES)  # pyrefly: ignore

    monkeypatch.setattr(tune, "runner", lambda *_: refused)
    file = tmp_path / "table.json"
    monkeypatch.setattr(sys, "argv", ["tune", "--tiny", "--head-dim=16,16", f"--output={file}"])
    assert tune.main() == 1 and not file.exists()
    said = "error: forward bfloat16 16 16: no candidate runs; the last says: RuntimeError: too much shared memory\n"
    assert said in capsys.readouterr().err


def test_what_is_measured_raises_its_own_mistakes_while_it_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(timing.RefusedError, match="^ValueError: Only interpret mode is supported on CPU"):
        timing.prepare_jax(pl.pallas_call(lambda x, y: None, jnp.zeros(8)), jnp.zeros(8))
    with pytest.raises(TypeError):
        timing.prepare_jax(lambda x, y: x, jnp.zeros(8))
    # Which a sweep must not take for a tiling that has no room.
    task = sweep.tasks_of("pallas_mosaic_gpu", tiny=True)[0]
    monkeypatch.setattr(sweep, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep.prepare(task)


def jobs_of(implementations: Sequence[str], cases: Sequence[str]) -> list[Job]:
    key = {"part": "correctness", "dtype": "float32", "work": "forward"}
    tasks = {name: [key | {"implementation": name, "case": case} for case in cases] for name in implementations}
    seconds = {"hangs_while_compiling": 20}  # less than it might take to compile
    return [Job(name, tasks[name], seconds=seconds.get(name, 120), task_seconds=5) for name in implementations]


@pytest.mark.slow
def test_whatever_fails_the_others_go_on(tmp_path: Path) -> None:
    cases = "bidirectional", "causal", "dilation"
    names = "hangs", "dies", "does_not_compile", "gives_nan", "xla", "hangs_while_compiling"
    limits, said = Limits(modules=["tests.gpu_faults"]), []
    results = Results(tmp_path / "results.json")
    supervisor = Supervisor(results, time.monotonic() + 400, limits, said.append)
    supervisor.run(jobs_of(names, cases), side_by_side=2)
    assert supervisor.complete, said

    read = Results(tmp_path / "results.json")
    for name in names:
        others = [read.find("correctness", implementation=name, case=case) for case in cases if case != "causal"]
        assert [record["outcome"] for record in others if record] == ["ok", "ok"], name
    outcomes = {name: read.find("correctness", implementation=name, case="causal") for name in names}
    assert {name: record["outcome"] for name, record in outcomes.items() if record} == {
        "hangs": "hung", "dies": "died", "does_not_compile": "died", "gives_nan": "wrong", "xla": "ok",
        "hangs_while_compiling": "hung",
    }  # fmt: skip
    assert outcomes["hangs_while_compiling"]["reason"] == "no end 10 s after compiling had begun; killed"
    assert outcomes["hangs"]["reason"] == "no end 5 s after running had begun; killed"
    assert outcomes["dies"]["reason"].startswith("died with SIGSEGV while running")
    assert outcomes["does_not_compile"]["reason"].startswith("died with SIGABRT while compiling")
    assert outcomes["gives_nan"]["reason"] == f"out has {40 * 2 * 8} NaN"
    assert outcomes["gives_nan"]["failed"] == ["out"]

    # What hung and what died is not tried again by the same command, and is when asked for.
    again = Supervisor(read, time.monotonic() + 100, limits, said.append)
    again.run(jobs_of(names, cases))
    assert again.complete and read.values == results.values
    read.forget_failures()
    assert not read.has("correctness", case="causal", implementation="hangs")
    assert read.has("correctness", case="causal", implementation="xla")


def test_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that does not even start, and of all together."""
    monkeypatch.setattr(supervisor_module, "LEAST", 1.2)
    limits, said = Limits(start_seconds=0.2), []
    supervisor = Supervisor(Results(tmp_path / "results.json"), time.monotonic() + 100, limits, said.append)
    start = time.monotonic()
    supervisor.run([Job("late", [{"part": "rates"}])])
    assert said == ["  late: no end 0 s after starting had begun"] and not supervisor.complete

    supervisor = Supervisor(Results(tmp_path / "results.json"), time.monotonic() + 2, say=said.append)
    hangs = [{"part": "correctness", "implementation": "xla", "case": "long", "dtype": "float32", "work": "both"}]
    supervisor.run([Job("long", hangs), Job("next", hangs)])
    assert said[1:] == ["  long: the time is over", "  no time is left"]
    assert time.monotonic() - start < 60 and not supervisor.results["correctness"]


@pytest.mark.slow
def test_what_a_wrapper_says_counts(tmp_path: Path) -> None:
    tasks = [{"part": "rates", "dtype": dtype} for dtype in ("bfloat16", "float32")]
    said = []
    supervisor = Supervisor(Results(tmp_path / "results.json"), time.monotonic() + 200, say=said.append)
    complains = "sh", "-c", '"$@"; echo "ERROR SUMMARY: 2 errors"; exit 9', "-"
    supervisor.run([Job("checked", tasks[:1], wrapper=complains), Job("timed", tasks[1:], wrapper=["env"], timed=True)])
    first, second = supervisor.results["rates"]
    assert first["reason"] == "sh ended with status 9: ERROR SUMMARY: 2 errors" and first["outcome"] == "wrong"
    assert second["outcome"] == "ok" and second["flops_per_second"] > 0


def test_a_device_that_refuses_all_that_follows_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(task):
        return {"works": lambda: {"figure": 1.0}, "fails": lambda: 1 / 0}[task["name"]]

    monkeypatch.setitem(worker.PARTS, "fake", (__name__, "fake"))
    monkeypatch.setattr(sys.modules[__name__], "fake", prepare, raising=False)
    tasks = [{"part": "fake", "name": name} for name in ("works", "fails", "works")]
    path = tmp_path / "journal"
    assert worker.work(tasks, worker.Journal(path)) == 0
    monkeypatch.setattr(worker, "device_works", lambda: False)
    assert worker.work(tasks, worker.Journal(path)) == worker.UNUSABLE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    records = [(line["task"], line["record"]["outcome"], line["usable"]) for line in lines if "record" in line]
    assert records == [(0, "ok", True), (1, "error", True), (2, "ok", True), (0, "ok", True), (1, "error", False)]
    assert "division by zero" in lines[5]["record"]["reason"]


def test_the_plan_begins_with_what_tells_most(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    core = plan.jobs(["core"], plan.OURS, results)
    tasks = {job.name: [(t["part"], t["implementation"], t["case"], t.get("work")) for t in job.tasks] for job in core}
    hopper, serial = "pallas_mosaic_gpu", "pallas_mosaic_gpu_serial"
    assert [tasks[f"core_{hopper}_{n}"][0] for n in range(4)] == [
        ("correctness", serial, "first", "forward"), ("correctness", serial, "first", "both"),
        ("correctness", hopper, "first", "forward"), ("correctness", hopper, "first", "both"),
    ]  # fmt: skip
    assert sum(len(found) for name, found in tasks.items() if hopper in name) == len(correctness.core_tasks(hopper))
    assert tasks["core_pallas_triton_0"][0] == ("correctness", "pallas_triton", "first", "forward")
    headline = plan.jobs(["headline"], plan.OURS, results)
    assert [job.name.removeprefix("headline_") for job in headline][:3] == list(plan.OURS)
    assert {(t["length"], t["dilation"]) for job in headline for t in job.tasks} == {(32768, 1)}
    # What is not installed needs no process to say so; what has failed in all core cases is not measured.
    assert results.find("speed", side="flash_attention")["reason"] == "not installed: flash_attn"
    key = {"implementation": "pallas_triton", "dtype": "bfloat16"}
    results.add("correctness", {"outcome": "hung"}, case="first", **key)
    jobs = plan.jobs(["headline"], plan.OURS, results)
    assert "headline_pallas_triton" not in [job.name for job in jobs]
    results.add("correctness", {"outcome": "ok"}, case="ids", **key)
    assert plan.works(results, "pallas_triton")


def test_each_task_is_planned_once_and_not_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    jobs = plan.jobs(plan.STAGES, plan.OURS, results)
    tasks = [task for job in jobs for task in job.tasks]
    assert len({tuple(task.items()) for task in tasks}) == len(tasks) and all(job.tasks for job in jobs)
    ours = {(t["part"], t["implementation"], t["dtype"]) for t in tasks if t["part"] == "correctness"}
    assert ours >= {("correctness", one, dtype) for one in plan.OURS for dtype in correctness.dtypes_of(one)}
    assert {t["dilation"] for t in tasks if t.get("side") == "xla"} == {1, 4}
    comes_last = [job.autotuned and not job.name.startswith("headline") for job in jobs]
    assert comes_last == sorted(comes_last) and any(comes_last)
    for task in tasks:
        results[task["part"]].append(task | {"outcome": "ok"})
    assert plan.jobs(plan.STAGES, plan.OURS, results) == []


def test_figures_of_other_code_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[str, Any] = {**commands.codes({"jax": "1"})}
    assert now != commands.codes({"jax": "2"}) and now["code"] != now["training_code"]
    now["versions"] = {}
    ours, peer = {"side": "xla", "implementation": "xla"}, {"side": "flex"}
    for changed, outdated in (("code", {"speed", "correctness"}), ("training_code", {"training", "attention"})):
        before = now | {changed: "other"}
        parts = ("speed", "correctness", "training", "attention", "rates")
        assert {part for part in parts if commands._is_outdated(part, ours, before, now)} == outdated
        assert not commands._is_outdated("speed", peer, before, now)
    for package, outdated in (("torch", True), ("transformers", False)):
        before, later = (now | {"versions": {package: version}} for version in ("1", "2"))
        assert commands._is_outdated("speed", peer, before, later) == outdated


def test_the_report_fits_a_screen(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.values |= {"device": "a GPU", "versions": {"jax": "1"}}
    results.add("rates", {"outcome": "ok", "flops_per_second": 1e15, "bytes_per_second": 3e12})
    for side in (*plan.OURS, *plan.PEERS):
        for task in speed.tasks_of(side, speed.LAYERS):
            found = {"outcome": "ok", "milliseconds": 0.5, "bytes": 1, "flops_per_second": 4e14}
            if side == "huggingface":
                found = {"outcome": "skipped", "reason": "not installed: transformers"}
            results[task["part"]].append({k: v for k, v in task.items() if k != "part"} | found)
    for name in plan.OURS:
        for task in correctness.tasks_of(name):
            results[task["part"]].append(task | {"outcome": "died", "reason": "died with SIGSEGV"})
    lines = report.summary(results).splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= report.WIDTH
    assert lines[0] == "a GPU, jax 1; matmul 1e+03 TFLOP/s, copy 3 TB/s"
    assert any(line.startswith("pallas_triton") and line.split()[1:] == ["0.500", "0.500", "40%"] * 2 for line in lines)
    assert any("not installed: transformers" in line for line in lines)
    assert sum(line.startswith("FAILED") for line in lines) == report.FAILURES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmarks.gpu", "--train=1"], "--train=MINUTES and --data=FILE go together"),
        (["benchmarks.gpu", "--tiny", "--train=1", "--data=nowhere"], "--data is nowhere, which is not a file"),
        (["benchmarks.tune", "--tiny", "--head-dim=x"], "expected pairs such as 128,64"),
        (["benchmarks.plot", "nowhere.json", "picture.png"], "nowhere.json is not a file"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert message in ran.stderr


@pytest.fixture(scope="module")
def right() -> tuple[list, list]:
    """What a right implementation finds in a case, and what is expected of it."""
    case = CASE["bidirectional"]
    compiled = correctness._compiled("xla", case, "float32", False)
    expected = correctness.comparison(case, "float32")()
    return list(compiled(case.inputs(), case.cotangents())), expected


@pytest.mark.parametrize(
    ("factor", "reason"), [(1.001, "is off by"), (np.nan, "NaN"), (-np.inf, "is off by inf")], ids=str
)
def test_a_wrong_kernel_fails(factor: float, reason: str, right: tuple[list, list]) -> None:
    found, expected = right
    assert correctness.verdict(found, True, expected)["outcome"] == "ok"
    for number, name in enumerate(ARRAYS):
        wrong = [x * (factor if i == number else 1) for i, x in enumerate(found)]
        record = correctness.verdict(wrong, True, expected)
        assert (record["outcome"], record["failed"]) == ("wrong", [name])
        assert reason in record["reason"] or (factor < 0 and "NaN" in record["reason"])


def test_a_kernel_that_does_not_repeat_fails(right: tuple[list, list]) -> None:
    found, expected = right
    record = correctness.verdict(found, False, expected)
    assert record["outcome"] == "wrong" and record["reason"] == "runs differ" and not record["failed"]


def test_bits_are_compared(right: tuple[list, list]) -> None:
    found, _ = right
    nan = [found[0] * np.nan, *found[1:]]
    same = correctness._comparer(found)
    assert same(found, found) and same(nan, nan)
    assert not same(found, [*found[:-1], found[-1] * np.float32(1.0000002)])
    assert not same(found, nan)
    assert correctness.same_bits(found, found, "it") == {"outcome": "ok", "units": {}}
    record = correctness.same_bits([found[0] * 1.001, *found[1:]], found, "it")
    assert (record["outcome"], record["failed"]) == ("wrong", ["out"])
    assert re.match(r"not the bits of it: out by 8\d\d\d\.\d units", record["reason"])


def test_repeated_calls_are_all_made() -> None:
    """XLA must not leave out a call whose result no one looks at."""
    x = jax.random.normal(jax.random.key(0), (64, 64))
    repeated = jax.jit(partial(timing.repeated, lambda x, y: (x @ y, jnp.sin(x)), timing.CHAIN))
    compiled = repeated.lower((x, x), jnp.int32(3)).compile()
    text = compiled.as_text()
    assert (
        "while" in text and f'"known_trip_count":{{"n":"{timing.CHAIN}"}}' in text
    )  # launched without being asked for
    assert re.search(r"\bdot\(", text) and "sine(" in text
    calls = 3 * timing.CHAIN
    np.testing.assert_allclose(compiled((x, x), jnp.int32(3)), calls * ((x @ x)[0, 0] + jnp.sin(x[0, 0])), rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_flops_count_the_visible_pairs(causal: bool, dilation: int) -> None:
    layer = speed.Layer(50, causal, dilation, window=8)
    band = {"window": 8, "causal": causal, "dilation": dilation}
    assert layer.flops("both") == 7 * layer.flops("forward") / 2
    wide = dataclasses.replace(layer, head_dim=128, value_dim=64)
    shared = dataclasses.replace(layer, shared_dim=64)  # no gradient of it
    assert shared.flops("forward") == 1.5 * layer.flops("forward") and shared.flops("both") == 10 / 7 * layer.flops(
        "both"
    )
    assert wide.flops("forward") == 1.5 * layer.flops("forward") and wide.flops("both") == 11 / 7 * layer.flops("both")
    assert layer.pairs == sum(len(visible_keys(i, 0, 50, **band)) for i in range(50))


def test_peers_that_are_missing_are_named(tmp_path: Path) -> None:
    layer = speed.Layer(64, causal=True, dtype="float32")
    tasks = [task for side in ("flash_attention", "full_cudnn") for task in speed.tasks_of(side, [layer])]
    path = tmp_path / "journal"
    assert worker.work(tasks, worker.Journal(path)) == 0
    records = [json.loads(line).get("record") for line in path.read_text().splitlines()]
    found = [(record["outcome"], record["reason"]) for record in records if record]
    assert found[0] == ("skipped", "not installed: flash_attn") and found[2][0] == "error"


def test_results_replace_records_of_the_same_key(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.add("speed", {"milliseconds": 2.0}, side="x", length=1)
    results.add("speed", {"milliseconds": 1.0}, side="x", length=1)
    results.add("speed", {"milliseconds": 3.0}, side="x", length=2)
    read = Results(tmp_path / "results.json")
    assert [record["milliseconds"] for record in read["speed"]] == [1.0, 3.0]
    assert read.has("speed", side="x", length=2) and not read.has("speed", side="y")
    assert not Results(tmp_path / "results.json", afresh=True)["speed"]


def test_figure(tmp_path: Path) -> None:
    rows = [
        {"work": "forward", "length": n, "side": side, "setting": setting, "milliseconds": n * slow, "peak_bytes": n}
        for n in (1024, 2048)
        for side, slow in (("ours", 1.0), ("sdpa", 3.0), ("unknown", 9.0))
        for setting, slow in (("default", slow), ("keep", slow / 2))
    ]
    results = {"cpu": "a processor", "threads": 2, "measured": rows}
    assert plot.series(results, "forward")["ours"] == [(1024, 512.0, 1024), (2048, 1024.0, 2048)]
    assert plot.series(results, "forward").keys() == {"ours", "sdpa"}
    plot.draw(results, "forward", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no times for 'both'"):
        plot.draw(results, "both", tmp_path / "none.png")


def test_figures_are_of_one_kind_of_layer(tmp_path: Path) -> None:
    """Neither the figure nor the table mixes in other head_dims, dtypes or shared keys, nor counts without a rate."""
    usual = {"part": "speed", "outcome": "ok", "side": "pallas_triton", "work": "both", "length": 8192, "bytes": 1}
    usual |= {"causal": False, "dilation": 1, "dtype": "bfloat16", "head_dim": 64, "value_dim": None, "shared_dim": 0}
    usual |= {"milliseconds": 2.5, "flops_per_second": 4e14}
    others = ({"dtype": "float16"}, {"head_dim": 32}, {"value_dim": 32}, {"shared_dim": 64}, {"length": 1024})
    results = Results(tmp_path / "results.json")
    results.values["speed"] = [usual, *({**usual, **other, "milliseconds": 1.0} for other in others)]
    results.values["device"] = "a GPU"
    assert plot.series(results.values, "both")["pallas_triton"] == [(1024, 1.0, 1), (8192, 2.5, 1)]
    (line,) = [line for line in report.summary(results).splitlines() if line.startswith("pallas_triton  ")][:1]
    assert line.split() == ["pallas_triton", "2.500"] and "ms, T=8192" in report.summary(results)
