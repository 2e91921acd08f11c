"""How the Hopper kernels' arrays lie in global memory and in shared memory: tiles of head_dim numbers a row, and lines
of one."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ALIGNMENT = 8  # of the rows at which TMA may begin, given how it lays them out in shared memory


def view(x: jax.Array, dilation: int, rows: int) -> jax.Array:
    """Rows of each residue modulo the dilation, filled up to whole blocks of so many.

    [B, length, H, D] becomes [B, R, dilation, H, D], without a copy where nothing is to be filled up. As TMA wants a
    line's numbers side by side, [B, length, H] becomes [B, H, dilation, R], ids [B, length] become [B, dilation, R].
    """
    padding = [(0, 0)] * x.ndim
    padding[1] = 0, -x.shape[1] % (dilation * rows)
    if padding[1][1]:
        x = jnp.pad(x, padding)
    x = x.reshape(len(x), -1, dilation, *x.shape[2:])
    match x.ndim:
        case 5:
            return x
        case 4:
            return x.transpose(0, 3, 2, 1)
        case _:
            return x.transpose(0, 2, 1)


def view_of_output(x: jax.ShapeDtypeStruct, batch: int, heads: int, dilation: int, rows: int) -> jax.ShapeDtypeStruct:
    """What `view` would make of so many batch entries and heads of the array, with so many rows of each residue."""
    shape = (batch, heads, dilation, rows)
    if len(x.shape) == 4:
        shape = (batch, rows, dilation, heads, x.shape[3])
    return jax.ShapeDtypeStruct(shape, x.dtype)


def unview(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `view` for tiles and lines."""
    if x.ndim == 4:
        x = x.transpose(0, 3, 2, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def rows_of(ref: Any, batch: Any, head: Any, residue: Any, first: Any, count: int) -> Any:
    """A tile [count, head_dim] or a line [count] of what `view` makes."""
    match len(ref.shape):
        case 5:
            return ref.at[batch, pl.ds(first, count), residue, head]
        case 4:
            return ref.at[batch, head, residue, pl.ds(first, count)]
        case _:
            return ref.at[batch, residue, pl.ds(first, count)]


def shared_rows(array: Any, slots: tuple[int, ...], count: int) -> Any:
    """Shared memory for `count` rows of what `view` makes in each slot."""
    if len(array.shape) != 5:
        return plgpu.SMEM((*slots, count), array.dtype)
    transforms = plgpu.TilingTransform((ALIGNMENT, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((*slots, count, array.shape[-1]), array.dtype, transforms=transforms)
