"""Compiled programs are shared by all tests of the session; how a run is told to stop."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from longformer_jax.training.preemption import StopRequest


@pytest.fixture(scope="session", autouse=True)
def share_programs(compilation_cache: Path) -> None:
    """For all tests here."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the next run, which may go on with an earlier one, stop after so many steps of its own."""

    def stop(steps: int) -> None:
        asked = itertools.count(1)
        monkeypatch.setattr(StopRequest, "after_step", lambda self: next(asked) == steps)

    return stop
