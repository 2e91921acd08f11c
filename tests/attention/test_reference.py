"""The dense reference against the contract in float64: values, and gradients by central differences."""

import numpy as np
import pytest

from tests.attention.cases import ALL_ARRAYS, CASE, FIRST, Case, assert_close, reference_with_gradients
from tests.attention.oracle import dense_attention, visibility

EACH_CASE = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name not in FIRST)) for case in CASE.values()],
)


def oracle_arguments(case: Case) -> tuple[list[np.ndarray], dict]:
    inputs = [np.asarray(x, np.float64) for x in case.inputs()]
    visible = visibility(case.B, case.T, case.num_keys, case.H, **case.band, **case.limits)
    options = {"visible": visible, "scale": case.scale, "keep": case.keep, "dropout_rate": case.dropout_rate}
    return inputs, options


@EACH_CASE
def test_values(case: Case) -> None:
    inputs, options = oracle_arguments(case)
    found = reference_with_gradients(case)
    out, lse = dense_attention(*inputs, **options)
    assert np.isneginf(lse).any() == case.dead_rows, "the case does not test what it says"
    assert_close(found["out"], out, "out")
    assert_close(found["lse"], lse, "lse")


@EACH_CASE
def test_gradients(case: Case) -> None:
    inputs, options = oracle_arguments(case)
    dout, dlse = (np.asarray(x, np.float64) for x in case.cotangents())
    gradients = reference_with_gradients(case)

    def objective(*inputs: np.ndarray) -> float:
        out, lse = dense_attention(*inputs, **options)
        return (out * dout).sum() + (lse * dlse)[np.isfinite(lse)].sum()

    rng, epsilon = np.random.default_rng(4), 1e-5
    for place, name in enumerate(ALL_ARRAYS[2 : 2 + len(inputs)]):
        direction = rng.normal(size=inputs[place].shape)
        forth, back = inputs.copy(), inputs.copy()
        forth[place], back[place] = inputs[place] + epsilon * direction, inputs[place] - epsilon * direction
        slope = (objective(*forth) - objective(*back)) / (2 * epsilon)
        gradient = gradients[name].astype(np.float64)
        # Along a random direction the slope is about as large as the gradient's norm; float32 is exact to 1e-6 of it.
        assert (gradient * direction).sum() == pytest.approx(slope, abs=1e-5 * np.linalg.norm(gradient) + 1e-7), name
