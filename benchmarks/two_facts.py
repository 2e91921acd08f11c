"""The paper's point in miniature: a label that needs two facts, in documents where they are up to 3,500 tokens apart.

    python -m benchmarks.two_facts RUNS [longformer windows cut]

Among words without meaning, a document names a season and the weather, once each: summer or winter, sunny or snowy. It
is "usual" if they go together and "odd" if not. Either fact alone says nothing, nor does any sum over words.

Models with the same two layers are trained on the same documents: Longformer with the global token <s>; the same with
its windows alone; and Longformer on documents cut at 512 tokens. Each is then tested at every distance. RUNS gets the
documents and the runs, which go on where they stopped. Writes results/two_facts_cpu.json and prints it.
"""

import argparse
import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.side_by_side import cpu_model
from longformer_jax import LongformerConfig
from longformer_jax.evaluation import evaluate
from longformer_jax.tasks import find_task
from longformer_jax.tasks.classification import TextClassification
from longformer_jax.training import OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase, train

LABELS = ("odd", "usual")
SEASONS, WEATHERS = ("summer", "winter"), ("sunny", "snowy")  # that go together in this order
# Each is one token, of a tokenizer that is learnt from the documents.
WORDS = "air bay cup ear gas hat ice jar kit leg map net oak pan rag sea tap urn van web yam zoo arm bed cat".split()  # noqa: SIM905
MARGIN = 8  # the most words before and after the facts
LONGEST = 3500  # from one fact to the other, in tokens
DISTANCES = (16, 32, 64, 128, 256, 512, 1024, 2048, LONGEST)
TRAIN, VALIDATION, TEST = 20_000, 400, 200  # documents; of TEST so many at each distance
LENGTH = 3584
CUT = 512
WINDOW = 128  # both sides together


def document(rng: random.Random, distance: int, label: str) -> str:
    """Some words, a fact, words up to the other fact, and some words."""
    season = rng.randrange(2)
    facts = [SEASONS[season], WEATHERS[season if label == "usual" else 1 - season]]
    rng.shuffle(facts)
    before, between, after = (
        rng.choices(WORDS, k=k) for k in (rng.randint(1, MARGIN), distance - 1, rng.randint(1, MARGIN))
    )
    return " ".join([*before, facts[0], *between, facts[1], *after])


def documents(count: int, seed: int, distance: int | None = None) -> Iterator[dict[str, str]]:
    """Records, with both labels equally often; distances are drawn, short ones more often, unless there is one."""
    rng = random.Random(seed)
    for number in range(count):
        label, far = LABELS[number % 2], distance or round(LONGEST ** (rng.random() ** 2))
        yield {"id": f"{far}-{number}", "label": label, "text": document(rng, far, label)}


def write_documents(folder: Path) -> None:
    """train.jsonl, validation.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = (record for i, distance in enumerate(DISTANCES) for record in documents(TEST, 3 + i, distance))
    splits = {"train": documents(TRAIN, 1), "validation": documents(VALIDATION, 2), "test": tests}
    for split, records in splits.items():
        if not (folder / f"{split}.jsonl").exists():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowsAlone(TextClassification):
    """Text classification by the first token, which sees no further than any other."""

    kind: str = "benchmarks.two_facts:WindowsAlone"

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """Without a global token."""
        nowhere = np.zeros(batch["input_ids"].shape, bool)
        return super().inputs(batch, model, sequence_length) | {"global_attention_mask": nowhere}


def small_encoder(length: int, *, num_layers: int = 2, **settings: Any) -> LongformerConfig:
    """Of rows of such a length, for documents of which none is seen twice."""
    return LongformerConfig(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=length + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # narrower than Longformer, so larger
        **settings,
    )


def experiment(name: str, runs: Path) -> TaskExperiment:
    """One of the three: "longformer", "windows" or "cut"."""
    # By its name, as a run finds it: this module may be run as a script.
    task: Any = find_task("benchmarks.two_facts:WindowsAlone" if name == "windows" else "classification")
    length = CUT if name == "cut" else LENGTH
    return TaskExperiment(
        model=small_encoder(LENGTH, attention_window=WINDOW),
        task=task(labels=LABELS),
        phases=(TaskPhase(sequence_length=length, learning_rate=3e-3, batch_size=32, epochs=1),),
        lengths=tuple(x for x in (32, 128, CUT, 1536, LENGTH) if x <= length),
        data=TaskDataConfig(path=str(runs / "documents"), cache_dir=str(runs / "cache")),
        optimizer=OptimizerConfig(b2=0.98, clip_norm=1.0, decay="linear"),
        evaluations_per_epoch=5,
        keep_best=False,  # of the first checkpoints with 100% on validation, the longest distances are not sure yet
        log_interval=50,
    )


def by_distance(
    predictions: Iterable[Mapping[str, Any]], records: Iterable[Mapping[str, str]], key: str = "label"
) -> dict[int, float]:
    """The accuracy at each distance, which an id begins with."""
    hits: dict[int, list[bool]] = {}
    for prediction, record in zip(predictions, records, strict=True):
        hits.setdefault(int(record["id"].split("-")[0]), []).append(prediction[key] == record[key])
    return {distance: sum(found) / len(found) for distance, found in hits.items()}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def trained_and_tested(
    name: str, runs: Path, experiment: TaskExperiment, test: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Trains in RUNS/NAME and tests, unless RUNS has what that found; seconds are None after a stop."""
    found = runs / f"{name}.json"
    if found.exists():
        return json.loads(found.read_text())
    in_one_go = not (runs / name).exists()
    began = time.perf_counter()
    train(experiment, runs / name)
    trained = time.perf_counter()
    if not (runs / name / "model").exists():
        raise SystemExit("stopped; the same command goes on from there")
    result = {
        "model": name,
        **test(runs / name),
        "training_seconds": round(trained - began) if in_one_go else None,
        "test_seconds": round(time.perf_counter() - trained),
    }
    found.write_text(json.dumps(result))
    return result


def write_results(name: str, results: dict[str, Any]) -> None:
    """Writes results/NAME_cpu.json and prints it."""
    machine = {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": {"jax": jax.__version__},
    }
    output = Path(__file__).parent / "results" / f"{name}_cpu.json"
    output.write_text(json.dumps(machine | results, indent=1) + "\n")
    print(output.read_text())


def measure(name: str, runs: Path) -> dict[str, Any]:
    """One of the three, trained and tested."""

    def test(workdir: Path) -> dict[str, Any]:
        predictions = runs / f"{name}.jsonl"
        evaluate(workdir, split="test", predictions=predictions)
        return {"accuracy": by_distance(read(predictions), read(runs / "documents" / "test.jsonl"))}

    return trained_and_tested(name, runs, experiment(name, runs), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory for the documents and the runs")
    parser.add_argument("models", nargs="*", default=["longformer", "windows", "cut"])
    options = parser.parse_args()
    write_documents(options.runs / "documents")
    results = {
        "test_documents": TEST,
        "cut": CUT,
        "reach": WINDOW,  # half of it in each of the two layers
        "measured": [measure(name, options.runs) for name in options.models],
    }
    write_results("two_facts", results)


if __name__ == "__main__":
    main()
