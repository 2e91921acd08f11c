"""Metrics against scikit-learn's, written down by tests/golden/make_metrics.py."""

import json
from pathlib import Path

import pytest

from longformer_jax import InputError
from longformer_jax.tasks.metrics import accuracy, macro_f1, precision_recall_f1

CASES = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())


def test_those_of_scikit_learn() -> None:
    assert len(CASES) == 24
    for case in CASES:
        labels = (case["predicted"], case["expected"])
        assert accuracy(*labels) == pytest.approx(case["accuracy"], abs=1e-12)
        assert macro_f1(*labels, case["labels"]) == pytest.approx(case["macro_f1"], abs=1e-12)
        for label, values in zip(case["labels"], case["of_each"], strict=True):
            assert precision_recall_f1(*labels, label) == pytest.approx(values, abs=1e-12)


def test_nothing_to_score() -> None:
    for predicted, expected in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(
            InputError, match="^there are . predictions for . labels; expected one for each, at least on"
        ):
            accuracy(predicted, expected)
