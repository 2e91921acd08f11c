"""The kernels as the compilers for real GPUs see them. Needs the extra `aot`; `make aot` installs it and runs this."""

import importlib.util

import pytest

from benchmarks.aot import CASES, TARGETS, Case, measure, measure_training_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra `aot`"),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_kernel_spills(case: Case, target: str) -> None:
    found = measure(target, case)
    assert found.keys() == {"banded_attention_forward", "banded_attention_dq", "banded_attention_dkdv"}
    for kernel, figures in found.items():
        print(target, case.name, kernel, figures)
        assert figures["spilled"] == 0, kernel
        assert 0 < figures["registers"] <= 255


def test_memory_of_the_training_step_is_linear() -> None:
    short, long = (measure_training_step("sm_90a", length) for length in (4096, 16384))
    for step, length in ((short, 4096), (long, 16384)):
        assert step["kernels"] >= 3
        assert step["moved_operands"] == 0
        assert step["largest_array"] < length * 512 * 4  # bytes; T x window scores of a head would have more
    assert long["temporary"] <= 1.05 * 4 * short["temporary"]
