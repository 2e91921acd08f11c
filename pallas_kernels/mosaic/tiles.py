"""What a warpgroup has in registers: tiles, what is one for a row or a column, and Hopper's products."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic.tiling import ROWS

_TILE = plgpu.Layout.WGMMA
FOLD = 8  # columns of a tile after which the same threads have the next
_PER_ROW, _PER_COLUMN = _TILE.reduce(1), _TILE.reduce(0)


def empty_tile(columns: int) -> jax.Array:
    """Zeros, float32 [64, columns]."""
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), _TILE)


def filled_line(value: float) -> jax.Array:
    """One number for each row, float32 [64]."""
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), _PER_ROW)


def store_numbers(ref: Any) -> None:
    """0, 1, 2, ... into shared memory."""
    ref[...] = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=_PER_COLUMN)


def count_per_row() -> jax.Array:
    """0, 1, 2, ..., int32 [64], one for each row."""
    return plgpu.broadcasted_iota(jnp.int32, (ROWS,), 0, layout=_PER_ROW)


def load_tile(ref: Any) -> jax.Array:
    """[64, D] of shared memory."""
    return plgpu.load(ref, layout=_TILE)


def load_per_row(ref: Any) -> jax.Array:
    """[64] of shared or global memory, one for each row."""
    return plgpu.load(ref, layout=_PER_ROW, optimized=False)


def load_per_column(ref: Any) -> jax.Array:
    """[columns] of shared or global memory, one for each column."""
    return plgpu.load(ref, layout=_PER_COLUMN, optimized=False)


def down(line: jax.Array, columns: int) -> jax.Array:
    """[64], one for each row -> [64, columns]."""
    return lax.broadcast_in_dim(line, (ROWS, columns), [0])


def folded(x: jax.Array) -> jax.Array:
    """[64, columns] -> [64, FOLD], sums of columns that lie in the same thread, without a word to other threads."""
    return functools.reduce(jnp.add, (x[:, i : i + FOLD] for i in range(0, x.shape[1], FOLD)))


def across(line: jax.Array) -> jax.Array:
    """[columns], one for each column -> [64, columns]."""
    return lax.broadcast_in_dim(line, (ROWS, line.shape[0]), [1])


def multiply(
    scores: Sequence[Sequence[tuple[Any, Any]]],
    then: Callable,
    sums: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    others: Sequence[Any],
    interpret: bool,
) -> tuple[tuple[jax.Array, ...], Any]:
    """(sums + weights @ others, what `then` returns), both computed at the same time.

    Args:
      scores: pairs of own [64, D], in registers or a reference to shared memory, and other [columns, D], a reference.
      then: gets a function for each score that waits for the sum of its own @ other^T, float32 [64, columns].
      sums: float32 [64, D].
      weights: float32 [64, columns], rounded to the type of `others`.
      others: references [columns, D] to shared memory.
    """
    if interpret and sums:  # the interpreter knows no products with an operand in registers
        _, result = multiply(scores, then, (), (), (), interpret)
        return tuple(x + _dot(w, other) for x, w, other in zip(sums, weights, others, strict=True)), result
    if interpret and any(isinstance(own, jax.Array) for pairs in scores for own, _ in pairs):
        return (), then(*(functools.partial(_dots, pairs) for pairs in scores))

    def run(score_refs: Sequence[Any], sum_refs: Sequence[Any]):
        for ref, x in zip(sum_refs, sums, strict=True):
            ref[...] = x
        for ref, pairs in zip(score_refs, scores, strict=True):
            for own, other in pairs:
                plgpu.wgmma(ref, own, other.transpose((1, 0)))
        for ref, x, other in zip(sum_refs, weights, others, strict=True):
            plgpu.wgmma(ref, x.astype(other.dtype), other)

        def awaited(number: int) -> jax.Array:
            later = sum(map(len, scores[number + 1 :])) + len(sum_refs)
            # To the compiler what follows is arithmetic that could rise above the wait.
            return in_place(plgpu.wgmma_accumulator_load(score_refs[number], wait_n=later))

        result = then(*(functools.partial(awaited, n) for n in range(len(scores))))
        return tuple(plgpu.wgmma_accumulator_load(ref, wait_n=0) for ref in sum_refs), result

    score_refs = [plgpu.ACC((ROWS, pairs[0][1].shape[0]), jnp.float32) for pairs in scores]
    sum_refs = [plgpu.ACC((ROWS, x.shape[1]), jnp.float32) for x in sums]
    return pl.run_scoped(run, score_refs, sum_refs) if score_refs or sum_refs else run([], [])


def note_loads(interpret: bool) -> None:
    """Before a slot is released that was read by plain loads: nothing for a GPU to do.

    Every thread arrives itself, and what it has loaded has gone into products that are done. To the interpreter only
    a fence says so.
    """
    if interpret:
        plgpu.commit_smem()


def in_place(x: Any) -> Any:
    """Keeps arithmetic on its side of a wait, which to the compiler is none: products seem done when they start."""
    leaves, tree = jax.tree.flatten(x)
    return jax.tree.unflatten(tree, lax.optimization_barrier(leaves)) if leaves else x


def _dots(pairs: Sequence[tuple[Any, Any]]) -> jax.Array:
    return functools.reduce(jnp.add, (_dot(own, other.transpose((1, 0))) for own, other in pairs))


def _dot(weights: jax.Array, other: Any) -> jax.Array:
    product = lax.dot_general(
        weights.astype(other.dtype), other[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
    plgpu.commit_smem()  # so that the next load does not overtake this read
    return product
