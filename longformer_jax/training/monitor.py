"""Follows the steps that the devices have been given, without making the devices wait."""

import collections
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

# The devices always have a step waiting, and yet a signal or a loss that is not finite is noticed this many steps late.
_IN_FLIGHT = 2

type Report = Callable[[int, dict[str, float], float], None]


class DivergenceError(ArithmeticError):
    """The loss or the gradient is no longer finite, so that training cannot go on."""


class StepMonitor:
    """Reads the metrics of finished steps, checks that they are finite, and reports means over intervals.

    The metrics of a step travel to the host while the next steps run. Each phase is begun and finished; steps that are
    skipped at its end count in the next one.
    """

    def __init__(
        self,
        interval: int,
        places: Sequence[str],
        *,
        most_skipped: int = 0,
        say: Callable[[str], None] = print,
    ) -> None:
        """Follows the steps of a run.

        Args:
          interval: of reports, in steps.
          places: what `fault`, one of the metrics, counts.
          most_skipped: how many steps in a row may be not finite, as they are skipped.
          say: is told of each of these.
        """
        self._interval = interval
        self._places = places
        self._most_skipped, self._say = most_skipped, say
        self._skipped = self._in_a_row = 0  # since the last report, and up to now
        self._in_flight: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._finished: list[dict[str, float]] = []
        self._last_step = 0
        self._seconds = 0.0  # since the last report, up to `_since`
        self._since = time.perf_counter()

    def begin(self, phase: int, report: Report) -> None:
        """Goes on with a phase.

        Args:
          phase: its number, for sentences.
          report: called with (step, means, seconds_per_step) whenever a step that the interval divides has finished.
            The means are of steps that are finite; `skipped` is the number of the others, and alone in the end.
        """
        self._phase, self._report = phase, report
        self._since = time.perf_counter()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the scalars of step `step` (counted from 1), just given to the devices; waits for an earlier step.

        Raises:
          DivergenceError: `loss` or `grad_norm` of an earlier step is not finite, one time too often.
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
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now
        yield
        self._since = time.perf_counter()

    def finish(self) -> None:
        """Waits until all steps of the phase have finished and reports those that no report has had."""
        with self.paused():
            if self._finished:
                self._flush()

    def end(self) -> None:
        """Reports, after the last phase, the skipped steps that no report has had."""
        if self._skipped:
            self._flush()

    def _read(self) -> None:
        step, metrics = self._in_flight.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        fault = int(values.pop("fault"))
        self._last_step = step
        wrong = next((name for name in ("loss", "grad_norm") if not math.isfinite(values[name])), None)
        if wrong is None:
            self._in_a_row = 0
            self._finished.append(values)
        else:
            place = f"at step {step} in phase {self._phase}, first in {self._places[fault]}"
            self._skip(f"{wrong} is {values[wrong]} {place}")
        if step % self._interval == 0 and self._finished:
            self._flush()

    def _skip(self, what: str) -> None:
        """Counts a step that is not finite; raises DivergenceError where there may be no more."""
        most = self._most_skipped
        if self._in_a_row == most:
            after = f" after {most} such steps in a row" if most else ""
            raise DivergenceError(f"{what}{after}; expected a finite number")
        self._in_a_row += 1
        self._skipped += 1
        self._say(f"{what}; skipped")

    def _flush(self) -> None:
        now = time.perf_counter()
        seconds = self._seconds + now - self._since
        count = len(self._finished)
        names = self._finished[0] if self._finished else ()
        means = {name: sum(values[name] for values in self._finished) / count for name in names}
        means["skipped"] = self._skipped
        count += self._skipped
        self._finished.clear()
        self._seconds, self._since, self._skipped = 0.0, now, 0
        self._report(self._last_step, means, seconds / count)
