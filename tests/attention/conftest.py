import pytest

from tests.attention.cases import IMPLEMENTATIONS, INTERPRETED


def parameters(implementations: list[str]) -> list:
    """For pytest: the interpreter takes its time."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name == INTERPRETED)) for name in implementations]


@pytest.fixture(params=parameters(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
