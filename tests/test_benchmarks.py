"""The measuring itself: what a call is said to cost is what it costs."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MEGABYTE = 10**6


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, BENCHMARKS / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


side = load("peers/side.py")
side_by_side = load("side_by_side.py")


def test_peak_counts_the_call_and_not_what_was_there_before() -> None:
    before = np.ones(200 * MEGABYTE, np.uint8)

    def call() -> int:
        np.ones(100 * MEGABYTE, np.uint8)  # freed before the end
        return int(np.ones(50 * MEGABYTE, np.uint8)[0] + before[0])

    assert side.peak_bytes(lambda: call) == pytest.approx(100 * MEGABYTE, rel=0.05)


def test_milliseconds_leave_the_preparation_out() -> None:
    def prepare():
        time.sleep(3)
        return lambda: time.sleep(0.05)

    assert 50 <= side.milliseconds(prepare) < 3000


def test_serving_process_answers_line_by_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS / 'peers')!r}); import side, time\n"
        "side.main({'sleep': lambda work, length: lambda: lambda: time.sleep(length / 1000)}, clock='1.0')\n"
    )
    with side_by_side.Side([sys.executable, str(script), "sleep"], "keep") as serving:
        assert serving.versions() == {"clock": "1.0"}
        assert serving.ask("forward 20")["milliseconds"] >= 20
        assert serving.ask("memory forward 1")["bytes"] < MEGABYTE
    once = subprocess.run([sys.executable, script, "sleep", "--length=5"], capture_output=True, text=True, check=True)
    assert json.loads(once.stdout)["milliseconds"] >= 5


def test_ratio_takes_each_side_at_its_own_best() -> None:
    case = ("forward", 4096)
    measured = {(case, "peer", "default"): 8.0, (case, "peer", "keep"): 3.0}
    measured |= {(case, "ours", "default"): 2.0, (case, "ours", "keep"): 4.0}
    assert side_by_side.ratio(measured, (case, "peer"), (case, "ours")) == {"default": 4.0, "best": 1.5}


@pytest.mark.slow
def test_attention_costs(run_python: Callable) -> None:
    ran = run_python(BENCHMARKS / "attention.py", "costs", "--quick")
    assert ran.returncode == 0, ran.stderr
    measured, ratios = ran.stdout.split("\n\n")
    times = re.findall(r"^\| (\w+) \| (\d+) \| (\w+) \| (\w+) \| ([\d.]+) \| (\d+) \|$", measured, re.MULTILINE)
    assert len(times) == 2 * 2 * 3  # works, lengths, sides
    assert all(float(milliseconds) > 0 and int(peak) > 0 for *_, milliseconds, peak in times)
    assert "time, both at 1024: with dilation 4 on 2 of 12 heads / without" in ratios
    assert len(re.findall(r"^\| .* \| [\d.]+ \| [\d.]+ \|$", ratios, re.MULTILINE)) == 2 * 2 + 2 * 4


@pytest.mark.slow
@pytest.mark.exhaustive
def test_encoder_costs(run_python: Callable) -> None:
    ran = run_python(BENCHMARKS / "encoder.py", "costs", "--quick")
    assert ran.returncode == 0, ran.stderr
    assert "time, forward at 256: with 16 global tokens / without" in ran.stdout
    assert "time, both at 256: with remat / without" in ran.stdout
