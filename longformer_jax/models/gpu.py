"""What models compute in another way on a GPU."""

import jax
import jax.numpy as jnp

from longformer_jax.attention.pallas import default_device

_ALIGNED = 8


def is_for_gpu() -> bool:
    """Whether the code being traced is."""
    return default_device().platform in ("gpu", "cuda", "rocm")


def unrolls_layers(deterministic: bool) -> bool:
    """Whether a scan over layers is to be written out.

    A loop compiles in the same time for any number of layers. But in training it puts all that the backward pass needs
    into arrays of a whole group of layers: 21 of 100 ms of a step of `enwik8_small` on an H200.
    """
    return not deterministic and is_for_gpu()


def filled_up_rows(matrix: jax.Array) -> jax.Array:
    """[R, …], on a GPU with zeros up to a multiple of 8 rows.

    cuBLAS is slow at products with another number of columns: 8 of 100 ms of a step of `enwik8_small` on an H200.
    """
    missing = -len(matrix) % _ALIGNED if is_for_gpu() else 0
    return jnp.pad(matrix, [(0, missing)] + [(0, 0)] * (matrix.ndim - 1)) if missing else matrix
