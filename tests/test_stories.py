"""The stories of benchmarks/stories.py: who the baker is stands once, anywhere before."""

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import stories
from longformer_jax.tasks.coreference import Coreference

STORIES = [stories.story(random.Random(seed), seed) for seed in range(20)]


def words_of(record: dict) -> list[str]:
    return [word for sentence in record["sentences"] for word in sentence]


def test_people_are_introduced_before_their_jobs_are_mentioned() -> None:
    people = {*stories.JOBS, *stories.PRONOUNS}
    for record in STORIES:
        words = words_of(record)
        assert stories.SHORTEST <= len(words) <= stories.LONGEST + 13
        mentioned = Counter()
        for cluster in record["clusters"]:
            texts = [" ".join(words[first : last + 1]) for first, last in cluster]
            name, job = texts[0], words[cluster[0][0] + 3]
            assert words[cluster[0][0] + 1 : cluster[0][0] + 3] == ["is", "a"]
            assert {*texts} <= {name, f"the {job}", stories.PRONOUNS[name]}
            mentioned.update(word for text in texts for word in text.split() if word in people)
            mentioned[job] += 1  # of the introduction
        # Whoever has no cluster is introduced and never seen again.
        alone = sum((Counter(word for word in words if word in people) - mentioned).values())
        assert alone == 2 * (stories.PEOPLE - len(record["clusters"]))


def test_a_pronoun_is_of_a_person_in_the_sentence_before() -> None:
    for record in STORIES:
        of = {first: name for name, cluster in enumerate(record["clusters"]) for first, _ in cluster}
        start, before = 0, set()
        for sentence in record["sentences"]:
            here = {of[place] for place in range(start, start + len(sentence)) if place in of}
            if sentence[0] in stories.NAMES:
                assert here <= before
            start, before = start + len(sentence), here


def test_strings_alone_do_not_tell_who_is_who() -> None:
    gold = [record["clusters"] for record in STORIES]
    assert stories.scored(STORIES, gold)["conll_f1"] == 1
    assert set(stories.links(STORIES, gold).values()) == {1.0}
    for pronouns in (False, True):
        found = [stories.same_words(record, pronouns) for record in STORIES]
        assert stories.scored(STORIES, found)["conll_f1"] < 0.8
        assert all(share < 0.7 for distance, share in stories.links(STORIES, found).items() if distance != "<= 64")


def test_links_are_those_of_neighbouring_mentions() -> None:
    record = {"clusters": [[[0, 0], [10, 11], [700, 700]], [[5, 5], [900, 900]]]}
    answer = [[[0, 0], [10, 11]], [[700, 700], [5, 5]], [[900, 901]]]
    assert stories.links([record], [answer]) == {"<= 64": 1.0, "<= 1024": 0.0}


def test_files_are_those_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "TRAIN", 3)
    monkeypatch.setattr(stories, "TEST", 2)
    stories.write_stories(tmp_path)
    assert len(list(Coreference().read(tmp_path, "train", Counter()))) == 3
    for example, record in zip(
        Coreference().read(tmp_path, "test", Counter()), stories.read(tmp_path / "test.jsonl"), strict=True
    ):
        assert (example["words"], example["clusters"]) == (words_of(record), record["clusters"])
