"""Writes tests/golden/metrics.json: labels at random, and what scikit-learn says of them. Needs scikit-learn.

python tests/golden/make_metrics.py
"""

import json
import random
from pathlib import Path

from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support


def case(rng: random.Random, labels: list[str], count: int, skewed: bool) -> dict:
    weights = [10**-i if skewed else 1 for i in range(len(labels))]
    expected = rng.choices(labels, weights, k=count)
    predicted = [label if rng.random() < 0.6 else rng.choices(labels, weights)[0] for label in expected]
    of_each = precision_recall_fscore_support(expected, predicted, labels=labels, average=None, zero_division=0)
    return {
        "labels": labels,
        "expected": expected,
        "predicted": predicted,
        "accuracy": accuracy_score(expected, predicted),
        "macro_f1": f1_score(expected, predicted, labels=labels, average="macro", zero_division=0),
        "of_each": [list(map(float, values)) for values in zip(*of_each[:3], strict=True)],
    }


rng = random.Random(0)
cases = [
    case(rng, labels, count, skewed)
    for labels in (["false", "true"], ["a", "b", "c"], [str(i) for i in range(7)])
    for count in (1, 2, 5, 40)
    for skewed in (False, True)
]
Path(__file__).with_name("metrics.json").write_text(json.dumps(cases) + "\n")
