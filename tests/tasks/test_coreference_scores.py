"""Scores of coreference against the official scorer's published cases, and files in and out."""

import itertools
import json
import random
from pathlib import Path
from urllib.parse import unquote

import pytest

from longformer_jax import InputError
from longformer_jax.tasks.conll import Document, Line, chain_columns, read_documents, without_crossing
from longformer_jax.tasks.coreference_scores import coreference_scores
from tests.tasks.sets import SHARED

CASES = SHARED.parent / "coref"
NAMES = {"muc": "muc", "bcub": "b_cubed", "ceafe": "ceaf_e"}

# What the official scorer's tests expect of the same cases beside that: CEAF-m, if any, and BLANC.
MORE = {
    "A1": ((1, 1, 1), (1, 1, 1)),
    "A2": ((0.5, 1, 0.66667), (0.21591, 1, 0.35385)),
    "A3": ((1, 0.66667, 0.8), (1, 0.42593, 0.59717)),
    "A4": ((0.66667, 0.57143, 0.61538), (0.35227, 0.27206, 0.30357)),
    "A5": ((0.66667, 0.5, 0.57143), (0.35227, 0.19048, 0.24716)),
    "A6": ((0.66667, 0.5, 0.57143), (0.35227, 0.20870, 0.25817)),
    "A7": ((0.66667, 0.57143, 0.61538), (0.35227, 0.27206, 0.30357)),
    "A8": ((0.66667, 0.57143, 0.61538), (0.35227, 0.27206, 0.30357)),
    "A10": (None, (0.5, 0.36667, 0.42308)),
    "A11": (None, (0.5, 0.13333, 0.21053)),
    "A12": (None, (0.22727, 0.11905, 0.15625)),
    "A13": (None, (0.125, 0.02381, 0.04)),
    "B1": (None, (7 / 24, 7 / 24, 7 / 24)),
}

# By hand, of the entities {12, 47} and {31, 63, 66}, and the response {31, 47, 58} and {63, 66}: one of three links is
# right, on both sides; 47 with its like is a half of the first entity, 31 a third of the second, 63 and 66 two thirds;
# aligned, 47 is 2 * 1 of 2 + 3 mentions, 63 and 66 are 2 * 2 of 3 + 2.
B1 = {
    "muc": (1 / 3, 1 / 3, 1 / 3),
    "b_cubed": (13 / 30, 8 / 15, 208 / 435),
    "ceaf_e": (0.6, 0.6, 0.6),
}

# Of Luo (2005): entities of 5, 2 and 5 mentions, and four responses to them.
KEY = ["abcde", "fg", "hijkl"]


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases of the official scorer")
def test_the_published_cases() -> None:
    for name, case in json.loads((CASES / "expected.json").read_text()).items():
        sides = [list(read_documents(CASES / case[side])) for side in ("key", "response")]
        found = coreference_scores((k.clusters, r.clusters) for k, r in zip(*sides, strict=True))
        wanted = {NAMES[metric]: values for metric, values in case["recall_precision_f1"].items()}
        if name == "B1":
            wanted = B1  # its own are placeholders that the scorer's test passes over
        wanted["ceaf_m"], wanted["blanc"] = MORE[name]
        for metric, expected in wanted.items():
            values = [found[f"{metric}_{part}"] for part in ("recall", "precision", "f1")]
            assert expected is None or values == pytest.approx(expected, abs=5e-5), (name, metric)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # Worked out in the papers: Luo (2005), table 1, and Bagga and Baldwin (1998), figure 4.
        (["abcde", "fghijkl"], {"muc_f1": 18 / 19, "b_cubed_f1": 0.8648, "ceaf_m_f1": 10 / 12, "ceaf_e_f1": 0.7333}),
        (["abcdehijkl", "fg"], {"muc_f1": 18 / 19, "b_cubed_f1": 0.7368, "ceaf_m_f1": 7 / 12, "ceaf_e_f1": 0.6667}),
        (["abcdefghijkl"], {"muc_f1": 18 / 20, "b_cubed_f1": 0.5455, "ceaf_m_f1": 5 / 12, "ceaf_e_f1": 0.2941}),
        ([*"abcdefghijkl"], {"muc_f1": 0.0, "b_cubed_f1": 0.4, "ceaf_m_f1": 3 / 12}),
    ],
)
def test_the_papers_examples(response: list[str], expected: dict[str, float]) -> None:
    found = coreference_scores([(KEY, response)])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    assert found["mentions_f1"] == 1.0


