"""The estimates of benchmarks/scaling.py against what compiles here."""

import json
from collections.abc import Callable

import pytest

# Cases on one device and on two, whose number is fixed with the first use of JAX.
PROGRAM = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 2)
from benchmarks import scaling
scaling.CHECKS = {name: scaling.CHECKS[name] for name in ("small, remat", "sub-bands")}
print(json.dumps([scaling.check(*case) for case in scaling.cases(2)]))
"""
MAIN = ("-m", "benchmarks.scaling")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_memory_is_that_of_the_compiled_step(run_python: Callable) -> None:
    ran = run_python("-c", PROGRAM)
    assert ran.returncode == 0, ran.stderr
    records = json.loads(ran.stdout.splitlines()[-1])
    assert len(records) == 5 and all(0.9 <= record["ratio"] <= 1.1 for record in records), records
    one, two = (next(r for r in records if (r["length"], r["devices"]) == (16_384, devices)) for devices in (1, 2))
    assert two["compiled_bytes"] <= 0.52 * one["compiled_bytes"]


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config=paper", "--config is 'paper'; expected one of enwik8_large, enwik8_small, "),
        ("--config=quickstart:hour", "config variant is 'hour'; expected "),
        ("--devices=0", "--devices is 0; expected at least 1"),
        ("--devices=3", "--sequence is 1048576; expected a multiple of --devices, 3"),
    ],
)
def test_bad_input(run_python: Callable, flag: str, sentence: str) -> None:
    ran = run_python(*MAIN, flag)
    assert ran.returncode == 2 and ran.stderr.startswith(f"error: {sentence}"), ran.stderr
