import pytest

from tests.attention.cases import IMPLEMENTATIONS, parameters


@pytest.fixture(params=parameters(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
