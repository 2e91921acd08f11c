"""WikiHop's point in miniature: a question whose answer takes two documents that are thousands of tokens apart.

    python -m benchmarks.two_documents RUNS [VARIANT …]

A question has eight candidates, in any order, and up to eight documents of words without meaning. One document names a
season and another the weather, once each; the answer is the city that goes with both. The four candidates that are no
cities are never the answer: a model learns first which ones are, then what a fact says of them. One fact alone leaves
two, and where both facts lie far apart no window sees them together.

The variants are those of the paper's ablation (table 10) that need no pretrained weights, of one small model: pieces of
half and of a sixth of the length, the latter with full attention; global tokens with the projections of all others;
and no global attention. RUNS gets the questions and the runs, which go on where they stopped. Writes
results/two_documents_cpu.json and prints it.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.two_facts import (
    SEASONS,
    WEATHERS,
    WORDS,
    by_distance,
    small_encoder,
    trained_and_tested,
    write_results,
)
from longformer_jax.evaluation import evaluate
from longformer_jax.tasks.wikihop import WikiHop
from longformer_jax.training import OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase

ANSWERS = {
    ("summer", "sunny"): "lima",
    ("summer", "snowy"): "oslo",
    ("winter", "sunny"): "cairo",
    ("winter", "snowy"): "kyiv",
}
NO_CITIES = ("bread", "river", "stone", "cloth")
DOCUMENTS = 8  # at most
LONGEST = 3000  # from one fact to the other, in words
DISTANCES = (16, 64, 256, 512, 1024, 2048, LONGEST)
TRAIN, VALIDATION, TEST = 20_000, 400, 100  # questions; of TEST so many at each distance
LENGTH = 3072
WINDOW = 128  # both sides together
VARIANTS = ("ablation", "length_1536", "length_512", "no_global_projections", "no_global_attention")


def question(rng: random.Random, distance: int, number: int) -> dict[str, Any]:
    """A record in WikiHop's format; the facts are so many words apart, in two of its documents."""
    facts = [rng.choice(SEASONS), rng.choice(WEATHERS)]
    answer = ANSWERS[facts[0], facts[1]]
    rng.shuffle(facts)
    before, after = rng.randint(1, 8), rng.randint(1, 8)
    words = [*rng.choices(WORDS, k=before), facts[0], *rng.choices(WORDS, k=distance - 1), facts[1]]
    words += rng.choices(WORDS, k=after)
    # Somewhere between the facts one document ends, and others elsewhere.
    ends = {rng.randint(before + 1, before + distance)}
    ends |= set(rng.sample(range(1, len(words)), min(DOCUMENTS - 2, len(words) - 1)))
    bounds = [0, *sorted(ends), len(words)]
    candidates = [*ANSWERS.values(), *NO_CITIES]
    rng.shuffle(candidates)
    return {
        "id": f"{distance}-{number}",
        "query": "capital_of weather",
        "candidates": candidates,
        "supports": [" ".join(words[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)],
        "answer": answer,
    }


def questions(count: int, seed: int, distance: int | None = None) -> Iterator[dict[str, Any]]:
    """Distances are drawn, short ones more often, unless there is one."""
    rng = random.Random(seed)
    for number in range(count):
        yield question(rng, distance or max(2, round(LONGEST ** (rng.random() ** 3))), number)


def write_questions(folder: Path) -> None:
    """train.json, dev.json, and test.json, a file like theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = [record for i, distance in enumerate(DISTANCES) for record in questions(TEST, 3 + i, distance)]
    splits = {"train": questions(TRAIN, 1), "dev": questions(VALIDATION, 2), "test": tests}
    for split, records in splits.items():
        if not (folder / f"{split}.json").exists():
            (folder / f"{split}.json").write_text(json.dumps(list(records)))


def experiment(variant: str, runs: Path) -> TaskExperiment:
    """One of the VARIANTS, as those of configs/tasks/wikihop.py."""
    has_global = variant not in ("length_512", "no_global_attention")
    length = int(variant.removeprefix("length_")) if variant.startswith("length_") else LENGTH
    return TaskExperiment(
        model=small_encoder(
            LENGTH,
            num_layers=3,
            attention_window=WINDOW,
            attention_mode="full" if variant == "length_512" else "sliding_window",
            global_projections=has_global and variant != "no_global_projections",
        ),
        task=WikiHop(max_candidates=8, max_global_tokens=32, global_attention=has_global),
        phases=(TaskPhase(sequence_length=length, learning_rate=1e-3, batch_size=32, epochs=2),),
        data=TaskDataConfig(path=str(runs / "questions"), cache_dir=str(runs / "cache")),
        optimizer=OptimizerConfig(b2=0.98, clip_norm=1.0, decay="linear"),
        evaluations_per_epoch=4,
        keep_best=False,
        log_interval=50,
    )


def measure(variant: str, runs: Path) -> dict[str, Any]:
    """One of the VARIANTS, trained and tested."""

    def test(workdir: Path) -> dict[str, Any]:
        predictions, file = runs / f"{variant}_answers.json", runs / "questions" / "test.json"
        evaluate(workdir, data=file, predictions=predictions)
        answers, records = (json.loads(path.read_text()) for path in (predictions, file))
        found = [{"answer": answers[record["id"]]} for record in records]
        return {"accuracy": by_distance(found, records, "answer")}

    return trained_and_tested(variant, runs, experiment(variant, runs), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory for the questions and the runs")
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    options = parser.parse_args()
    write_questions(options.runs / "questions")
    results = {
        "test_questions": TEST,
        "measured": [measure(variant, options.runs) for variant in options.variants],
    }
    write_results("two_documents", results)


if __name__ == "__main__":
    main()
