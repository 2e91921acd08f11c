"""Stopping on SIGTERM, at the same step in every process."""

import signal
import types
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Tells a training loop when to save and leave; a context manager that listens for SIGTERM."""

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        # With several processes JAX's own handler listens, and agrees with the others on a step.
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True

    def at(self, step: int) -> bool:
        """Whether to stop after `step` finished steps; with several processes, to be asked at every step."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
