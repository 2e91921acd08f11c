"""How a kernel runs where products are mma.sync's, from Ampere on: a program is one warpgroup, which does it all.

It has one item. While it computes with a block of the other side, the next one comes into the other of two slots of
shared memory; what else there is to wait for, the other programs of a core fill.
"""

import functools
from collections import OrderedDict
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic.items import Scalars, Schedule
from pallas_kernels.mosaic.kernel import Arrays, Kernel, over_blocks
from pallas_kernels.mosaic.tiles import down, empty_tile, store_numbers
from pallas_kernels.mosaic.tiling import ROWS, MmaTiling
from pallas_kernels.mosaic.views import is_tile, shared_rows

_SLOTS = 2


class Shared(NamedTuple):
    """In shared memory, tiles: own rows, and slot and row of other ones. Lines are read from global memory.

    Attributes:
      numbers: 0, 1, 2, ... of the columns.
      own_full, full: barriers on which all arrays that TMA loads arrive, of `full` one for each slot; None where copies
        are cp.async's.
    """

    own: dict[str, Any]
    other: dict[str, Any]
    numbers: Any
    own_full: Any
    full: Any

    @classmethod
    def of(cls, schedule: Schedule[MmaTiling], arrays: Arrays) -> Self:
        (own, _), (other, _) = map(_tiles_and_lines, (arrays.own, arrays.other))
        columns, has_tma = schedule.tiling.columns, schedule.gpu.has_tma
        return cls(
            own=jax.tree.map(lambda x: shared_rows(x, (), ROWS), own),
            other=jax.tree.map(lambda x: shared_rows(x, (_SLOTS,), columns), other),
            numbers=plgpu.SMEM((columns,), jnp.int32),
            own_full=plgpu.Barrier(num_arrivals=len(own)) if has_tma else None,
            full=plgpu.Barrier(num_arrivals=len(other), num_barriers=_SLOTS) if has_tma else None,
        )


def run(kernel: Kernel, schedule: Schedule[MmaTiling], arrays: Arrays, scalars: Scalars, shared: Shared) -> None:
    """What a program does."""
    interpret, has_tma, columns = schedule.spec.interpret, schedule.gpu.has_tma, schedule.tiling.columns
    store_numbers(shared.numbers)
    item = schedule.item(jnp.int32(0), scalars)
    rows = item.own_rows(0, shared.numbers)
    begin, _, _, end = rows.bounds
    (own_tiles, own_lines), (other_tiles, other_lines) = map(_tiles_and_lines, (arrays.own, arrays.other))

    def slot(n: Any) -> Any:
        return lax.rem(n, jnp.int32(_SLOTS))

    def full(n: Any) -> Any:
        return shared.full.at[slot(n)] if has_tma else None

    def load(n: Any) -> None:
        for name, array in other_tiles.items():
            target = shared.other[name].at[slot(n)]
            _copy(item.other_part(array, n, target.shape), target, full(n))

    def step(is_edge: bool, n: Any, carry: Any) -> Any:
        sums, state = carry
        _wait(full(n))
        if has_tma:
            plgpu.commit_smem()  # the reads of the block before are done before TMA is told to write there
        pl.when(n + 1 < end)(lambda: load(n + 1))
        other = {name: ref.at[slot(n)] for name, ref in shared.other.items()}
        other |= {name: item.other_part(x, n, (columns,)) for name, x in other_lines.items()}
        scored = [[(own[mine], other[theirs]) for mine, theirs in pairs] for pairs in kernel.scores]
        scores = tuple(functools.partial(_product, pairs, interpret) for pairs in scored)
        weights, state, rescale = kernel.weigh(rows, own, other, n, is_edge, scores, state)
        if rescale is not None:
            sums = tuple(x * down(rescale, x.shape[1]) for x in sums)
        summed = zip(sums, kernel.sums, strict=True)
        return tuple(_add_product(x, weights[y.weights], y.of(other), interpret) for x, y in summed), state

    for name, array in own_tiles.items():
        ref = shared.own[name]
        _copy(item.own_part(array, rows.first, ref.shape), ref, shared.own_full)
    load(begin)
    own = shared.own | {name: item.own_part(x, rows.first, (ROWS,)) for name, x in own_lines.items()}
    _wait(shared.own_full)
    sums = tuple(empty_tile(each.size) for each in kernel.sums)
    sums, state = over_blocks(rows, step, begin, (sums, kernel.start(own)))
    for array, x in zip(arrays.outputs, kernel.finish(rows, sums, state), strict=True):
        _store(item.output_part(array, rows.first, x.shape), x.astype(array.dtype), interpret)


