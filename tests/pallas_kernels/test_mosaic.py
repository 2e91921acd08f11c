"""Mosaic GPU's kernels on the op's cases, interpreted: no race, no read beyond an end or of what was not written."""

import dataclasses
import functools
import math
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from longformer_jax import banded_attention
from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic import HEAD_DIMS, tiles
from pallas_kernels.mosaic import tiling as tilings
from pallas_kernels.mosaic.backward import row_terms
from pallas_kernels.mosaic.items import Item, Schedule, aligned
from pallas_kernels.mosaic.tiling import ROWS, Gpu, MmaTiling, Tiling
from pallas_kernels.walk import Walk
from tests.attention.cases import (
    ALL_ARRAYS,
    ARRAYS,
    CASE,
    CASES,
    FIRST,
    Case,
    assert_close,
    plain_attention,
    value_and_gradients,
    whole_and_part,
    with_gradients,
    with_head_dims,
)
from tests.pallas_kernels.test_lowering import H100, lowered

IMPLEMENTATIONS = ("pallas_mosaic_gpu", "pallas_mosaic_mma")


def smaller(case: Case) -> Case:
    """Of one or two blocks of 128 rows, and whole ones where the case has whole ones."""
    num_keys = None if case.S is None else min(case.S, 400)
    return dataclasses.replace(case, T=case.T if case.T <= 200 else 128 + case.T % 128, S=num_keys)


# Of head_dims, or of many tiles, which they are not when they are smaller.
LEFT_OUT = {"value_narrower", "value_wider", "head_dim_in_pieces", "head_dim_beyond_128", "one_row_no_neighbours"}
LEFT_OUT |= {"many_tiles", "window_of_many_tiles", "window_beyond_everything_walk"}
# What each set of kernels does by itself; of the other cases, which are of what both share, each gets every other one.
BOTH = {
    "asymmetric", "causal_walk", "decode", "dilation_per_head_not_a_divisor", "dropout_dilated", "everything",
    "few_keys", "keys_out_of_reach_dilated", "masked_walk", "one_row", "padded", "prefill_chunk", "segments_long",
    "scale_negative", "segments_pair", "whole_tiles",
}  # fmt: skip
ADAPTED = [
    with_head_dims(smaller(case), HEAD_DIMS, n) for n, case in enumerate(x for x in CASES if x.name not in LEFT_OUT)
]
# Of head_dims that are filled up: 64 beside 64, 128 and 192, and 128 beside 192.
SHARED = [
    dataclasses.replace(smaller(CASE[name]), H=H, Dk=dims[0], Dv=dims[1], R=dims[2], dilation=dilation)
    for name, H, dims, dilation in (
        ("shared_walk", 2, (64, 64, 22), 1),
        ("shared_dilated", 4, (64, 40, 126), (1, 3, 2, 2)),
        ("shared_everything", 3, (48, 64, 166), (2, 2, 1)),
        ("shared_out_of_reach", 1, (128, 128, 180), 1),
    )
]
PROGRAMS = [
    pytest.param(
        implementation,
        case,
        id=f"{implementation}-{case.name}",
        marks=[pytest.mark.exhaustive] * (case.name not in FIRST),
    )
    for n, case in enumerate([*ADAPTED, *SHARED])
    for place, implementation in enumerate(IMPLEMENTATIONS)
    if case.name in BOTH or case in SHARED or n % len(IMPLEMENTATIONS) == place
]


def interpreted(implementation: str, case: Case, dtype: str) -> dict[str, np.ndarray]:
    """Not jitted, so that one kernel at a time has the threads that the interpreter needs."""
    run, inputs = value_and_gradients(case.attend(f"{implementation}_interpret")), case.inputs(dtype)
    found = run(inputs, case.cotangents(dtype))
    return dict(zip(ALL_ARRAYS[: 2 + len(inputs)], map(np.asarray, found), strict=True))


@functools.cache
def plain_and_oracle(case: Case, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    inputs, cotangents = case.inputs(dtype), case.cotangents(dtype)
    plain = with_gradients(plain_attention(case), inputs, cotangents)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, cotangents))
    return plain, with_gradients(case.attend("reference"), *rounded)


