"""Scores of coreference, as the official scorer of CoNLL-2012 has them (Pradhan et al. 2014): MUC, B³, CEAF, BLANC.

Every score compares a key's clusters, sets of mentions, with a response's, and is added up over documents.
"""

import collections
import itertools
import math
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from longformer_jax.errors import InputError

Cluster = frozenset[Hashable]


class Ratio(NamedTuple):
    """Numerators and denominators of recall and precision; those of several documents are added."""

    recall_part: float
    recall_whole: float
    precision_part: float
    precision_whole: float

    def __add__(self, other: "Ratio") -> "Ratio":  # type: ignore[override]
        return Ratio(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def recall(self) -> float:
        return _quotient(self.recall_part, self.recall_whole)

    @property
    def precision(self) -> float:
        return _quotient(self.precision_part, self.precision_whole)

    @property
    def f1(self) -> float:
        """The harmonic mean; 0 where recall and precision are."""
        return _quotient(2 * self.recall * self.precision, self.recall + self.precision)


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def muc(key: list[Cluster], response: list[Cluster]) -> Ratio:
    """Links that are missing or too many (Vilain et al. 1995); entities with a single mention have none."""
    return Ratio(*_links(key, response), *_links(response, key))


def _links(clusters: list[Cluster], others: list[Cluster]) -> tuple[int, int]:
    """Of the least links that hold the clusters together, those that the others have; and how many there are."""
    owner = {mention: number for number, other in enumerate(others) for mention in other}
    found = sum(
        len(cluster) - len({owner[m] for m in cluster if m in owner}) - sum(m not in owner for m in cluster)
        for cluster in clusters
    )
    return found, sum(len(cluster) - 1 for cluster in clusters)


def b_cubed(key: list[Cluster], response: list[Cluster]) -> Ratio:
    """The mean over mentions of how much of their entity is right (Bagga and Baldwin 1998)."""
    squares = [(len(k & r) ** 2, len(k), len(r)) for k, r in _overlapping(key, response)]
    recall = math.fsum(square / size for square, size, _ in squares)
    precision = math.fsum(square / size for square, _, size in squares)
    return Ratio(recall, sum(map(len, key)), precision, sum(map(len, response)))


def ceaf_e(key: list[Cluster], response: list[Cluster]) -> Ratio:
    """The best assignment of entities, by φ4, twice the common mentions by the sum of both sizes (Luo 2005)."""
    similarity = _assigned(key, response, lambda k, r: 2 * len(k & r) / (len(k) + len(r)))
    return Ratio(similarity, len(key), similarity, len(response))


def ceaf_m(key: list[Cluster], response: list[Cluster]) -> Ratio:
    """The best assignment of entities, by φ3, the common mentions (Luo 2005)."""
    similarity = _assigned(key, response, lambda k, r: len(k & r))
    return Ratio(similarity, sum(map(len, key)), similarity, sum(map(len, response)))


def _assigned(key: list[Cluster], response: list[Cluster], similarity: Callable[[Cluster, Cluster], float]) -> float:
    if not key or not response:
        return 0.0
    table = np.zeros((len(key), len(response)))
    numbers = ({cluster: number for number, cluster in enumerate(clusters)} for clusters in (key, response))
    of_key, of_response = numbers
    for k, r in _overlapping(key, response):
        table[of_key[k], of_response[r]] = similarity(k, r)
    return float(table[linear_sum_assignment(table, maximize=True)].sum())


def _overlapping(key: list[Cluster], response: list[Cluster]) -> Iterable[tuple[Cluster, Cluster]]:
    """All pairs that have a mention in common, each once."""
    owner = {mention: cluster for cluster in response for mention in cluster}
    for k in key:
        for r in dict.fromkeys(owner[mention] for mention in k if mention in owner):
            yield k, r


def mentions(key: list[Cluster], response: list[Cluster]) -> Ratio:
    """Which mentions are found, whatever their entity."""
    wanted, found = (set(itertools.chain.from_iterable(clusters)) for clusters in (key, response))
    common = len(wanted & found)
    return Ratio(common, len(wanted), common, len(found))


class _Blanc(NamedTuple):
    """Links between mentions of one entity, and between mentions of different ones."""

    coreferent: Ratio
    other: Ratio

    def __add__(self, other: "_Blanc") -> "_Blanc":  # type: ignore[override]
        return _Blanc(self.coreferent + other.coreferent, self.other + other.other)

    @property
    def scores(self) -> tuple[float, float, float]:
        """Recall, precision and F1: the means of both kinds of links, or of the one that the key has.

        Where the key has neither, such as with a single mention, all are 0, as in the official scorer; in the paper it
        matters there whether the mentions are right.
        """
        kinds = [ratio for ratio in self if ratio.recall_whole]
        if not kinds:
            return 0.0, 0.0, 0.0
        columns = zip(*((ratio.recall, ratio.precision, ratio.f1) for ratio in kinds), strict=True)
        recall, precision, f1 = (sum(column) / len(kinds) for column in columns)
        return recall, precision, f1


def _blanc(key: list[Cluster], response: list[Cluster]) -> _Blanc:
    """BLANC of mentions that a system has found (Luo et al. 2014)."""
    of_key, of_response = (
        {mention: number for number, cluster in enumerate(clusters) for mention in cluster}
        for clusters in (key, response)
    )
    common = [(of_key[m], of_response[m]) for m in of_key if m in of_response]
    both, in_key, in_response = (
        _pairs(collections.Counter(values).values())
        for values in (common, [k for k, _ in common], [r for _, r in common])
    )
    # Of the common mentions' pairs, those that are in different entities on both sides.
    neither = math.comb(len(common), 2) - in_key - in_response + both
    links = [_pairs(map(len, clusters)) for clusters in (key, response)]
    others = [math.comb(len(owner), 2) - count for owner, count in zip((of_key, of_response), links, strict=True)]
    return _Blanc(Ratio(both, links[0], both, links[1]), Ratio(neither, others[0], neither, others[1]))


def _pairs(sizes: Iterable[int]) -> int:
    return sum(math.comb(size, 2) for size in sizes)


# By the names that they have in results; those of the first three make up the mean of CoNLL-2012.
_SCORES: dict[str, Callable[[list[Cluster], list[Cluster]], Ratio]] = {
    "muc": muc,
    "b_cubed": b_cubed,
    "ceaf_e": ceaf_e,
    "ceaf_m": ceaf_m,
    "mentions": mentions,
}
CONLL = ("muc", "b_cubed", "ceaf_e")


def coreference_scores(
    documents: Iterable[tuple[Iterable[Iterable[Hashable]], Iterable[Iterable[Hashable]]]],
) -> dict[str, float]:
    """All scores, over all documents together.

    Args:
      documents: for each the clusters of the key and of the response. Mentions are compared as they are. One that is
        named again, in the same cluster or in another one, counts once, where it is first; the official scorer counts
        it again in a key, and in a response if the key does not have it.

    Returns:
      For each score NAME_recall, NAME_precision and NAME_f1, and `conll_f1`, the mean of those of MUC, B³ and CEAF-φ4.

    Raises:
      InputError: there are no documents.
    """
    totals = dict.fromkeys(_SCORES, Ratio(0, 0, 0, 0))
    blanc, number = _Blanc(Ratio(0, 0, 0, 0), Ratio(0, 0, 0, 0)), 0
    for key, response in documents:
        number += 1
        sides = _distinct(key), _distinct(response)
        totals = {name: total + _SCORES[name](*sides) for name, total in totals.items()}
        blanc += _blanc(*sides)
    if not number:
        raise InputError("documents is empty; expected at least one")
    found = {name: (ratio.recall, ratio.precision, ratio.f1) for name, ratio in totals.items()}
    found["blanc"] = blanc.scores
    scores = {
        f"{name}_{part}": value
        for name, values in found.items()
        for part, value in zip(("recall", "precision", "f1"), values, strict=True)
    }
    return scores | {"conll_f1": sum(scores[f"{name}_f1"] for name in CONLL) / len(CONLL)}


def _distinct(clusters: Iterable[Iterable[Hashable]]) -> list[Cluster]:
    """The clusters as sets, without mentions that an earlier one has, and without those that are empty then."""
    seen: set[Hashable] = set()
    found = []
    for cluster in clusters:
        if distinct := frozenset(cluster) - seen:
            found.append(distinct)
            seen |= distinct
    return found
