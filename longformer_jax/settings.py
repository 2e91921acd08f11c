"""JAX's settings: what changes numbers, pinned where equal seeds promise equal ones; the cache of compiled programs."""

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from longformer_jax.errors import InputError
from longformer_jax.files import user_cache

# Compiled programs are kept where compiling takes at least so long, and in all at most so much of them.
_LEAST_SECONDS = 0.1
_MOST_BYTES = 2**31


@contextmanager
def pinned_random() -> Iterator[None]:
    """A block, or a decorated function, in which keys of `jax.random` are what JAX makes them by default."""
    with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(True), _no_seed_offset():
        yield


@contextmanager
def _no_seed_offset() -> Iterator[None]:
    """JAX has no context for this one: it is set for all threads, hence only where somebody has set it."""
    if not (offset := jax.config.jax_random_seed_offset):
        yield
        return
    jax.config.update("jax_random_seed_offset", 0)
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", offset)


@contextmanager
def pinned() -> Iterator[None]:
    """As `pinned_random`; in it numbers have 32 bits, and what is jitted is compiled, whatever the environment says."""
    with pinned_random(), jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.disable_jit(False):
        yield


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache directory, from which the next start of a command takes them.

    JAX tells them by all that they are made of and for, the features of the processor among it.
    What the user has set of JAX's cache, in the environment or in this process, stays as it is. Where the directory
    cannot be written to, or is full, everything is compiled as ever.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        place = user_cache() / "compiled"
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            return
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ and importlib.util.find_spec("filelock"):
            jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
        if jax.config.jax_compilation_cache_max_size != -1:  # without a limit, JAX notes no time of use
            _remove_half_written(place)
    except (OSError, InputError):  # read-only, or without a home
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    for message in ("Error (reading|writing) persistent compilation cache", "Cache value for key"):
        warnings.filterwarnings("ignore", message)


def _remove_half_written(place: Path) -> None:
    """Removes what a killed process has left half-written, as JAX would never write it again; it notes the time of use
    of a program last."""
    for program in place.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)
