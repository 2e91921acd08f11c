"""Answers as spans of tokens, and the sentences of a text."""

import numpy as np

from longformer_jax.tasks.extraction import best_pair, sentence_around, sentence_spans


def test_a_span_stays_in_its_part() -> None:
    logits = np.full((1, 6, 2), -5.0, np.float32)
    logits[0, 1, 0], logits[0, 3, 1], logits[0, 2, 1] = 5, 5, 4
    allowed = np.ones((1, 6), bool)
    found = [
        best_pair(logits, allowed, candidates=4, longest=6, part=part) for part in (None, np.array([[0] * 3 + [1] * 3]))
    ]
    assert [(int(first[0]), int(last[0])) for first, last, _ in found] == [(1, 3), (1, 2)]


def test_sentences() -> None:
    text = "Mr. b said so. Then (at 5 p.m.) he left!  \n\nYes."
    found = [text[start:end] for start, end in sentence_spans(text)]
    assert "".join(found).replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
    assert [sentence.strip() for sentence in found] == ["Mr. b said so.", "Then (at 5 p.m.) he left!", "Yes."]


def test_a_sentence_around_dots() -> None:
    """The end of a span may be in the middle of them; a long row of them is read once."""
    text = "He left... She cried!! It rained."
    for span, expected in (
        ("left..", "He left..."),
        ("left...", "He left..."),
        ("cried!", "She cried!!"),
        ("It", "It rained."),
    ):
        start = text.index(span)
        begin, end = sentence_around(text, start, start + len(span))
        assert text[begin:end] == expected
    born = "He was born in St. Louis, by Dr. J. Smith. It rained."
    for span in ("St", "St.", "Dr", "J", "Smith"):
        start = born.index(span)
        assert born[slice(*sentence_around(born, start, start + len(span)))].endswith("Smith."), span
    dots = "." * 300_000
    assert sentence_spans(f"{dots}x") == [(0, len(dots) + 1)]
    assert sentence_around(f"{dots}x", len(dots), len(dots) + 1) == (0, len(dots) + 1)
