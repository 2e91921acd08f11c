"""The documents of benchmarks/two_facts.py: their label needs both facts, at the distance that they are said to be."""

import dataclasses
import itertools
import random
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import plot, two_facts
from longformer_jax.tasks import find_task

FACTS = {*two_facts.SEASONS, *two_facts.WEATHERS}


def facts(text: str) -> list[tuple[int, str]]:
    return [(i, word) for i, word in enumerate(text.split()) if word in FACTS]


@pytest.mark.parametrize("distance", [1, 16, 700])
def test_the_label_is_that_of_two_facts_at_a_distance(distance: int) -> None:
    for record in two_facts.documents(40, 0, distance):
        (first, one), (second, other) = facts(record["text"])
        season, weather = sorted((one, other), key=lambda word: word in two_facts.WEATHERS)
        together = two_facts.SEASONS.index(season) == two_facts.WEATHERS.index(weather)
        assert record["label"] == ("usual" if together else "odd")
        assert second - first == distance and first <= two_facts.MARGIN
        assert record["id"].split("-")[0] == str(distance)


def test_no_word_and_no_sum_over_words_tells_the_label() -> None:
    """Given either fact, both labels are equally likely; and no weights of words separate them."""
    rng = random.Random(0)
    seen = Counter()
    for _ in range(1000):
        for label in two_facts.LABELS:
            (first, one), (_, other) = facts(two_facts.document(rng, 20, label))
            seen[label, one, "first"] += 1
            seen[label, other, "second"] += 1
    for fact, place in itertools.product(FACTS, ("first", "second")):
        odd, usual = (seen[label, fact, place] for label in two_facts.LABELS)
        assert odd + usual > 400 and abs(odd - usual) < 5 * (odd + usual) ** 0.5
    # The four bags of facts, as rows of counts: those of each label have the same sum, so the same mean of any weights.
    bags = {(s, w): np.eye(4)[s] + np.eye(4)[2 + w] for s in range(2) for w in range(2)}
    np.testing.assert_array_equal(bags[0, 0] + bags[1, 1], bags[0, 1] + bags[1, 0])


def test_documents_are_the_same_each_time_and_differ_between_splits(tmp_path: Path) -> None:
    assert list(two_facts.documents(20, 1)) == list(two_facts.documents(20, 1)) != list(two_facts.documents(20, 2))
    far = [int(record["id"].split("-")[0]) for record in two_facts.documents(2000, 1)]
    assert min(far) == 1 and max(far) > 3000 and np.median(far) < 32


def test_accuracy_by_distance() -> None:
    records = [{"id": f"{d}-{i}", "label": "odd"} for d in (8, 16) for i in range(4)]
    predictions = [{"label": "odd" if i in (0, 1, 2, 4) else "usual"} for i in range(8)]
    assert two_facts.by_distance(predictions, records) == {8: 0.75, 16: 0.25}


def test_the_figure(tmp_path: Path) -> None:
    rows = [{"model": name, "accuracy": {"16": 1.0, "512": 0.5}} for name in ("longformer", "windows", "cut")]
    plot.draw({"cut": 512, "reach": 128, "measured": rows}, "forward", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_windows_alone_do_not_see_what_is_out_of_reach(tmp_path: Path) -> None:
    """The logits with <s> as global token depend on a far token, and those of windows alone do not."""
    near = jnp.full((1, 40), 7, jnp.int32)
    far = near.at[0, -1].set(8)
    differ = {}
    for name in ("longformer", "windows"):
        config = two_facts.experiment(name, tmp_path)
        small = dataclasses.replace(config.task_model, hidden_size=8, intermediate_size=8, attention_window=8)
        head = config.task.head(small)

        @jax.jit
        def logits(ids: jax.Array, config=config, small=small, head=head) -> jax.Array:
            inputs = config.task.inputs({"input_ids": ids}, small, 40)
            return head.apply(head.init(jax.random.key(0), **inputs), **inputs).logits

        differ[name] = bool((logits(near) != logits(far)).any())
    assert differ == {"longformer": True, "windows": False}
    assert type(config.task) is find_task(config.task.kind)  # as a run finds it again
