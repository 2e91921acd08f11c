"""The questions of benchmarks/two_documents.py: their answer needs both facts, which lie in two documents."""

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import two_documents
from benchmarks.two_facts import SEASONS, WEATHERS
from configs.tasks import wikihop
from longformer_jax.tasks.base import Counts


@pytest.mark.parametrize("distance", [2, 16, 700])
def test_the_answer_is_that_of_facts_in_two_documents(distance: int) -> None:
    rng = random.Random(0)
    answers = Counter()
    for number in range(200):
        record = two_documents.question(rng, distance, number)
        words = [(i, word) for i, text in enumerate(record["supports"]) for word in text.split()]
        places = [i for i, (_, word) in enumerate(words) if word in (*SEASONS, *WEATHERS)]
        (one, first), (other, second) = (words[i] for i in places)
        season, weather = sorted((first, second), key=lambda word: word in WEATHERS)
        assert record["answer"] == two_documents.ANSWERS[season, weather]
        assert places[1] - places[0] == distance and one != other
        assert sorted(record["candidates"]) == sorted([*two_documents.ANSWERS.values(), *two_documents.NO_CITIES])
        answers[record["candidates"].index(record["answer"])] += 1
    assert min(answers[place] for place in range(8)) > 10  # no place is the right one


def test_one_fact_leaves_two_candidates() -> None:
    for fact in (*SEASONS, *WEATHERS):
        assert len({answer for facts, answer in two_documents.ANSWERS.items() if fact in facts}) == 2


def test_files_are_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_documents, "TRAIN", 8)
    monkeypatch.setattr(two_documents, "TEST", 2)
    two_documents.write_questions(tmp_path)
    task = two_documents.experiment("ablation", tmp_path).task
    train = list(task.read(tmp_path, "train", Counts()))
    far = list(task.read_own(tmp_path / "test.json"))
    assert len(train) == 8 and len(far) == 2 * len(two_documents.DISTANCES)
    for example in (*train, *far):
        assert example["answer"] in example["candidates"] and 2 <= len(example["supports"]) <= 8


def test_variants_are_those_of_the_papers_ablation(tmp_path: Path) -> None:
    """The same fields differ from the unchanged one as in the configuration for the real data."""

    def changes(experiments: dict) -> dict:
        def settings(experiment) -> dict:
            model, task = experiment.model, experiment.task
            return {
                "mode": model.attention_mode,
                "projections": model.global_projections,
                "global": task.global_attention,
                "shorter": experiment.phases[0].sequence_length,
            }

        base = settings(experiments["ablation"])
        return {
            name: {key for key, value in settings(experiment).items() if value != base[key]}
            for name, experiment in experiments.items()
        }

    ours = changes({name: two_documents.experiment(name, tmp_path) for name in two_documents.VARIANTS})
    papers = changes({name: wikihop.ablation(name) for name in wikihop.ABLATIONS})
    pairs = itertools.chain([("length_1536", "length_2048")], ((name, name) for name in ours if name != "length_1536"))
    assert all(ours[one] == papers[other] for one, other in pairs)
