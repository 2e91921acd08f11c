"""Stopping on SIGTERM or Ctrl-C, at the same step in every process; where there is but one, in a validation, too."""

import contextvars
import itertools
import os
import signal
import threading
import types
from collections.abc import Callable
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

# JAX lets all processes stop at the next number that none of them has asked with. So these count the questions of a
# process, through all of its runs: steps would begin anew with each run, or far above what JAX waits for.
_asked = itertools.count(1)


# Whose `unless_stopped` is computing something.
_computing: "contextvars.ContextVar[StopRequest]" = contextvars.ContextVar("_computing")


class _Stopped(Exception):
    """Ends what `StopRequest.unless_stopped` computes."""


def end_if_stopped() -> None:
    """Ends what `StopRequest.unless_stopped` computes, where it has been told to stop; does nothing elsewhere.

    A handler of signals could not: JAX does not bear exceptions that come at any moment.
    """
    stop = _computing.get(None)
    if stop is not None and stop.received:
        raise _Stopped


class StopRequest:
    """Tells a training loop when to save and leave; a context manager that listens for SIGTERM and SIGINT (Ctrl-C).

    A second Ctrl-C is a KeyboardInterrupt. What one within another hears is the outer one's, too, and the other way
    round. Nothing changes outside of the main thread, which alone may listen, nor for signals that are handled by a
    program in which Python is embedded.
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
            for outer in self._outer():
                self._take_over(outer)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        for outer in self._outer():
            outer._take_over(self)

    def _outer(self) -> "list[StopRequest]":
        """The one that listens again when this one no longer does."""
        owners = (getattr(handler, "__self__", None) for handler in self._previous.values())
        return [owner for owner in owners if isinstance(owner, StopRequest)]

    def _take_over(self, other: "StopRequest") -> None:
        """What another one has heard."""
        self._received |= other._received
        self._interrupted |= other._interrupted

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        if self._alone:
            self._received = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    @property
    def received(self) -> bool:
        """Whether this process has been told to stop; with several, whether they have agreed on it."""
        return self._received

    def after_step(self) -> bool:
        """Whether to stop now; with several processes, to be asked by each of them after every step."""
        if not self._alone and multihost_utils.reached_preemption_sync_point(next(_asked)):
            self._received = True
        return self._received

    def unless_stopped[T](self, compute: Callable[[], T]) -> T | None:
        """What `compute` returns, which has no effects, or None where this process has been told to stop.

        It ends where it calls `end_if_stopped`. Several processes compute it in any case, as they would have to agree
        on where to end.
        """
        if not self._alone:
            return compute()
        token = _computing.set(self)
        try:
            end_if_stopped()
            return compute()
        except _Stopped:
            return None
        finally:
            _computing.reset(token)