def brute_force(key: list[str], response: list[str]) -> dict[str, float]:
    """B³ mention by mention, BLANC link by link, CEAF over all assignments."""

    def f1(recall: float, precision: float) -> float:
        return 2 * recall * precision / (recall + precision) if recall + precision else 0.0

    def links(clusters: list[str]) -> tuple[set, set]:
        same = {frozenset(pair) for cluster in clusters for pair in itertools.combinations(cluster, 2)}
        return same, {frozenset(pair) for pair in itertools.combinations("".join(clusters), 2)} - same

    def cubed(one: list[str], other: list[str]) -> float:
        values = [next((len(set(c) & set(d)) for d in other if m in d), 0) / len(c) for c in one for m in c]
        return sum(values) / len(values)

    few, many = sorted((key, response), key=len)
    best = {}
    for name, phi in (
        ("ceaf_m", lambda a, b: len(set(a) & set(b))),
        ("ceaf_e", lambda a, b: 2 * len(set(a) & set(b)) / (len(a) + len(b))),
    ):
        best[name] = max(sum(map(phi, few, chosen)) for chosen in itertools.permutations(many, len(few)))
    kinds = []
    for wanted, found in zip(links(key), links(response), strict=True):
        if wanted:
            common = len(wanted & found)
            kinds.append(f1(common / len(wanted) if wanted else 0.0, common / len(found) if found else 0.0))
    sizes = [len("".join(side)) for side in (key, response)]
    return {
        "b_cubed_f1": f1(cubed(key, response), cubed(response, key)),
        "ceaf_m_f1": f1(best["ceaf_m"] / sizes[0], best["ceaf_m"] / sizes[1]),
        "ceaf_e_f1": f1(best["ceaf_e"] / len(key), best["ceaf_e"] / len(response)),
        "blanc_f1": sum(kinds) / len(kinds) if kinds else 0.0,
    }


# Columns of key and response, and what the official scorer, version 8.01, prints: F1 in percent, to two decimals.
OFFICIAL = ("muc", "b_cubed", "ceaf_m", "ceaf_e", "blanc", "mentions")
COLUMNS = [
    # A word's beginnings are before its ends: (0, 2) and (1, 1), not (0, 1) and (1, 2).
    ("(0 0)|(0 0)", "(0 (0) 0)", (100.0, 100.0, 100.0, 100.0, 100.0, 100.0)),
    # Of two entities with one mention, the one that begins first in the column keeps it.
    ("(0 0) (0) (1) (1)", "(5|(3 5)|3) (3) (5) -", (0.0, 48.0, 57.14, 58.33, 16.66, 85.71)),
    ("(0|(2) 0) (2) (1) (1)", "(5|(3 5)|3) (3) (5) -", (0.0, 50.0, 50.0, 53.33, 20.0, 74.99)),
    ("(1|(0 (1)|0) 1)|(0)", "(2|(2 (2)|2)|(0 0)|2)", (50.0, 50.0, 50.0, 40.0, 20.0, 75.0)),
]


@pytest.mark.parametrize(("key", "response", "expected"), COLUMNS)
def test_as_the_official_scorer(tmp_path: Path, key: str, response: str, expected: tuple[float, ...]) -> None:
    clusters = []
    for columns in (key, response):
        lines = "".join(f"x\t0\tw\t{column}\n" for column in columns.split())
        document = next(read_documents(written(tmp_path / "x.conll", f"#begin document (x);\n{lines}#end document\n")))
        clusters.append(document.clusters)
    found = coreference_scores([(clusters[0], clusters[1])])
    for name, value in zip(OFFICIAL, expected, strict=True):
        assert 100 * found[f"{name}_f1"] == pytest.approx(value, abs=0.011), name


def test_against_brute_force() -> None:
    rng = random.Random(0)

    def clusters() -> list[str]:
        letters = rng.sample("abcdefgh", rng.randint(1, 8))
        numbers = [rng.randrange(4) for _ in letters]
        return ["".join(m for m, n in zip(letters, numbers, strict=True) if n == i) for i in sorted(set(numbers))]

    for _ in range(200):
        key, response = clusters(), clusters()
        found = coreference_scores([(key, response)])
        for name, value in brute_force(key, response).items():
            assert found[name] == pytest.approx(value), (key, response, name)
        assert coreference_scores([(key, key)])["b_cubed_f1"] == coreference_scores([(key, key)])["ceaf_e_f1"] == 1.0


@pytest.mark.parametrize(
    ("key", "response", "f1"),
    [
        (["a"], ["a"], 0.0),  # no links
        (["a"], ["ab"], 0.0),
        ([*"abc"], ["ab", "c"], 0.8),  # two of three links between entities
        (["abc"], ["ab", "c"], 0.5),  # one of three links within one
    ],
)
def test_blanc_of_one_kind_of_links(key: list[str], response: list[str], f1: float) -> None:
    """As ComputeBLANCFromCounts of the official scorer: only the kinds that the key has count."""
    assert coreference_scores([(key, response)])["blanc_f1"] == pytest.approx(f1)


