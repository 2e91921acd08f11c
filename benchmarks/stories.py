"""Coreference over thousands of tokens in miniature: stories whose people come back by what was said of them long ago.

    python -m benchmarks.stories RUNS [VARIANT …]

Among sentences of words without meaning, a story of 2,000 to 4,000 words introduces six people, "anna is a baker ."
Later they appear, in any order, as "anna", as "the baker", and just after that as "she"; two at once are of different
genders. Whoever compares strings never learns that the baker is anna, and the sentence that says so may be anywhere
before.

A small model, whose two layers see 64 tokens to either side, is trained from random weights on parts of 512 tokens,
between which nothing is linked, and then on whole stories; and once more on parts alone. Both are tested on other
stories, beside two answers that come from strings and are given the true mentions. RUNS gets the stories and the runs,
which go on where they stopped. Writes results/stories_cpu.json and prints it.
"""

import argparse
import bisect
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.two_facts import WORDS, read, small_encoder, trained_and_tested, write_results
from longformer_jax.evaluation import evaluate
from longformer_jax.tasks.conll import read_documents
from longformer_jax.tasks.coreference import Coreference
from longformer_jax.tasks.coreference_scores import coreference_scores
from longformer_jax.training import OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase

# Each word is one token, of a tokenizer that is learnt from the stories.
NAMES = {"she": ("anna", "clara", "mia", "vera", "ruth"), "he": ("ben", "karl", "omar", "ivan", "otto")}
PRONOUNS = {name: pronoun for pronoun, names in NAMES.items() for name in names}
JOBS = ("baker", "pilot", "judge", "nurse", "clown", "poet", "guard", "tailor", "miner", "painter")
VERBS = ("slept", "sang", "left", "smiled", "waited", "read")
PEOPLE, EVENTS = 6, 24  # of a story
SHORTEST, LONGEST = 2000, 4000  # words of a story
TRAIN, VALIDATION, TEST = 1500, 20, 100  # stories
LENGTH, PART = 4096, 512  # tokens
WINDOW = 128  # both sides together
VARIANTS = {"whole": (PART, LENGTH), "parts": (PART, PART)}  # what the rows of each epoch are of
DISTANCES = (64, 512, 1024, 2048)  # words from a mention to the one before it of the same person: up to these, or more

Clusters = Sequence[Sequence[Sequence[int]]]


