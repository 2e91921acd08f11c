"""JAX's settings that change numbers, pinned where equal seeds promise equal numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def pinned_random() -> Iterator[None]:
    """A block, or a decorated function, in which keys of `jax.random` are what JAX makes them by default."""
    with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(True):
        yield


@contextmanager
def pinned() -> Iterator[None]:
    """As `pinned_random`; in it numbers have 32 bits, and what is jitted is compiled, whatever the environment says."""
    with pinned_random(), jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.disable_jit(False):
        yield
