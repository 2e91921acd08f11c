"""The commands for a GPU, rehearsed on whatever there is: small shapes, interpreted kernels."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hopper_model, plot, tune
from benchmarks.gpu import correctness, speed, timing
from benchmarks.gpu.results import Results
from pallas_kernels.block_sizes import PASSES, BlockSizes
from pallas_kernels.mosaic import HEAD_DIMS
from tests.attention.cases import CASE, CASES
from tests.attention.oracle import visible_keys

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    ran = run("benchmarks.gpu", "--tiny", f"--output={file}", "--minutes=10")
    assert not ran.returncode, ran.stderr[-3000:]
    results = json.loads(file.read_text())
    assert {"date", "device", "versions"} <= results.keys()
    assert len(results["correctness"]) == 9 and all(record["passed"] for record in results["correctness"])
    assert {record["side"] for record in results["speed"]} == {"pallas_triton_interpret", "xla"}
    assert all(record["milliseconds"] > 0 and record["of_matmul"] > 0 for record in results["speed"])
    assert [record["phase"] for record in results["training"]] == [1]
    assert all(record["characters_per_second"] > 0 for record in results["training"])

    # What is there is not measured again; a part of it can be forgotten by hand.
    again = run("benchmarks.gpu", "--tiny", f"--output={file}", "--only=speed")
    assert not again.returncode, again.stderr[-3000:]
    assert json.loads(file.read_text())["speed"] == results["speed"]


@pytest.mark.slow
def test_the_sweep_of_mosaics_kernels(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    ran = run("benchmarks.gpu", "--tiny", "--sweep", f"--output={file}")
    assert not ran.returncode, ran.stderr[-3000:]
    records = json.loads(file.read_text())["sweep"]
    found = [(record["implementation"], record["kernel"]) for record in records]
    assert found == [(name, kernel) for name in ("pallas_mosaic_gpu", "pallas_mosaic_mma") for kernel in PASSES]
    assert all(record["milliseconds"] > 0 for record in records)
    assert len(ran.stdout.splitlines()) == 2 * (4 + len(PASSES))


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
    cases, dtypes = correctness.supported("pallas_mosaic_gpu", (*correctness.SHAPES, *CASES))
    assert dtypes == ("bfloat16", "float16")
    assert {(case.Dk, case.Dv) for case in cases} == {(64, 64), (128, 128), (128, 64)}
    assert [case.name for case in cases] == [case.name for case in (*correctness.SHAPES, *CASES)]
    assert correctness.supported("pallas_triton", CASES) == (CASES, correctness.DTYPES)


@pytest.mark.slow
def test_a_real_run(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"all work and no play makes jack a dull boy\n" * 500)
    ran = run("benchmarks.gpu", "--tiny", "--train=0.2", f"--data={file}", f"--output={tmp_path / 'results.json'}")
    assert not ran.returncode, ran.stderr[-3000:]
    (record,) = json.loads((tmp_path / "results.json").read_text())["run"]
    assert record["curve"][-1]["validation_bpc"] < record["curve"][0]["validation_bpc"]


@pytest.mark.slow
def test_tuning_writes_a_table(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    ran = run("benchmarks.tune", "--tiny", "--dtype=float32", "--head-dim=16,16", f"--output={file}")
    assert not ran.returncode, ran.stderr[-3000:]
    table = json.loads(file.read_text())
    assert table.keys() == {f"{kernel} float32 16 16" for kernel in PASSES}
    assert all(BlockSizes(**sizes) in tune.CANDIDATES for sizes in table.values())


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


def test_a_wrong_kernel_fails() -> None:
    case = CASE["bidirectional"]
    compiled = correctness._compile(case, "float32", "xla")
    assert correctness._check_case(case, "float32", compiled)["passed"]
    for array in range(5):

        def wrong(*arguments, array=array):
            found = list(compiled[0](*arguments))
            found[array] = found[array] * 1.001
            return found

        record = correctness._check_case(case, "float32", (wrong, *compiled[1:]))
        assert record["failed"] == [correctness.ARRAYS[array]]


def test_a_kernel_that_does_not_repeat_fails() -> None:
    case, noise = CASE["bidirectional"], iter(range(100))
    ours, *others = correctness._compile(case, "float32", "xla")

    def unsteady(*arguments):
        return [x + np.float32(1e-7) * (next(noise) % 2) for x in ours(*arguments)]

    record = correctness._check_case(case, "float32", (unsteady, *others))
    assert not record["repeatable"] and not record["passed"]


def test_repeated_calls_are_all_made() -> None:
    """XLA must not leave out a call whose result no one looks at."""
    x = jax.random.normal(jax.random.key(0), (64, 64))
    compiled = jax.jit(timing.repeated(lambda x, y: (x @ y, jnp.sin(x)), 10)).lower((x, x)).compile()
    text = compiled.as_text()
    assert "while" in text
    assert re.search(r"\bdot\(", text) and "sine(" in text
    np.testing.assert_allclose(compiled((x, x)), 10 * ((x @ x)[0, 0] + jnp.sin(x[0, 0])), rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_flops_count_the_visible_pairs(causal: bool, dilation: int) -> None:
    layer = speed.Layer(50, causal, dilation, window=8)
    band = {"window": 8, "causal": causal, "dilation": dilation}
    assert layer.pairs == sum(len(visible_keys(i, 0, 50, **band)) for i in range(50))


def test_peers_that_are_missing_are_named() -> None:
    def missing(layer):
        import no_such_package  # type: ignore  # noqa: F401

    assert speed._measure_side(missing, False, speed.Layer(8), "forward") == {
        "skipped": "not installed: no_such_package"
    }


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
