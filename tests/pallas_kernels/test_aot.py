"""The kernels as the compilers for real GPUs see them. Needs the extra `aot`; `make aot` installs it and runs this."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import pytest

from benchmarks.aot import (
    CASES,
    EACH_BLOCK_SIZE,
    HOPPER_CASES,
    MMA_CASES,
    ROUNDED_CASES,
    SPLIT_CASE,
    TABLE_HEAD,
    TARGETS,
    VARIANTS,
    AnyCase,
    Case,
    compile_rounded,
    compile_split,
    compile_training_step,
    in_process,
    measure_all,
    table_rows,
)
from benchmarks.model_calls import EXPERIMENTS, ModelCase, model_cases
from longformer_jax.attention import choice
from pallas_kernels import mosaic
from pallas_kernels.mosaic.tiling import hopper_tiling, mma_tiling
from tests.attention.test_choice import A100, H100, chosen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra `aot`"),
]


# With jax 0.11 dq spills 24 bytes there.
SPILLS_WITH_OLDEST = ("hopper-bfloat16-128-128-causal-dilation-key_mask-segment_ids-dropout", "banded_attention_dq")


def check(wanted: Sequence[tuple[str, AnyCase]]) -> list[dict[str, dict[str, Any]]]:
    """Compiles all three kernels of each case and sees that none spills; returns what was found."""
    print("\n" + TABLE_HEAD)
    kernels = {"banded_attention_forward", "banded_attention_dq", "banded_attention_dkdv"}
    spills, all_found = [], []
    for target, case, found in measure_all(wanted):
        print(table_rows(target, case, found), flush=True)
        shared = {"banded_attention_dshared"} if getattr(case, "shared_dim", 0) else set()
        assert found.keys() == kernels | shared, case.name
        assert all(0 < figures["registers"] <= 255 for figures in found.values()), (target, case.name)
        spills += [(target, case.name, kernel) for kernel, figures in found.items() if figures["spilled"]]
        all_found.append(found)
    assert len(all_found) == len(wanted) > 0
    if jax.__version__.startswith("0.11."):
        spills = [spill for spill in spills if spill[1:] != SPILLS_WITH_OLDEST]
    assert not spills
    return all_found


exhaustive = pytest.mark.exhaustive


def first(cases: Sequence[AnyCase]) -> AnyCase:
    """With all limits."""
    return next(case for case in cases if case.name.endswith("dropout"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=exhaustive)])
def test_no_kernel_spills(dtype: str, target: str) -> None:
    """Every block size, and for the A100 every limit alone; `python -m benchmarks.aot` compiles all cases for all."""
    some = [case for case in CASES if case.name in EACH_BLOCK_SIZE]
    assert len(some) == len(EACH_BLOCK_SIZE)
    more = [case for case in CASES if case.options and case not in some and target == "sm_80"]
    check([(target, case) for case in some + more if case.dtype == dtype])


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([first(HOPPER_CASES)], id="first"),
        pytest.param([case for case in HOPPER_CASES if not case.shared_dim], id="own_keys", marks=exhaustive),
        pytest.param([case for case in HOPPER_CASES if case.shared_dim], id="shared_key", marks=exhaustive),
    ],
)
def test_hopper_kernels_use_warpgroup_products_and_tma_and_do_not_spill(cases: list[Case]) -> None:
    # Products and loads of each kernel, of which the compiler may have copies in several loops.
    products = {"forward": 2, "dq": 3, "dkdv": 4, "dshared": 3}
    loads = {"forward": 3, "dq": 6, "dkdv": 6, "dshared": 6}
    for case, found in zip(cases, check([("sm_90a", case) for case in cases]), strict=True):
        for kernel, figures in found.items():
            name = kernel.removeprefix("banded_attention_")
            assert figures["HGMMA"] >= products[name] and figures["UTMALDG"] >= loads[name], (kernel, figures)
            assert not figures["serialized"], (kernel, figures)
            assert not figures["faults"], (case.name, kernel, figures["faults"])
            dims = mosaic.filled_up_dims(case.key_dim, case.value_dim, case.shared_dim)
            if hopper_tiling(name, *dims).overlap:
                assert figures["beside_products"] >= 32, (kernel, figures)  # each thread's of a block


@exhaustive
def test_what_the_sweep_tries_beside_the_defaults_does_not_spill() -> None:
    for _, variant, found in measure_all([("sm_90a", variant) for variant in VARIANTS]):
        print(table_rows("sm_90a", variant, found), flush=True)
        figures = found[f"banded_attention_{variant.kernel}"]
        assert not figures["spilled"] and not figures["serialized"], (variant.name, figures)
        assert not figures["faults"], (variant.name, figures["faults"])
        if variant.tiling.overlap:
            assert figures["beside_products"] >= 32, (variant.name, figures)


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        pytest.param("sm_80", [first(MMA_CASES)], id="first"),
        *(pytest.param(target, MMA_CASES, id=target, marks=exhaustive) for target in TARGETS),
    ],
)
def test_kernels_for_any_gpu_use_its_copies_and_do_not_spill(target: str, cases: Sequence[Case]) -> None:
    wanted = [(target, case) for case in cases if target == "sm_80" or len(case.options) > 1]
    products = {"forward": 2, "dq": 3, "dkdv": 4, "dshared": 3}
    loads = {"forward": 3, "dq": 4, "dkdv": 4, "dshared": 4}
    copies, no_copies = ("LDGSTS", "UTMALDG") if target == "sm_80" else ("UTMALDG", "LDGSTS")
    for (_, case), found in zip(wanted, check(wanted), strict=True):
        for kernel, figures in found.items():
            name = kernel.removeprefix("banded_attention_")
            # A product of 64 rows takes a warp as many instructions of 16 x 8 x 16, one each for 16 and for 8.
            dims = mosaic.filled_up_dims(case.key_dim, case.value_dim, case.shared_dim)
            columns = mma_tiling(name, *dims).columns
            assert figures["HMMA"] >= products[name] * 64 * columns // (16 * 8), (kernel, figures)
            assert figures[copies] >= loads[name] and not figures[no_copies], (kernel, figures)


SETS = (("triton", A100, "sm_80"), ("triton", H100, "sm_90a"), ("hopper", H100, "sm_90a"), ("mma", A100, "sm_80"))


def chosen_cases(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ModelCase]]:
    """All that training the paper's models calls, in each phase, which is seen to run on each set of kernels."""
    for kernels, gpu, target in SETS:
        monkeypatch.setenv(choice.VARIABLE, kernels)
        for case in (case for name in EXPERIMENTS for case in model_cases(name, choice.KERNELS[kernels])):
            assert chosen(gpu, case.call.dtype, *case.call.dims) == case.implementation, case.name
            yield target, case


