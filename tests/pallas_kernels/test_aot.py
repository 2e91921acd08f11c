"""The kernels as the compilers for real GPUs see them. Needs the extra `aot`; `make aot` installs it and runs this."""

import importlib.util

import pytest

from benchmarks.aot import CASES, TABLE_HEAD, TARGETS, measure_all, measure_training_step, table_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra `aot`"),
]


def test_no_kernel_spills() -> None:
    print("\n" + TABLE_HEAD)
    kernels = {"banded_attention_forward", "banded_attention_dq", "banded_attention_dkdv"}
    spills, seen = [], 0
    for target, case, found in measure_all(list(TARGETS), CASES):
        print(table_rows(target, case, found), flush=True)
        assert found.keys() == kernels, (target, case.name)
        assert all(0 < figures["registers"] <= 255 for figures in found.values()), (target, case.name)
        spills += [(target, case.name, kernel) for kernel, figures in found.items() if figures["spilled"]]
        seen += 1
    assert seen == len(TARGETS) * len(CASES)
    assert not spills


def test_memory_of_the_training_step_is_linear() -> None:
    short, long = (measure_training_step("sm_90a", length) for length in (4096, 16384))
    for step, length in ((short, 4096), (long, 16384)):
        assert step["kernels"] >= 3
        assert step["moved_operands"] == 0
        assert step["largest_array"] <= length * 3 * 512  # a head's scores: length * 2049
    assert long["temporary"] <= 1.05 * 4 * short["temporary"]
