"""How the kernels' arrays lie in global memory and in shared memory: tiles of head_dim numbers a row, and lines
of one."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ALIGNMENT = 8  # of the rows at which TMA may begin, given how it lays them out in shared memory


def view(x: jax.Array, dilation: int, rows: int) -> jax.Array:
    """Rows of each residue modulo the dilation, filled up to whole blocks of so many.

    A tile [B, length, H, D] becomes [B, R, dilation, H, D], without a copy where nothing is to be filled up; what all
    heads share has 1 in place of H, what the whole batch shares 1 in place of B. A line's
    numbers TMA wants side by side: [B, length, H] becomes [B, H, dilation, R], and ids [B, length] [B, 1, dilation, R].
    """
    padding = [(0, 0)] * x.ndim
    padding[1] = 0, -x.shape[1] % (dilation * rows)
    if padding[1][1]:
        x = jnp.pad(x, padding)
    if x.ndim == 4:
        return x.reshape(len(x), -1, dilation, *x.shape[2:])
    return x.reshape(len(x), -1, dilation, x.shape[2] if x.ndim == 3 else 1).transpose(0, 3, 2, 1)


def view_of_output(x: jax.ShapeDtypeStruct, batch: int, heads: int, dilation: int, rows: int) -> jax.ShapeDtypeStruct:
    """What `view` would make of so many batch entries and heads of the array, with so many rows of each residue."""
    shape = (batch, heads, dilation, rows)
    if len(x.shape) == 4:
        shape = (batch, rows, dilation, heads, x.shape[3])
    return jax.ShapeDtypeStruct(shape, x.dtype)


def unview(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `view` for tiles and lines."""
    if not is_tile(x):
        x = x.transpose(0, 3, 2, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def is_tile(x: Any) -> bool:
    """Whether a view, merged or not, has head_dim numbers a row; a line has one."""
    return len(x.shape) != 4


def merged_shape(x: Any) -> jax.ShapeDtypeStruct:
    """Of what a kernel takes in place of the view: of tiles [B, R, dilation * H * D].

    cp.async wants the rows and the numbers of what it copies on neighbouring axes.
    """
    return jax.ShapeDtypeStruct((*x.shape[:2], math.prod(x.shape[2:])) if is_tile(x) else x.shape, x.dtype)


def rows_of(ref: Any, shape: tuple[int, ...], batch: Any, head: Any, dilation: int, residue: Any, first: Any) -> Any:
    """A tile [count, head_dim] or a line [count] of a merged view in global memory."""
    rows = pl.ds(first, shape[0])
    batch = batch if ref.shape[0] > 1 else 0
    if not is_tile(ref):
        return ref.at[batch, head if ref.shape[1] > 1 else 0, residue, rows]
    heads = ref.shape[2] // (dilation * shape[1])
    start = (residue * heads + (head if heads > 1 else 0)) * shape[1]
    return ref.at[batch, rows, pl.ds(pl.multiple_of(start, shape[1]), shape[1])]


def shared_rows(view: Any, slots: tuple[int, ...], count: int) -> Any:
    """Shared memory for `count` rows in each slot."""
    if not is_tile(view):
        return plgpu.SMEM((*slots, count), view.dtype)
    transforms = plgpu.TilingTransform((ALIGNMENT, 64)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM((*slots, count, view.shape[-1]), view.dtype, transforms=transforms)