@exhaustive
def test_the_papers_models_run_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind of call one is compiled."""
    kinds: dict[Any, tuple[str, ModelCase]] = {}
    for target, case in chosen_cases(monkeypatch):
        dims = case.call.dims
        # Windows and lengths are constants; head_dims are filled up; Mosaic's kernels divide by dilations.
        if case.is_mosaic:
            kind = *mosaic.filled_up_dims(*dims), max(case.call.band.dilation)
        else:
            kind = *dims[:2], (dims[2] - 1).bit_length()
        kinds[target, case.implementation, kind] = target, case
    check(list(kinds.values()))


@exhaustive
def test_every_call_of_the_papers_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, but all are compiled, which takes most of an hour; text8_small's are those of enwik8_small."""
    calls = {(target, case.implementation, case.call): (target, case) for target, case in chosen_cases(monkeypatch)}
    check(list(calls.values()))


@pytest.mark.parametrize("case", ROUNDED_CASES, ids=lambda case: case.name)
def test_a_cotangent_is_rounded_for_all_that_read_it(case: Case) -> None:
    """Else delta would not fit the products, and a row that sees one key would get a gradient."""
    found = in_process(compile_rounded, "sm_90a", case)
    assert found["readers"] >= 1 and not found["inexact"]


def test_a_batch_is_split_over_gpus() -> None:
    found = in_process(compile_split, "sm_90a", SPLIT_CASE)
    assert found["kernels"] >= 3
    assert (found["transfers"], found["whole_results"]) == (0, 0)


@exhaustive
def test_memory_of_the_training_step_is_linear() -> None:
    short, long = (in_process(compile_training_step, "sm_90a", length) for length in (4096, 16384))
    for step, length in ((short, 4096), (long, 16384)):
        assert step["kernels"] >= 3
        assert step["moved_operands"] == 0
        assert step["largest_array"] <= length * 3 * 512  # a head's scores: length * 2049
    assert long["temporary"] <= 1.05 * 4 * short["temporary"]


def test_a_sequence_is_split_over_gpus() -> None:
    length = 16384  # of a device
    whole, *split = (in_process(compile_training_step, "sm_90a", length * devices, devices) for devices in (1, 2, 4))
    for step in split:
        assert step["kernels"] >= whole["kernels"] >= 3
        assert step["gathered"] == 0
    # In each of four layers a device fetches half as many keys and values as it has, in bfloat16. Bytes of the whole
    # sequence as first measured: where XLA plans it better, the split one is not held to less.
    most, fetched = 436_346_976, 4 * 2 * (length // 2) * 512 * 2
    two, four = (step["temporary"] for step in split)
    assert whole["temporary"] <= most
    assert two <= most + 1.15 * fetched
    assert four <= 1.005 * two  # what a device holds does not depend on how many there are