def story(rng: random.Random, number: int) -> dict[str, Any]:
    """A record of the task's JSON lines."""
    names = [*rng.sample(NAMES["she"], PEOPLE // 2), *rng.sample(NAMES["he"], PEOPLE // 2)]
    jobs = dict(zip(names, rng.sample(JOBS, PEOPLE), strict=True))
    known: set[str] = set()
    scenes = []  # sentences that stay together, each of words and of mentions: (first, last, name)
    order = [*names, *rng.choices(names, k=EVENTS)]
    rng.shuffle(order)
    for name in order:
        scenes.append(list(_scene(rng, name, names, jobs, known)))
        known.add(name)
    meaningless = rng.randint(SHORTEST, LONGEST) - sum(len(words) for scene in scenes for words, _ in scene)
    gaps: list[list[list[str]]] = [[] for _ in range(len(scenes) + 1)]
    while meaningless > 0:
        words = [*rng.choices(WORDS, k=rng.randint(4, 12)), "."]
        rng.choice(gaps).append(words)
        meaningless -= len(words)

    sentences, clusters, count = [], defaultdict(list), 0
    for gap, scene in zip(gaps, [*scenes, []], strict=True):
        for words, mentions in [(words, []) for words in gap] + scene:
            sentences.append(words)
            for first, last, name in mentions:
                clusters[name].append([count + first, count + last])
            count += len(words)
    return {"id": str(number), "sentences": sentences, "clusters": [c for c in clusters.values() if len(c) > 1]}


def _scene(
    rng: random.Random, name: str, names: list[str], jobs: dict[str, str], known: set[str]
) -> Iterator[tuple[list[str], list[tuple[int, int, str]]]]:
    """A sentence about a person, and perhaps one more."""
    if name not in known:
        yield [name, "is", "a", jobs[name], "."], [(0, 0, name)]
        return
    others = [other for other in names if other in known and PRONOUNS[other] != PRONOUNS[name]]
    if others and rng.random() < 0.2:
        other = rng.choice(others)
        yield [name, "met", other, "."], [(0, 0, name), (2, 2, other)]
        name = rng.choice([name, other])
    elif rng.random() < 0.7:
        yield ["the", jobs[name], rng.choice(VERBS), "."], [(0, 1, name)]
    else:
        yield [name, rng.choice(VERBS), "."], [(0, 0, name)]
    if rng.random() < 0.4:
        yield [PRONOUNS[name], rng.choice(VERBS), "."], [(0, 0, name)]


def write_stories(folder: Path) -> None:
    """train.jsonl, validation.jsonl and test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": TRAIN, "validation": VALIDATION, "test": TEST}.items()):
        rng = random.Random(seed)
        lines = (json.dumps(story(rng, number)) + "\n" for number in range(count))
        if not (folder / f"{split}.jsonl").exists():
            (folder / f"{split}.jsonl").write_text("".join(lines))


def same_words(record: dict[str, Any], pronouns: bool) -> Clusters:
    """The true mentions, linked where their words are the same; pronouns with the mention before them, or not."""
    words = [word for sentence in record["sentences"] for word in sentence]
    found, before = defaultdict(list), ""
    for first, last in sorted(mention for cluster in record["clusters"] for mention in cluster):
        text = " ".join(words[first : last + 1])
        if text in NAMES:
            if not pronouns:
                continue
            text = before
        before = text
        found[text].append([first, last])
    return [cluster for cluster in found.values() if len(cluster) > 1]


def links(records: Iterable[dict[str, Any]], answers: Iterable[Clusters]) -> dict[str, float]:
    """How many of the mentions are in one cluster with the same person's mention before, by the words between."""
    found: dict[str, list[bool]] = defaultdict(list)
    labels = [*(f"<= {distance}" for distance in DISTANCES), f"> {DISTANCES[-1]}"]
    for record, answer in zip(records, answers, strict=True):
        of = {tuple(mention): number for number, cluster in enumerate(answer) for mention in cluster}
        for cluster in record["clusters"]:
            for before, mention in zip(cluster, cluster[1:], strict=False):
                both = of.get(tuple(before)), of.get(tuple(mention))
                label = labels[bisect.bisect_left(DISTANCES, mention[0] - before[0])]
                found[label].append(None not in both and both[0] == both[1])
    return {label: round(sum(found[label]) / len(found[label]), 4) for label in labels if found[label]}


def _as_tuples(clusters: Clusters) -> list[list[tuple[int, ...]]]:
    return [[tuple(mention) for mention in cluster] for cluster in clusters]


def scored(records: Sequence[dict[str, Any]], answers: Sequence[Clusters]) -> dict[str, Any]:
    """The mean of MUC, B³ and CEAF-φ4, and the links that were found."""
    documents = [
        (_as_tuples(record["clusters"]), _as_tuples(answer)) for record, answer in zip(records, answers, strict=True)
    ]
    return {"conll_f1": round(coreference_scores(documents)["conll_f1"], 4), "links": links(records, answers)}


def experiment(variant: str, runs: Path) -> TaskExperiment:
    """One of the VARIANTS."""
    lengths = VARIANTS[variant]
    return TaskExperiment(
        model=small_encoder(LENGTH, attention_window=WINDOW),
        task=Coreference(max_span_width=2, spans_per_token=0.4, hidden_size=64, dropout_rate=0.2),
        phases=tuple(
            TaskPhase(sequence_length=length, learning_rate=1e-3 / 2**i, batch_size=LENGTH // length, epochs=1)
            for i, length in enumerate(lengths)
        ),
        lengths=tuple(sorted({*lengths})),
        data=TaskDataConfig(path=str(runs / "stories"), cache_dir=str(runs / "cache")),
        optimizer=OptimizerConfig(b2=0.98, clip_norm=1.0, decay="linear", warmup_fraction=0.05),
        evaluations_per_epoch=5,
        keep_best=False,
        log_interval=50,
    )


def measure(variant: str, runs: Path) -> dict[str, Any]:
    """One of the VARIANTS, trained and tested."""

    def test(workdir: Path) -> dict[str, Any]:
        predictions = runs / f"{variant}.conll"
        evaluate(workdir, split="test", predictions=predictions)
        answers = [document.clusters for document in read_documents(predictions)]
        return scored(read(runs / "stories" / "test.jsonl"), answers)

    return trained_and_tested(variant, runs, experiment(variant, runs), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="directory for the stories and the runs")
    parser.add_argument("variants", nargs="*", default=[*VARIANTS])
    options = parser.parse_args()
    write_stories(options.runs / "stories")
    tests = read(options.runs / "stories" / "test.jsonl")
    by_words = {
        f"same words, pronouns {kind}": scored(tests, [same_words(record, pronouns) for record in tests])
        for kind, pronouns in (("left out", False), ("with the mention before", True))
    }
    results = {
        "test_stories": TEST,
        "by_words": by_words,
        "measured": [measure(variant, options.runs) for variant in options.variants],
    }
    write_results("stories", results)


if __name__ == "__main__":
    main()
