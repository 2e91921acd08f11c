"""Compiled programs are shared by all tests of the session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def share_programs(compilation_cache: Path) -> None:
    """For all tests here."""
