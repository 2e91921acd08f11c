"""Means over intervals, the stop at what is not finite, and the time that is not counted."""

import types
from typing import Any

import jax.numpy as jnp
import pytest

from longformer_jax.training import monitor as monitor_module
from longformer_jax.training.monitor import DivergenceError, StepMonitor

PLACES = ["the embeddings", "the output of layer 1 of 1", "what follows the last layer"]


def metrics(loss: float, grad_norm: float = 1.0, fault: int = 0) -> dict:
    return {"loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm), "fault": jnp.int32(fault)}


def monitor_of(interval: int, report: Any = lambda *report: None, phase: int = 1, **options: Any) -> StepMonitor:
    monitor = StepMonitor(interval, PLACES, **options)
    monitor.begin(phase, report)
    return monitor


def test_reports_means_of_intervals_and_of_the_rest() -> None:
    reports = []
    monitor = monitor_of(4, lambda step, means, seconds: reports.append((step, means["loss"])))
    for step in range(3, 11):  # as after a resume, the first interval is shorter
        monitor.push(step, metrics(step))
    monitor.finish()
    assert reports == [(4, 3.5), (8, 6.5), (10, 9.5)]
    monitor.finish()
    assert len(reports) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_stops_within_two_steps_of_what_is_not_finite(field: str, bad: float) -> None:
    monitor = monitor_of(100, phase=3)
    monitor.push(1, metrics(1.0))
    monitor.push(2, metrics(1.0, fault=1) | {field: jnp.float32(bad)})
    monitor.push(3, metrics(1.0))
    sentence = f"{field} is {bad} at step 2 in phase 3, first in the output of layer 1 of 1; expected a finite number"
    with pytest.raises(DivergenceError, match=f"^{sentence}$"):
        monitor.push(4, metrics(1.0))


def test_skips_so_many_in_a_row_and_counts_them() -> None:
    reports, said = [], []
    monitor = monitor_of(4, lambda *report: reports.append(report[:2]), most_skipped=2, say=said.append)
    nan = float("nan")
    for step, loss in enumerate([1.0, nan, nan, 3.0, nan, nan, nan], start=1):
        monitor.push(step, metrics(loss, fault=2))
    with pytest.raises(DivergenceError, match="loss is nan at step 7 .* after 2 such steps in a row; expected a"):
        monitor.finish()
    assert reports == [(4, {"loss": 2.0, "grad_norm": 1.0, "skipped": 2})]
    assert said == [
        f"loss is nan at step {step} in phase 1, first in what follows the last layer; skipped" for step in (2, 3, 5, 6)
    ]


def test_an_interval_without_a_finite_step_is_reported_with_the_next() -> None:
    reports = []
    monitor = monitor_of(2, lambda *report: reports.append(report[:2]), most_skipped=9, say=lambda line: None)
    for step, loss in enumerate([float("inf")] * 3 + [1.0], start=1):
        monitor.push(step, metrics(loss))
    monitor.finish()
    assert reports == [(4, {"loss": 1.0, "grad_norm": 1.0, "skipped": 3})]


def test_steps_that_are_skipped_at_the_end_of_a_phase_count_in_the_next() -> None:
    reports = []
    monitor = monitor_of(1, lambda *report: reports.append((1, *report[:2])), most_skipped=3, say=lambda line: None)
    nan = float("nan")
    for step, loss in enumerate([1.0, nan, nan], start=1):
        monitor.push(step, metrics(loss))
    monitor.finish()
    monitor.begin(2, lambda *report: reports.append((2, *report[:2])))
    for step, loss in enumerate([nan, 2.0, nan], start=4):
        monitor.push(step, metrics(loss))
    monitor.finish()
    monitor.end()
    monitor.end()
    assert reports == [
        (1, 1, {"loss": 1.0, "grad_norm": 1.0, "skipped": 0}),
        (2, 5, {"loss": 2.0, "grad_norm": 1.0, "skipped": 3}),
        (2, 6, {"skipped": 1}),
    ]
    monitor.begin(3, lambda *report: None)
    for step in (7, 8):
        monitor.push(step, metrics(nan))
    monitor.push(9, metrics(nan))
    with pytest.raises(DivergenceError, match="at step 9 in phase 3, first in .* after 3 such steps in a row"):
        monitor.finish()


def test_pause_sees_the_last_step() -> None:
    monitor = monitor_of(100)
    monitor.push(1, metrics(float("nan")))
    with pytest.raises(DivergenceError, match="at step 1"), monitor.paused():
        pytest.fail("the state of step 1 must not be used")


def test_time_of_a_pause_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(monitor_module, "time", types.SimpleNamespace(perf_counter=lambda: now))
    seconds = []
    monitor = monitor_of(2, lambda step, means, per_step: seconds.append(per_step))
    monitor.push(1, metrics(1.0))
    now += 3
    with monitor.paused():
        now += 50
    monitor.push(2, metrics(1.0))
    now += 1
    monitor.finish()
    assert seconds == [2.0]
    monitor = monitor_of(100, lambda step, means, per_step: seconds.append(per_step))
    for step in range(1, 7):  # the phase ends within an interval
        monitor.push(step, metrics(1.0))
        now += 1
    monitor.finish()
    assert seconds == [2.0, 1.0]