@pytest.mark.slow
@pytest.mark.parametrize(("implementation", "case"), PROGRAMS)
def test_errs_little_more_than_plain_attention(implementation: str, case: Case) -> None:
    dtype = "float16" if case.name in ("causal_walk", "segments", "everything") else "bfloat16"
    found = interpreted(implementation, case, dtype)
    plain, oracle = plain_and_oracle(case, dtype)
    assert_close(found["lse"], oracle["lse"], "lse")  # products of rounded inputs are exact in float32
    for array in found.keys() - {"lse"}:
        assert found[array].dtype == plain[array].dtype
        error, plain_error = (np.abs(x[array].astype(np.float32) - oracle[array]) for x in (found, plain))
        rounding = float(jnp.finfo(dtype).eps) * np.abs(oracle[array]).max()  # of the result is allowed in any case
        assert error.max() <= max(2 * plain_error.max(), rounding), array


@pytest.mark.slow
@pytest.mark.parametrize(("key_dim", "value_dim"), [(66, 64), pytest.param(40, 72, marks=pytest.mark.exhaustive)])
def test_other_head_dims_are_filled_up(key_dim: int, value_dim: int) -> None:
    case = Case("filled_up", T=150, H=2, Dk=key_dim, Dv=value_dim, window=(40, 20))
    found = interpreted("pallas_mosaic_gpu", case, "bfloat16")
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (case.inputs("bfloat16"), case.cotangents("bfloat16")))
    oracle = with_gradients(case.attend("reference"), *exact)
    for array in oracle:
        assert found[array].shape == oracle[array].shape
        error = np.abs(found[array].astype(np.float32) - oracle[array]).max()
        assert error <= 0.02 * np.abs(oracle[array]).max(), array


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_repeats_bit_for_bit(implementation: str) -> None:
    case = Case("repeats", T=130, H=1, Dk=64, Dv=64, window=40, dropout_rate=0.2)
    once, again = (interpreted(implementation, case, "bfloat16") for _ in range(2))
    for name, x in once.items():
        assert np.array_equal(x, again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_part_draws_the_dropout_of_the_whole(implementation: str) -> None:
    """Up to rounding, as the rows of a block are other ones: in bfloat16 of what is summed and of the sum, and not of
    the log-sum-exp."""
    case = Case("part", B=2, T=90, Dk=64, Dv=64, window=10, dropout_rate=0.3)
    both = zip(*whole_and_part(case, f"{implementation}_interpret", "bfloat16"), strict=True)
    for name, (whole, part) in zip(ARRAYS, both, strict=True):
        rounding = 1e-6 if name == "lse" else 2 * float(jnp.finfo("bfloat16").eps)
        np.testing.assert_allclose(part, whole, atol=rounding * np.abs(whole).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_overlap_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of operations is the same; so where bits differ on a GPU, registers were used while products were."""
    case = Case("overlap", T=200, H=1, Dk=64, Dv=64, window=(100, 60), dropout_rate=0.2)
    with_overlap, without = (
        found_with(Tiling(2, 64, 3, overlap=overlap), case, "bfloat16", monkeypatch) for overlap in (True, False)
    )
    for name, x in with_overlap.items():
        assert np.array_equal(x, without[name]), name


def found_with(tiling: Tiling, case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What Hopper's kernels find where all three have this tiling."""
    for kernel in PASSES:
        monkeypatch.setitem(tilings._TILINGS, (kernel, 64, 64, 0), tiling)
    return interpreted("pallas_mosaic_gpu", case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiling",
    [
        Tiling(4, 64, 2, overlap=False, scores_together=True, delta_inside=True),
        Tiling(2, 64, 4, own_stages=2, own_in_registers=True, delta_inside=True, turns=True),
        MmaTiling(16),
        *(
            pytest.param(tiling, marks=pytest.mark.exhaustive)
            for tiling in (
                Tiling(1, 64, 3, own_stages=2),
                Tiling(2, 128, 3, persistent=False),
                Tiling(3, 64, 3, unmasked_loop=False),
                Tiling(2, 64, 2, own_stages=2, overlap=False),
                Tiling(2, 64, 3, own_in_registers=True),
                Tiling(3, 64, 3, delta_inside=True),
                Tiling(3, 64, 3, turns=True),
                MmaTiling(128, unmasked_loop=False),
            )
        ),
    ],
)
def test_every_way_to_cut_them_is_right(tiling: Tiling | MmaTiling, monkeypatch: pytest.MonkeyPatch) -> None:
    is_mma = isinstance(tiling, MmaTiling)
    for kernel in PASSES:
        monkeypatch.setitem(tilings._MMA_TILINGS if is_mma else tilings._TILINGS, (kernel, 64, 64, 0), tiling)
    case = Case("cut", T=400, H=1, Dk=64, Dv=64, window=(150, 70), segments="long")
    found = interpreted(IMPLEMENTATIONS[is_mma], case, "bfloat16")
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (case.inputs("bfloat16"), case.cotangents("bfloat16")))
    oracle = with_gradients(case.attend("reference"), *exact)
    for array in ARRAYS:
        error = np.abs(found[array].astype(np.float32) - oracle[array]).max()
        assert error <= 0.02 * np.abs(oracle[array]).max(), array


@pytest.mark.slow
def test_a_scale_that_float32_has_no_number_for_is_no_scale() -> None:
    case = Case("subnormal_scale", T=70, H=1, Dk=64, Dv=64, window=5, scale=1e-42)
    out = np.asarray(case.attend("pallas_mosaic_gpu_interpret")(*case.inputs("bfloat16"))[0], np.float32)
    unscaled = dataclasses.replace(case, scale=0.0).attend("reference")
    oracle = unscaled(*(x.astype(jnp.float32) for x in case.inputs("bfloat16")))[0]
    assert np.abs(out - oracle).max() <= 0.01 * np.abs(oracle).max()


@pytest.mark.slow
def test_lines_are_read_before_others_are_loaded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it take the fence of the interpreter's products, which a GPU's have not."""
    monkeypatch.setattr(tiles, "_dot", lambda weights, other: jnp.zeros((len(weights), other.shape[1]), jnp.float32))
    case = Case("lines", T=520, H=1, Dk=64, Dv=64, window=40, masked=True)
    interpreted("pallas_mosaic_gpu", case, "bfloat16")  # the interpreter raises at a race


@pytest.mark.slow
def test_own_rows_are_in_registers_before_others_are_loaded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, of a program with several items."""
    monkeypatch.setattr(tiles, "_dot", lambda x, y: jnp.zeros((len(x), y.shape[1]), jnp.float32))
    tiling = Tiling(1, 64, 3, own_in_registers=True)
    monkeypatch.setitem(tilings._TILINGS, ("forward", 64, 64, 0), tiling)
    case = Case("registers", T=520, H=1, Dk=64, Dv=64, window=40)
    case.attend("pallas_mosaic_gpu_interpret")(*case.inputs("bfloat16"))


@pytest.mark.slow
def test_the_interpreter_sees_what_a_missing_fence_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the reads of a slot and what TMA writes there next."""
    case = Case("fence", T=200, H=1, Dk=64, Dv=64, window=100)
    interpreted("pallas_mosaic_mma", case, "bfloat16")
    monkeypatch.setattr(plgpu, "commit_smem", lambda: None)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"write of .*\(_copy\)[\s\S]*read of .*\(_product\)"):
        interpreted("pallas_mosaic_mma", case, "bfloat16")


# ---- What is computed beside the kernels -----------------------------------------------------------------------------


def test_delta_fits_a_cotangent_that_was_rounded_in_the_same_program() -> None:
    """XLA may compute with the number that was rounded, which would be off by some 1e-2."""
    out, exact = (jax.random.normal(key, (2, 40, 2, 64)) for key in jax.random.split(jax.random.key(0)))
    out, lse = out.astype(jnp.bfloat16), jnp.zeros((2, 40, 2))
    _, delta = jax.jit(lambda exact: row_terms(out, exact.astype(jnp.bfloat16), lse, lse))(exact)
    dout = np.asarray(exact.astype(jnp.bfloat16), np.float64)
    assert np.abs(delta - (np.asarray(out, np.float64) * dout).sum(-1)).max() < 1e-5


# ---- Which blocks a warpgroup takes part in --------------------------------------------------------------------------


@pytest.mark.parametrize("warpgroups", [2, 3])
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("span", [None, (128, 384, 192, 320), (0, 256, 128, 128)], ids=str)
@pytest.mark.parametrize(
    ("T", "S", "left", "right", "offset", "dilation"),
    [(512, 512, 256, 256, 0, 1), (512, 700, 100, 0, 0, 1), (384, 300, 5, 70, 37, 1), (600, 640, 20, 33, -50, 3)],
)
def test_a_warpgroup_takes_part_in_what_its_rows_see(
    T: int, S: int, left: int, right: int, offset: int, dilation: int, columns: int, warpgroups: int, span: Any
) -> None:
    tiling = Tiling(warpgroups, columns, stages=3)
    walk = Walk(T, S, left, right, offset, (dilation,), tiling.rows, columns)
    unused: Any = None
    schedule = Schedule(unused, walk, tiling, own_is_query=True, first_head=0, batch=1, gpu=Gpu(num_cores=1))
    rows = np.arange(ROWS)
    for number in range(walk.programs):
        block = aligned(walk.block(number, 0, span), columns)
        for warpgroup in range(warpgroups):
            item = Item(schedule, 0, 0, 0, None, block)
            own_rows = item.own_rows(warpgroup, numbers=unused)
            own = own_rows.first + rows[:, None]
            sees, sees_all = np.zeros((2, int(block.count)), bool)
            for n in range(int(block.count)):
                key = int(block.start) + n * columns + np.arange(columns)
                inside = (key < block.stop) & (key >= 0)
                visible = (key >= own + block.shift - left) & (key <= own + block.shift + right) & inside
                shared = (key >= block.clear_start) & (key < block.clear_stop)
                sees[n], sees_all[n] = visible.any(), (visible & shared).all()
            begin, interior, edge, end = map(int, own_rows.bounds)
            blocks = np.arange(int(block.count))
            assert begin < end <= block.count and begin <= interior <= edge <= end
            assert np.array_equal(sees, (blocks >= begin) & (blocks < end)) or (not sees.any() and end == begin + 1)
            assert np.array_equal(sees_all, (blocks >= interior) & (blocks < edge))
            first = [int(item.first_of(n)) for n in range(int(block.count))]
            assert all(0 <= x <= schedule.other_rows - columns and x % 8 == 0 for x in first)


@pytest.mark.parametrize(("stages", "overlap", "least"), [(2, True, 3), (1, False, 2)])
def test_too_few_stages_are_refused(stages: int, overlap: bool, least: int) -> None:
    with pytest.raises(ValueError, match=f"stages is {stages}; with overlap={overlap} at least {least} are needed"):
        Tiling(2, 64, stages, overlap=overlap)
    Tiling(2, 64, least, overlap=overlap)


@pytest.mark.parametrize("sizes", [{"warpgroups": 1}, {"overlap": False}])
def test_turns_where_nobody_could_take_them_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="turns is True; overlap and several warpgroups were expected with it"):
        Tiling(**{"warpgroups": 2, "columns": 64, "stages": 3, "turns": True} | sizes)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((5, 64), "warpgroups is 5; 1 to 4 were expected"),
        ((2, 96), "columns is 96; a multiple of 64 was expected"),
    ],
)
def test_sizes_that_no_kernel_has_are_refused(sizes: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Tiling(*sizes, stages=3)
    with pytest.raises(ValueError, match="columns is 24; a multiple of 16 was expected"):
        MmaTiling(24)


# ---- Who can have them -----------------------------------------------------------------------------------------------

SHAPE = jax.ShapeDtypeStruct((2, 100, 4, 64), jnp.bfloat16)


def attend(query, key, value, **options):
    return banded_attention(query, key, value, window=20, **options)


B200, MI300X = "NVIDIA B200", "AMD Instinct MI300X"


@pytest.mark.parametrize(
    ("implementation", "dtype", "dims", "kind", "reason"),
    [
        ("gpu", "float32", (64, 64), H100, "the dtype is float32; the kernels take bfloat16 and float16"),
        ("mma", "float32", (64, 64), B200, "the dtype is float32; the kernels take bfloat16 and float16"),
        ("gpu", "bfloat16", (64, 192), H100, "head_dim is 192; the kernels take up to 128"),
        ("mma", "bfloat16", (129, 64), B200, "head_dim is 129; the kernels take up to 128"),
        ("gpu", "bfloat16", (64, 64), B200, "its kernels need an NVIDIA GPU of the Hopper generation; this device is"),
        ("mma", "bfloat16", (64, 64), MI300X, "its kernels need an NVIDIA GPU; this device is AMD Instinct MI300X"),
    ],
)
def test_what_they_cannot_do_is_named(
    implementation: str, dtype: str, dims: tuple[int, int], kind: str, reason: str
) -> None:
    implementation = f"pallas_mosaic_{implementation}"
    key, value = (jax.ShapeDtypeStruct((2, 100, 4, d), dtype) for d in dims)
    sentence = re.escape(f"implementation '{implementation}' is not available here: {reason}")
    with pytest.raises(NotImplementedError, match=f"^{sentence}"):
        lowered(functools.partial(attend, implementation=implementation), key, key, value, kind=kind)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("version", "number"), [(12070, None), (12080, "12.8.0"), (12090, "12.9.0"), (12091, None)])
def test_assemblers_that_miscompile_them_are_refused(
    implementation: str, version: int, number: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = types.SimpleNamespace(cuda_runtime_get_version=lambda: version)
    monkeypatch.setattr("jax._src.lib.cuda_versions", versions)
    lower = functools.partial(lowered, functools.partial(attend, implementation=implementation), *(SHAPE,) * 3)
    if number is None:
        assert "mosaic" in lower()
        return
    sentence = f"implementation '{implementation}' is not available here: CUDA {number} is installed, and from 12.8.0 "
    with pytest.raises(NotImplementedError, match=f"^{re.escape(sentence)}to 12.9.0 its assembler miscompiles such"):
        lower()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dilation", [1, 4])
def test_nothing_of_the_sequences_is_copied(dilation: int, implementation: str) -> None:
    """Where the length is whole blocks: no padding, and no transposition but of lse, delta and the like."""

    def both(query, key, value, cotangent):
        out, pullback = jax.vjp(
            functools.partial(attend, dilation=dilation, implementation=implementation), query, key, value
        )
        return out, pullback(cotangent)

    shape = jax.ShapeDtypeStruct((2, 1024, 4, 64), jnp.bfloat16)
    text = lowered(both, *(shape,) * 4)
    assert text.count("banded_attention_dq") and text.count("banded_attention_dkdv")
    moved = [line for line in text.splitlines() if re.search(r"stablehlo\.(pad|transpose|concatenate|gather)", line)]
    assert moved and not [line for line in moved if "x64x" in line or "x64xbf16" in line]


@pytest.mark.parametrize(
    "implementation", [IMPLEMENTATIONS[0], pytest.param(IMPLEMENTATIONS[1], marks=pytest.mark.slow)]
)
def test_a_shared_key_is_not_copied_to_the_heads(implementation: str) -> None:
    """Nor is its gradient one for each head: in no array have 4 heads 128 numbers each of it, but the query's."""
    B, S, H = 2, 1024, 4
    query, key, shared = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((B, 512, H, 192), (B, S, H, 64), (B, S, 128))
    )

    def both(query, key, value, shared_key, cotangent):
        def attended(*x):
            return attend(*x[:3], shared_key=x[3], implementation=implementation)

        out, pullback = jax.vjp(attended, query, key, value, shared_key)
        return out, pullback(cotangent)

    text = lowered(both, query, key, key, shared, jax.ShapeDtypeStruct((B, 512, H, 64), jnp.bfloat16))
    # A loop over the heads, of one launch as dkdv is.
    assert text.count("banded_attention_dshared") == text.count("banded_attention_dkdv") > 0
    shapes = re.findall(r"tensor<([\dx]+)x(?:bf16|f32)>", text)
    sizes = {math.prod(map(int, shape.split("x"))) for shape in shapes}
    assert B * S * 128 in sizes and B * S * H * 64 in sizes and B * S * H * 128 not in sizes


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmapped_and_with_wide_integers_they_are_the_same_kernels(implementation: str) -> None:
    def both(query, key, value, mask):
        attended = functools.partial(attend, key_mask=mask, implementation=implementation)
        return jax.value_and_grad(lambda *x: attended(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))(
            query, key, value
        )

    shape, mask = jax.ShapeDtypeStruct((3, 2, 256, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((3, 2, 256), bool)
    with jax.enable_x64(True):
        text = lowered(jax.vmap(both), shape, shape, shape, mask)
    for kernel in ("forward", "dq", "dkdv"):
        assert text.count(f"banded_attention_{kernel}") >= 1
    assert "6x256x256xbf16" in text  # the axes are one
