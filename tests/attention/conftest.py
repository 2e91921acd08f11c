import pytest

from tests.attention.cases import IMPLEMENTATIONS, INTERPRETED


def parameters(implementations: list[str], *marks: pytest.MarkDecorator) -> list:
    """For pytest: the interpreter takes its time, and gets these marks, too."""
    marks = pytest.mark.slow, *marks
    return [pytest.param(name, marks=marks if name == INTERPRETED else ()) for name in implementations]


@pytest.fixture(params=parameters(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
