"""Metrics of classification, by scikit-learn's definitions."""

from collections.abc import Sequence

from longformer_jax.errors import InputError


def accuracy(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """The part of the labels that are as expected; raises InputError where there are none."""
    _check(predicted, expected)
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def precision_recall_f1(predicted: Sequence[str], expected: Sequence[str], positive: str) -> tuple[float, float, float]:
    """Of one label; a quotient by zero is 0, as with `zero_division=0` of scikit-learn."""
    _check(predicted, expected)
    hits = sum(p == e == positive for p, e in zip(predicted, expected, strict=True))
    found, wanted = sum(p == positive for p in predicted), sum(e == positive for e in expected)
    precision, recall = (hits / total if total else 0.0 for total in (found, wanted))
    return precision, recall, 2 * hits / (found + wanted) if found + wanted else 0.0


def macro_f1(predicted: Sequence[str], expected: Sequence[str], labels: Sequence[str]) -> float:
    """The mean of the F1 of all `labels`, whether they occur or not."""
    return sum(precision_recall_f1(predicted, expected, label)[2] for label in labels) / len(labels)


def _check(predicted: Sequence[str], expected: Sequence[str]) -> None:
    if not expected or len(predicted) != len(expected):
        raise InputError(
            f"there are {len(predicted)} predictions for {len(expected)} labels; expected one for each, at least one"
        )