def _tiles_and_lines(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    tiles = OrderedDict((name, x) for name, x in arrays.items() if is_tile(x))
    return tiles, {name: x for name, x in arrays.items() if name not in tiles}


def _copy(source: Any, target: Any, barrier: Any) -> None:
    if barrier is None:
        plgpu.copy_gmem_to_smem(source, target, oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS)
    else:
        plgpu.copy_gmem_to_smem(source, target, barrier)


def _store(target: Any, x: jax.Array, interpret: bool) -> None:
    """From registers to global memory: `plgpu.store`, which jax 0.11 has not."""
    if interpret:
        target[...] = x
        return
    layout = plgpu.Layout.WGMMA if x.ndim == 2 else plgpu.Layout.WGMMA.reduce(1)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(()), layout))
    def store(_, target: Any, x: mgpu.FragmentedArray) -> None:
        x.store_untiled(target, optimized=False)

    store(target, x)


def _wait(barrier: Any) -> None:
    """For what arrives on the barrier; without one for all copies, of all threads."""
    if barrier is None:
        plgpu.wait_gmem_to_smem(0)
    else:
        plgpu.barrier_wait(barrier)


def _product(pairs: list[tuple[Any, Any]], interpret: bool) -> jax.Array:
    """The sum of own [64, D] @ other [columns, D]^T, references to shared memory: float32 [64, columns]."""
    scores = empty_tile(pairs[0][1].shape[0])
    for own, other in pairs:
        if interpret:
            scores += _dot(own[...], other[...].T)
            continue
        lhs, rhs = plgpu.Layout.MMA_LHS(own.dtype), plgpu.Layout.MMA_RHS(other.dtype)
        for start in range(0, own.shape[1], 64):  # both operands in parts, as registers are few
            part = pl.ds(start, 64)
            transposed = other.at[:, part].transpose((1, 0))
            scores = plgpu.mma(scores, plgpu.load(own.at[:, part], layout=lhs), plgpu.load(transposed, layout=rhs))
    return scores


def _add_product(total: jax.Array, weights: jax.Array, other: Any, interpret: bool) -> jax.Array:
    """total [64, D] + weights [64, columns] @ other [columns, D]; float32, weights rounded to the reference's dtype."""
    if interpret:
        return total + _dot(weights.astype(other.dtype), other[...])
    return plgpu.mma(
        total, _as_operand(weights, other.dtype), plgpu.load(other, layout=plgpu.Layout.MMA_RHS(other.dtype))
    )


def _as_operand(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds what came of a product to be the left side of another, for which it lies in the very same registers."""
    acc, lhs = plgpu.Layout.MMA_ACC(dtype), plgpu.Layout.MMA_LHS(dtype)
    result = plgpu.ShapeDtypeStruct(x.shape, dtype, layout=lhs)

    # Rounded here too, as a change of name alone would be folded away.
    @plgpu.inline_mgpu(arg_types=(acc,), return_type=result)
    def rounded(_, x: mgpu.FragmentedArray) -> mgpu.FragmentedArray:
        x, layout = x.astype(mgpu.utils.dtype_to_ir_type(dtype)), lhs.to_mgpu()
        registers = x.registers.reshape(layout.registers_shape(x.shape))
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

    return rounded(x)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """In place of mma.sync, which the interpreter does not know."""
    return jnp.dot(x, y, preferred_element_type=jnp.float32)
