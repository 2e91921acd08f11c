"""Follows the steps that the devices have been given, without making the devices wait."""

import collections
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

# The devices always have a step waiting, and yet a signal or a loss that is not finite is noticed this many steps late.
_IN_FLIGHT = 2


class DivergenceError(ArithmeticError):
    """The loss or the gradient is no longer finite, so that training cannot go on."""


class StepMonitor:
    """Reads the metrics of finished steps, checks that they are finite, and reports means over intervals.

    The metrics of a step travel to the host while the next steps run.
    """

    def __init__(self, interval: int, report: Callable[[int, dict[str, float], float], None]) -> None:
        """Calls `report(step, means, seconds_per_step)` whenever a step that `interval` divides has finished."""
        self._interval = interval
        self._report = report
        self._in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._finished: list[dict[str, float]] = []
        self._last_step = 0
        self._seconds = 0.0  # since the last report, up to `_since`
        self._since = time.perf_counter()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of step `step` (counted from 1), just given to the devices; waits for an earlier step.

        Raises:
          DivergenceError: `loss` or `grad_norm` of an earlier step is not finite.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self._in_flight.append((step, metrics))
        if len(self._in_flight) > _IN_FLIGHT:
            self._read()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Waits until all steps have finished, and does not count the time that the block takes."""
        while self._in_flight:
            self._read()
        self._seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    def finish(self) -> None:
        """Waits until all steps have finished and reports those that no report has had."""
        with self.paused():
            if self._finished:
                self._flush()

    def _read(self) -> None:
        step, metrics = self._in_flight.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise DivergenceError(f"{name} is {values[name]} at step {step}; expected a finite number")
        self._last_step = step
        self._finished.append(values)
        if step % self._interval == 0:
            self._flush()

    def _flush(self) -> None:
        now = time.perf_counter()
        seconds = self._seconds + now - self._since
        count = len(self._finished)
        means = {name: sum(values[name] for values in self._finished) / count for name in self._finished[0]}
        self._finished.clear()
        self._seconds, self._since = 0.0, now
        self._report(self._last_step, means, seconds / count)