def test_documents_are_added_up() -> None:
    found = coreference_scores([(["ab"], ["ab"]), (["ab", "cd"], [])])
    assert (found["muc_recall"], found["muc_precision"]) == (1 / 3, 1.0)
    assert (found["ceaf_e_recall"], found["mentions_recall"]) == (1 / 3, 1 / 3)
    assert found["conll_f1"] == pytest.approx(0.5)
    assert set(coreference_scores([([], [])]).values()) == set(coreference_scores([([], ["ab"])]).values()) == {0.0}
    empty = coreference_scores([(["ab"], ["ab"]), ([], ["cd"])])  # a document in which nothing is to be found
    for name in ("muc", "b_cubed", "ceaf_e", "mentions"):
        assert (empty[f"{name}_recall"], empty[f"{name}_precision"]) == (1.0, 0.5), name


def test_nothing_to_score_and_mentions_named_twice() -> None:
    with pytest.raises(InputError, match="^documents is empty; expected at least one"):
        coreference_scores([])
    assert coreference_scores([(["ab"], ["aba", "ac", "b"])]) == coreference_scores([(["ab"], ["ab", "c"])])


# ---- Files -----------------------------------------------------------------------------------------------------------

TEXT = """#begin document (bc/cctv/00/cctv_0000); part 000
bc/cctv/00/cctv_0000   0   0     Anna    NNP   (TOP(S*   -   -   -   Speaker#1   *   (0|(1)
bc/cctv/00/cctv_0000   0   1     's       POS        *   -   -   -   Speaker#1   *       0)
bc/cctv/00/cctv_0000   0   2     dog      NN         *   -   -   -   Speaker#1   *   (2|(3

bc/cctv/00/cctv_0000   0   0     and      CC         *   -   -   -   -           *      2)
bc/cctv/00/cctv_0000   0   1     it       PRP        *   -   -   -   -           *   3)|(0)

#end document
#begin document (bc/cctv/00/cctv_0000); part 001
bc/cctv/00/cctv_0000   1   0     Empty    JJ         *   -   -   -   -           *   -

#end document
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_files_in_and_out(tmp_path: Path) -> None:
    first, second = documents = list(read_documents(written(tmp_path / "x.conll", TEXT)))
    assert "".join(map(str, documents)) == TEXT
    assert (first.name, first.part, second.part) == ("bc/cctv/00/cctv_0000", "000", "001")
    assert first.words == ["Anna", "'s", "dog", "and", "it"] and first.sentences == [0, 0, 0, 1, 1]
    assert first.speakers == ["Speaker#1"] * 3 + ["-"] * 2
    # 2 and 3 cross; the mention of 1 lies in one of 0.
    assert first.clusters == [[(0, 0)], [(0, 1), (4, 4)], [(2, 3)], [(2, 4)]]
    assert second.clusters == []
    other = first.with_clusters([[(0, 0), (2, 4)], [(2, 2), (3, 4)]])
    assert [line.chains for line in other.lines if isinstance(line, Line)] == ["(0)", "-", "(0|(1)", "(1", "1)|0)"]
    again = next(read_documents(written(tmp_path / "y.conll", str(other))))
    assert again.clusters == [[(0, 0), (2, 4)], [(2, 2), (3, 4)]]
    same = [line if isinstance(line, str) else line._replace(chains="") for line in again.lines]
    assert same == [line if isinstance(line, str) else line._replace(chains="") for line in first.lines]


@pytest.mark.parametrize(
    "text",
    [
        "#begin document (x); \nx 0 0 a (1)\n#end document\n",
        "#begin document (x) part 001\nx 0 0 a (1)\n\n#end document (x)\n",
        "#begin document (x); part 000\r\nx 0 0 a (1)\r\n\r\nx 0 0 b -\t\r\n#end document\r\n",
        "#begin document (a(b)); part 001\nx 0 0 a (1)\n#end document",
        "#begin document (x); part 000\n#end document\n",
        "\n#begin document (x); part 000\nx 0 0 a (1)\n \t\n#end document\n\n#begin document (y)\n#end document\n\n",
    ],
)
def test_lines_stay_as_they_stand(tmp_path: Path, text: str) -> None:
    """The official scorer finds a document by all that is behind "#begin document"."""
    documents = list(read_documents(written(tmp_path / "x.conll", text)))
    assert "".join(map(str, documents)) == text
    found = "".join(str(document.with_clusters([[(0, 0)]] if document.words else [])) for document in documents)
    assert found == text.replace("(1)", "(0)")


def test_names_and_parts(tmp_path: Path) -> None:
    names = ["(a(b)); part 001", "(x) part 002", "(x); ", "(x)", "( y z );part 3"]
    text = "".join(f"#begin document {name}\n#end document\n" for name in names)
    found = [(d.name, d.part) for d in read_documents(written(tmp_path / "x.conll", text))]
    assert found == [("a(b)", "001"), ("x", "002"), ("x", ""), ("x", ""), (" y z ", "3")]


def test_columns_end_at_blanks_alone(tmp_path: Path) -> None:
    """Not at other spaces, which may be part of a word; a byte order mark before all is no part of the text."""
    words = ["10\xa0000", "\u3000", "a\u2028b", "c\x85"]
    lines = "".join(f"  x 0\t{i} {word} X * - - - Ann\xa0B * (1) \n" for i, word in enumerate(words))
    text = f"#begin document (x); part 000\n{lines}#end document\n"
    (document,) = read_documents(written(tmp_path / "x.conll", "\ufeff" + text))
    assert (document.words, document.speakers) == (words, ["Ann\xa0B"] * 4)
    assert document.clusters == [[(i, i) for i in range(4)]] and str(document) == text


def test_names_of_documents_in_five_columns_stay_distinct(tmp_path: Path) -> None:
    names = ["a b", "a_b", "a%20b", "a(b", "a\nb", "(a)", "#end document", "\u0416 \xa0"]
    text = "".join(str(Document.of_words(name, ["w", "v"], [0, 1])) for name in names)
    found = list(read_documents(written(tmp_path / "x.conll", text)))
    assert [document.words for document in found] == [["w", "v"]] * len(names)
    assert [unquote(document.name) for document in found] == names
    assert len({document.name for document in found}) == len(names)


def test_a_long_damaged_column_is_refused_at_once(tmp_path: Path) -> None:
    for column in ("(10)|" * 10_000 + "x", "(" + "1" * 10_000 + "x", "1" * 10_000, "(\u0663)"):
        text = f"#begin document (x);\nx 0 0 a {column}\n#end document\n"
        with pytest.raises(InputError, match=r"^'.*': word 0 of 'x' has coreference .{1,90}; expected -, "):
            list(read_documents(written(tmp_path / "x.conll", text)))
    number = "1" * 10_000
    text = f"#begin document (x);\nx 0 0 a {f'({number})|' * 3}\n#end document\n"
    assert next(read_documents(written(tmp_path / "x.conll", text))).clusters == [[(0, 0)] * 3]


def test_random_clusters_survive(tmp_path: Path) -> None:
    """Nested, crossing and repeated ends, of the same entity and of others."""
    rng = random.Random(0)
    document = Document.of_words("wb/x", ["a"] * 12, [0] * 12)
    for _ in range(100):
        spans = rng.sample([(a, b) for a in range(12) for b in range(a, 12)], 8)
        clusters = [sorted(spans[i::3]) for i in range(3)]
        clusters = without_crossing(clusters)
        found = next(read_documents(written(tmp_path / "y", str(document.with_clusters(clusters))))).clusters
        assert sorted(found) == sorted(clusters)


def test_mentions_of_one_entity_do_not_cross() -> None:
    crossing = [[(0, 2), (1, 3), (4, 4)], [(2, 3), (0, 2)], [(1, 5), (3, 3)]]
    with pytest.raises(InputError, match=r"^clusters\[0\] has \(0, 2\) and \(1, 3\), which cross; expected those of"):
        chain_columns(6, crossing)
    assert without_crossing(crossing) == [[(0, 2), (4, 4)], [(0, 2)], [(1, 5), (3, 3)]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'.*' is empty; expected documents in the CoNLL-2012 format"),
        ("x 0 0 a -\n", "line 1 of '.*' is 'x 0 0 a -'; expected #begin document"),
        ("#begin document (x); part 000\na\n", "line 2 of '.*' has one column; expected several"),
        ("#begin document (x); part 000\nx 0 0 a -\n", "'.*' ends within document 'x'; expected #end document"),
        ("#begin document (x); part 000\n#begin document (y); part 000\n", "line 2 of '.*' is '#begin document "),
        ("#end document\n", "line 1 of '.*' ends a document; expected one that has begun"),
        ("#begin document (x);\nx 0 0 a 1\n#end document\n", "'.*': word 0 of 'x' has coreference '1'; expected -, "),
        ("#begin document (x);\nx 0 0 a 1)\n#end document\n", "'.*': word 0 of 'x' ends a mention of 1; expected one"),
        ("#begin document (x);\nx 0 0 a (1\n#end document\n", "'.*': 'x' has a mention of 1 that does not end; expec"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        list(read_documents(written(tmp_path / "x.conll", text)))


def test_mentions_of_words_that_are_not_there() -> None:
    with pytest.raises(InputError, match=r"^clusters\[0\] has the mention \(0, 9\); expected words 0 to 4"):
        chain_columns(5, [[(0, 9)]])
