"""TF-IDF and logistic regression on a task's own splits, as its files are read for training: what a model has to beat.

    python -m benchmarks.tfidf imdb aclImdb_v1.tar.gz
    python -m benchmarks.tfidf hyperpartisan DIRECTORY
    python -m benchmarks.tfidf classification DIRECTORY --labels=neg,pos

Needs scikit-learn (pip install scikit-learn). Words, and words with pairs of words, each with the regularization that
is best on validation; the better of them once more, trained on train and validation. Writes results/tfidf_TASK_cpu.json
and prints it.
"""

import argparse
import json
import os
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.side_by_side import cpu_model
from longformer_jax.tasks import Example, find_task
from longformer_jax.tasks.classification import Classification

# The largest n-grams of words, and the inverse strengths of the regularization.
GRAMS = (1, 2)
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def fit(train: list[Example], grams: int) -> tuple[TfidfVectorizer, Any]:
    """The vectorizer, and what it makes of the training texts."""
    vectorizer = TfidfVectorizer(ngram_range=(1, grams), sublinear_tf=True, min_df=2, dtype="float32")
    return vectorizer, vectorizer.fit_transform(example["text"] for example in train)


def learn(matrix: Any, train: list[Example], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000).fit(matrix, [example["label"] for example in train])


def scored(task: Classification, model: LogisticRegression, matrix: Any, examples: list[Example]) -> dict[str, float]:
    """The task's metrics."""
    return task.score([{"label": label} for label in model.predict(matrix)], examples)


def rows(task: Classification, splits: dict[str, list[Example]]) -> list[dict[str, Any]]:
    """For each size of n-grams the scores with the best strength; then those of the better one trained on more."""
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    found: list[dict[str, Any]] = []
    for grams in GRAMS:
        start = time.perf_counter()
        vectorizer, matrix = fit(train, grams)
        others = {name: vectorizer.transform(e["text"] for e in splits[name]) for name in ("validation", "test")}
        models = {strength: learn(matrix, train, strength) for strength in STRENGTHS}
        on_validation = {s: scored(task, model, others["validation"], validation) for s, model in models.items()}
        best = max(STRENGTHS, key=lambda strength: on_validation[strength][task.selection])
        found.append(
            {"grams": grams, "features": matrix.shape[1], "strength": best, "trained_on": len(train)}
            | {"validation": on_validation[best], "test": scored(task, models[best], others["test"], test)}
            | {"seconds": round(time.perf_counter() - start, 1)}
        )
    best_row = max(found, key=lambda row: row["validation"][task.selection])
    start, everything = time.perf_counter(), train + validation
    vectorizer, matrix = fit(everything, best_row["grams"])
    model = learn(matrix, everything, best_row["strength"])
    found.append(
        {"grams": best_row["grams"], "features": matrix.shape[1], "strength": best_row["strength"]}
        | {"trained_on": len(everything)}
        | {"test": scored(task, model, vectorizer.transform(e["text"] for e in test), test)}
        | {"seconds": round(time.perf_counter() - start, 1)}
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="as in --config.task.kind")
    parser.add_argument("data", type=Path, help="as --config.data.path")
    parser.add_argument("--labels", help="those of classification")
    parser.add_argument("--output", type=Path, help="where the results go")
    options = parser.parse_args()
    settings = {"labels": tuple(options.labels.split(","))} if options.labels else {}
    task_class: Any = find_task(options.task)
    task: Classification = task_class(**settings)
    splits = {split: list(task.read(options.data, split, Counter())) for split in ("train", "validation", "test")}
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": {"scikit-learn": sklearn.__version__},
        "examples": {split: len(examples) for split, examples in splits.items()},
        "measured": rows(task, splits),
    }
    output = options.output or Path(__file__).parent / "results" / f"tfidf_{options.task}_cpu.json"
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    main()
