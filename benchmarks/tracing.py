"""Models that are traced with another function in the place of one of theirs."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax


@contextlib.contextmanager
def patched(module: Any, name: str, function: Any) -> Iterator[None]:
    """As `mock.patch.object`; JAX has forgotten what it traced before, and forgets what was traced within."""
    with mock.patch.object(module, name, function):
        jax.clear_caches()
        yield
    jax.clear_caches()
