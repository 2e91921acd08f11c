"""Answers that are texts: how TriviaQA and HotpotQA compare them, and where they stand in a document.

The rules are those of the official scorers: triviaqa_evaluation.py (Joshi et al. 2017) and hotpot_evaluate_v1.py (Yang
et al. 2018), which has SQuAD's. All scores are between 0 and 1.
"""

import collections
import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from longformer_jax.errors import InputError

_ARTICLES = ("a", "an", "the")
_ARTICLE = re.compile(rf"\b(?:{'|'.join(_ARTICLES)})\b")
_REMOVED = str.maketrans("", "", string.punctuation)
_QUOTES = "‘’´`"  # beside ASCII's punctuation
_SPACED = str.maketrans({mark: " " for mark in string.punctuation + _QUOTES})

# A run of letters and digits, or another single character; what is neither separates words.
_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_NO_WORDS = {*string.punctuation, *_QUOTES, *_ARTICLES}

# What HotpotQA answers when no span is the answer; part of such an answer is worth nothing.
_WHOLE = ("yes", "no", "noanswer")


def normalize_triviaqa(text: str) -> str:
    """Lower case without articles, and with spaces for punctuation, underscores and the quotes ‘’´`."""
    return _without_articles(text.lower().translate(_SPACED))


def normalize_hotpotqa(text: str) -> str:
    """Lower case without articles and ASCII punctuation, as in SQuAD; words that a hyphen joined become one."""
    return _without_articles(text.lower().translate(_REMOVED))


def _without_articles(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text).split())


class Score(NamedTuple):
    """How good an answer is."""

    exact: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def triviaqa_score(prediction: str, truths: Collection[str]) -> tuple[float, float]:
    """Exact match and F1, each the best over all answers that are right.

    Raises:
      InputError: there are none.
    """
    if not truths:
        raise InputError("truths has no answers; expected at least one")
    predicted = normalize_triviaqa(prediction)
    scores = [_compare(predicted, normalize_triviaqa(truth)) for truth in truths]
    return max(score.exact for score in scores), max(score.f1 for score in scores)


def hotpotqa_score(prediction: str, truth: str) -> Score:
    """Of an answer; one that is yes, no or noanswer, or should be, is right as a whole or not at all."""
    predicted, expected = normalize_hotpotqa(prediction), normalize_hotpotqa(truth)
    if predicted != expected and (predicted in _WHOLE or expected in _WHOLE):
        return Score(0.0, 0.0, 0.0)
    return _compare(predicted, expected)


def _compare(predicted: str, expected: str) -> Score:
    """Of normalized texts, by the words that they have in common; two empty ones match and have no word."""
    words = predicted.split(), expected.split()
    common = (collections.Counter(words[0]) & collections.Counter(words[1])).total()
    precision, recall = (common / len(found) if common else 0.0 for found in words)
    return Score(float(predicted == expected), precision, recall)


def support_score(predicted: Iterable[Sequence[Any]], expected: Iterable[Sequence[Any]]) -> Score:
    """Of supporting facts, (title, number of the sentence) each; how often one is named does not matter."""
    found, wanted = ({tuple(fact) for fact in facts} for facts in (predicted, expected))
    common = len(found & wanted)
    precision, recall = (common / len(facts) if facts else 0.0 for facts in (found, wanted))
    return Score(float(found == wanted), precision, recall)


def hotpotqa_metrics(predictions: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """HotpotQA's twelve metrics by their official names: em, f1, prec, recall, and these with sp_ and joint_ in front.

    Args:
      predictions: in the official format, {"answer": {id: text}, "sp": {id: [[title, number], …]}}. What is missing
        scores 0.
      examples: with "_id", "answer" and "supporting_facts", as distributed.

    Raises:
      InputError: there are no examples.
    """
    if not examples:
        raise InputError("examples is empty; expected at least one")
    sums: dict[str, float] = collections.defaultdict(float)
    missing = Score(0.0, 0.0, 0.0)
    for example in examples:
        name, answer, support = example["_id"], missing, missing
        if name in predictions["answer"]:
            answer = hotpotqa_score(predictions["answer"][name], example["answer"])
        if name in predictions["sp"]:
            support = support_score(predictions["sp"][name], example["supporting_facts"])
        joint = Score(*(a * s for a, s in zip(answer, support, strict=True)))
        for prefix, score in (("", answer), ("sp_", support), ("joint_", joint)):
            sums[f"{prefix}em"] += score.exact
            sums[f"{prefix}f1"] += score.f1
            sums[f"{prefix}prec"] += score.precision
            sums[f"{prefix}recall"] += score.recall
    return {name: value / len(examples) for name, value in sums.items()}


def find_answers(text: str, answers: Iterable[str]) -> list[tuple[int, int]]:
    """Where answers stand in a text: the start and end of each match, in characters, in ascending order.

    A match is whole words whose normalized form (TriviaQA's) is that of an answer, whatever their case and the
    punctuation and articles between them. It begins and ends with a word, so that it is as short as can be.

    Args:
      text: as it is written.
      answers: all that are right; those of which normalization leaves nothing are found nowhere.
    """
    by_first: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
    for answer in {normalize_triviaqa(answer) for answer in answers}:
        if words := tuple(_WORD.findall(_folded(answer))):
            by_first.setdefault(words[0], set()).add((answer, words))
    found = set()
    written = list(_words(text))
    for i, (word, start, _) in enumerate(written):
        for answer, words in by_first.get(word, ()):
            part = written[i : i + len(words)]
            if tuple(word for word, _, _ in part) != words:
                continue
            end = part[-1][2]
            # Words are cut more finely than the official scorer does; a mark belongs to the letter before it.
            is_whole = not (_is_mark(text, start - 1) or _is_mark(text, end))
            if is_whole and normalize_triviaqa(text[start:end]) == answer:
                found.add((start, end))
    return sorted(found)


def find_joined(text: str, answer: str) -> list[tuple[int, int]]:
    """As `find_answers`, but whole words between blanks, and alike by HotpotQA's rules: U.K. for UK, 1,000 for 1000."""
    wanted = normalize_hotpotqa(answer).split()
    words = [(match, normalize_hotpotqa(match[0])) for match in re.finditer(r"\S+", text)]
    words = [(match, normal) for match, normal in words if normal]
    found = []
    for i in range(len(words) - len(wanted) + 1) if wanted else ():
        part = words[i : i + len(wanted)]
        if [normal for _, normal in part] == wanted:
            start, end = part[0][0].start(), part[-1][0].end()
            written = text[start:end].rstrip(string.punctuation)
            end = start + len(written)
            found.append((end - len(written.lstrip(string.punctuation)), end))
    return found


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word in lower case, and where it stands in the text."""
    lowered = _folded(text.lower())
    # The only letter that becomes longer is İ.
    places = range(len(text)) if len(lowered) == len(text) else [i for i, c in enumerate(text) for _ in c.lower()]
    for match in _WORD.finditer(lowered):
        if match[0] not in _NO_WORDS:
            yield match[0], places[match.start()], places[match.end() - 1] + 1


def _folded(lowered: str) -> str:
    """With one small sigma: which one a capital becomes depends on the letters around it, of other words, too."""
    return lowered.replace("ς", "σ")


def _is_mark(text: str, place: int) -> bool:
    return 0 <= place < len(text) and unicodedata.category(text[place]).startswith("M")
