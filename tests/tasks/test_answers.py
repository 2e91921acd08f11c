"""Normalization and scores of answers against the official scorers', which tests/golden/make_answers.py has asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from longformer_jax import InputError
from longformer_jax.tasks.answers import (
    find_answers,
    hotpotqa_metrics,
    hotpotqa_score,
    normalize_hotpotqa,
    normalize_triviaqa,
    support_score,
    triviaqa_score,
)
from tests.tasks.sets import SHARED

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "answers.json").read_text())


def test_normalization_and_scores_of_pairs() -> None:
    assert len(GOLDEN["pairs"]) > 1000
    for prediction, truth, triviaqa, hotpotqa, *scores in GOLDEN["pairs"]:
        assert [normalize_triviaqa(prediction), normalize_hotpotqa(prediction)] == [triviaqa, hotpotqa], prediction
        exact, f1, precision, recall = (score := hotpotqa_score(prediction, truth)).exact, score.f1, *score[1:]
        found = [*triviaqa_score(prediction, [truth]), exact, f1, precision, recall]
        assert found == pytest.approx(scores, abs=1e-12), (prediction, truth)


def test_the_best_of_several_answers() -> None:
    case, sums = GOLDEN["triviaqa"], [0.0, 0.0]
    for name, prediction in case["predictions"].items():
        truth = case["truths"][name]
        scores = triviaqa_score(prediction, truth["NormalizedAliases"] + truth.get("HumanAnswers", []))
        sums = [a + b for a, b in zip(sums, scores, strict=True)]
    expected = [case["metrics"][name] for name in ("exact_match", "f1")]
    assert [100 * total / len(case["truths"]) for total in sums] == pytest.approx(expected)
    with pytest.raises(InputError, match="^truths has no answers; expected at least one$"):
        triviaqa_score("York", [])


def test_metrics_of_hotpotqa() -> None:
    case = GOLDEN["hotpotqa"]
    assert hotpotqa_metrics(case["predictions"], case["examples"]) == pytest.approx(case["metrics"], abs=1e-12)
    assert support_score([], []) == (1.0, 0.0, 0.0)
    with pytest.raises(InputError, match="^examples is empty; expected at least one$"):
        hotpotqa_metrics(case["predictions"], [])


def test_hotpotqa_gold_against_gold() -> None:
    sets: list[list[dict[str, Any]]] = [GOLDEN["hotpotqa"]["examples"]]
    if (file := SHARED / "hotpotqa_50_examples.json").is_file():
        sets.append(json.loads(file.read_text()))
        assert len(sets[-1]) == 50
    for examples in sets:
        words = [example for example in examples if normalize_hotpotqa(example["answer"])]  # without any, F1 is 0
        gold = {
            "answer": {example["_id"]: example["answer"] for example in words},
            "sp": {example["_id"]: example["supporting_facts"] for example in words},
        }
        assert set(hotpotqa_metrics(gold, words).values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("Born in YORK, not in New York or Yorkshire.", ["York"], ["YORK", "York"]),
        ("New York. York!", ["york", "new york"], ["New York", "York", "York"]),
        ("He was Campbell-Bannerman's heir.", ["Campbell Bannerman", "Henry"], ["Campbell-Bannerman"]),
        ("“The Beatles”, (the) Beatles_!", ["The Beatles"], ["Beatles", "Beatles"]),
        ("University of the Oxford", ["university of oxford"], ["University of the Oxford"]),
        ("In the 30s, 30 men. 1930s", ["30", "30s"], ["30s", "30"]),
        ("İstanbul; Istanbul; i̇stanbul x İ", ["İSTANBUL", "x"], ["İstanbul", "i̇stanbul", "x"]),
        ("ΟΔΟΣ οδος", ["Οδος"], ["ΟΔΟΣ", "οδος"]),
        ("ΠΑΣ.Ο won, πας, πασ", ["ΠΑΣ"], ["ΠΑΣ", "πας"]),  # in "ΠΑΣ.Ο" the sigma is not the last one
        ("café cafe", ["cafe"], ["cafe"]),  # the first has a combining accent
        ("it cost £10, or £ 10", ["£10"], ["£10"]),
        ("東京 東京都", ["東京"], ["東京"]),
        ("rock ‘n’ roll, Rock-'n'-Roll", ["rock n roll"], ["rock ‘n’ roll", "Rock-'n'-Roll"]),
        ("The a an.", ["the", "!", ""], []),
        ("", ["x"], []),
        ("nothing here", ["something"], []),
    ],
)
def test_where_answers_stand(text: str, answers: list[str], found: list[str]) -> None:
    places = find_answers(text, answers)
    assert [text[start:end] for start, end in places] == found
    for start, end in places:
        assert triviaqa_score(text[start:end], answers) == (1.0, 1.0)


def test_no_match_is_missed() -> None:
    """Every run of words whose normalized form is that of an answer holds a match, looked for one by one."""
    for prediction, truth, normalized, *_ in GOLDEN["pairs"][-250:]:
        text = f"x {prediction} {truth} y"
        found = {normalize_triviaqa(text[start:end]) for start, end in find_answers(text, [truth, prediction])}
        for answer in (normalized, normalize_triviaqa(truth)):
            assert not any(c.isalnum() for c in answer) or answer in found, (text, answer)
