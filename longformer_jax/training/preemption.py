"""Stopping on SIGTERM or Ctrl-C, at the same step in every process."""

import os
import signal
import threading
import types
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Tells a training loop when to save and leave; a context manager that listens for SIGTERM and SIGINT (Ctrl-C).

    A second Ctrl-C is a KeyboardInterrupt. Nothing changes outside of the main thread, which alone may listen, nor for
    signals that are handled by a program in which Python is embedded.
    """

    def __init__(self) -> None:
        self._alone = jax.process_count() == 1
        self._received = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # With several processes JAX's own handler has SIGTERM, and agrees with the others on a step.
            for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
                # A handler that is none of Python's could not be put back.
                if signal.getsignal(number) is not None:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, StopRequest):  # which has not heard it
                outer._received |= self._received

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._received = True
        self._interrupted |= number == signal.SIGINT
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def received(self) -> bool:
        """Whether this process has been told to stop."""
        return self._received

    def at(self, step: int) -> bool:
        """Whether to stop after `step` finished steps; with several processes, to be asked at every step."""
        if self._alone:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)
