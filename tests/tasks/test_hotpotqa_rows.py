"""Rows of HotpotQA: what is read, where answers stand in it, and how a page shows that."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.data.packing import Packer
from longformer_jax.tasks.features import make_features
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks.sets import roberta_tokenizer
from tests.tasks.test_hotpotqa import RECORDS, TASK, examples, features


def test_rows(tmp_path: Path) -> None:
    found = examples(RECORDS, tmp_path)
    made = features(found)
    assert made.counts == {}
    tokens = tiny_tokenizer()
    tokens = type(tokens).from_str(tokens.to_str())
    tokens.add_special_tokens([*TASK.added_tokens])
    row = made.row(0)
    assert tokens.decode([*row["input_ids"]], skip_special_tokens=False) == (
        "<s>[q] Who dug the harbour of Vellmar?[/q]<t> Vellmar</t> Vellmar is a town.[s] Its harbour was dug by Tolk, "
        "<t> they say.[s]<t> Jam</t> Jam is boiled.[s]<t> Anna Tolk</t> Anna Tolk dug.[s] [s] Über 9 feet.[s]</s>"
    )
    mark = {token: tokens.token_to_id(token) for token in TASK.added_tokens}
    assert {*row["input_ids"][row["titles"]]} == {mark["<t>"]} and {*row["input_ids"][row["sentences"]]} == {
        mark["[s]"]
    }
    assert [*row["input_ids"]].count(mark["<t>"]) == 3  # "<t>" in a text is three characters
    assert row["input_ids"][row["question"][0] - 1] == mark["[/q]"]
    assert row["is_fact"].tolist() == [0, 1, 0, 1, 0, 0] and row["is_source"].tolist() == [1, 0, 1]
    assert row["facts"].reshape(-1, 2).tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2]]
    # The answer is in a title and in a supporting sentence, of which the latter counts.
    (first,), (last,), text = row["firsts"], row["lasts"], row["text"].tobytes().decode()
    assert text[row["begins"][first] : row["ends"][last]].strip() == "Anna Tolk"
    assert row["sentences"][2] < first <= last < row["sentences"][3]
    assert (row["answer_type"][0], made.row(1)["answer_type"][0]) == (0, 2)
    assert made.row(1)["firsts"].tolist() == []
    sentences = [text[row["begins"][i] : row["ends"][i]] for i in row["sentences"]]
    assert sentences == [sentence for _, sentences in RECORDS[0]["context"] for sentence in sentences]


def test_titles_that_are_made_up_answer_nothing() -> None:
    example = TASK.from_question("Who?", "Jam is boiled. It is.\n\n \n\nAnna dug.", "file")
    assert example["sentences"] == [["Jam is boiled.", " It is."], ["Anna dug."]]
    row = features([example]).row(0)
    text = row["text"].tobytes().decode()
    read = "".join(text[row["begins"][i] : row["ends"][i]] for i in np.flatnonzero(row["part"] >= 0))
    assert "".join(read.split()) == "Jamisboiled.Itis.Annadug."  # no titles, and no tokens of blanks alone
    assert [[example["text"][a:b] for a, b in spans] for spans in example["places"]] == example["sentences"]
    with pytest.raises(InputError, match="^file: text is empty; expected a document"):
        TASK.from_question("Who?", " \n", "file")
    with pytest.raises(InputError, match="^file: question is empty; expected a question"):
        TASK.from_question(" ", "Jam.", "file")


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    found = examples(RECORDS, tmp_path)
    few = features(found, dataclasses.replace(TASK, max_sentences=3, max_question_tokens=4))
    assert few.counts == {
        "with a question cut at 4 tokens": 2,
        "with sentences for which there is no room": 1,
        "with supporting facts that are not in what is read": 1,
    }
    assert features(found, dataclasses.replace(TASK, max_paragraphs=1)).row(0)["is_source"].tolist() == [1]
    short = features(found, length=96)
    assert max(short.lengths) <= 96 and short.counts["with sentences for which there is no room"] == 1
    elsewhere = features(examples([{**RECORDS[0], "answer": "nowhere"}], tmp_path))
    assert elsewhere.counts == {"with an answer that is not in what is read": 1}
    other_case = features(examples([{**RECORDS[0], "answer": "anna TOLK!"}], tmp_path))
    assert other_case.counts == {} and len(other_case.row(0)["firsts"]) == 1
    with pytest.raises(InputError, match="^sequence_length is 16; expected at least 48, room for a question of 40 tok"):
        features(found, length=16)


def test_where_an_answer_stands(tmp_path: Path) -> None:
    """Every word of a text as it was written; of a file, in a title, too."""
    text = "\n\nJam is  boiled. It\nis! \n\n \n\nAnna dug (twice)."
    example = TASK.from_question("Who?", text, "file")
    (file,) = examples(RECORDS[:1], tmp_path)
    for source in (example, file):
        made = features([source])
        row = made.row(0)
        shown: set[int] = set()
        titles: set[str] = set()
        for token in np.flatnonzero(row["part"] >= 0):
            output = {"answer_type": np.array([1, 0, 0]), "first": token, "last": token, "score": 1.0}
            output |= {"paragraphs": np.zeros(4), "sentences": np.full(8, -1.0)}
            prediction = TASK.decode(made.examples[0], [row], [output])
            page = TASK.marked(source, prediction)
            (begin, end, _), *sentences = page.spans
            assert page.text[begin:end] == prediction["answer"] and len(sentences) == 2
            shown |= {*range(begin, end)}
            title, number = prediction["place"]
            sentence = prediction["sentence"]
            if number is None:
                assert sentence == title and page.text[: page.text.index("\n", begin)].endswith(title)
                titles.add(title)
            else:
                assert sentence == source["sentences"][source["titles"].index(title)][number].strip()
                if source is file:
                    assert sentence[prediction["start"] : prediction["end"]] == prediction["answer"]
                if source is example:
                    assert (begin, end) == (prediction["start"], prediction["end"])
        assert {place for place, c in enumerate(page.text) if not c.isspace()} == shown
        assert titles == (set() if source is example else {*source["titles"]})


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n"])
def test_paragraphs_have_blank_lines_between_them(blank: str) -> None:
    text = f"One. Two.{blank}Three.\nFour."
    example = TASK.from_question("Who?", text, "file")
    assert [[s.strip() for s in sentences] for sentences in example["sentences"]] == [
        ["One.", "Two."],
        ["Three.", "Four."],
    ]
    places = [[text[a:b].replace("\n", " ") for a, b in spans] for spans in example["places"]]
    assert places == example["sentences"]


def test_lines_may_be_wrapped() -> None:
    text = "The harbour was dug by Anna\nTolk in 1604. It is\nold.\n\nAnother\nparagraph."
    sentences = TASK.from_question("Who?", text, "file")["sentences"]
    assert sentences == [["The harbour was dug by Anna Tolk in 1604.", " It is old."], ["Another paragraph."]]


@pytest.mark.parametrize(
    ("answer", "supporting", "other", "expected"),
    [
        ("the Jam", "Led by THE jam in May.", "Here: the Jam.", [("jam", "s")]),  # in another case, but in the fact
        ("the Jam", "Led by it.", "Here: the Jam. Or THE JAM?", [("the Jam", "o")]),  # as it is written, where it is
        (" Jam ", "Led by Jam.", "Jam.", [("Jam", "s")]),
        ("no one", "We did it with no", "one. No one!", [("No one", "o")]),  # not across sentences
        ("New York", "In New-York it was.", "Yes.", []),  # which the scorer takes for another
        ("UK", "It is in the U.K., they say.", "Here.", [("U.K", "s")]),
        ("1000 men", "Led by (1,000 men).", "1000, men", [("1,000 men", "s")]),
    ],
)
@pytest.mark.parametrize("trimmed", [False, True])
def test_answers_that_are_right(
    tmp_path: Path, answer: str, supporting: str, other: str, expected: list[tuple[str, str]], trimmed: bool
) -> None:
    context = [["One", [supporting]], ["Two", [other]]]
    record = {"_id": "a", "question": "Who?", "context": context, "answer": answer, "supporting_facts": [["One", 0]]}
    if trimmed:
        tokenizer = roberta_tokenizer()
        tokenizer.add_special_tokens([*TASK.added_tokens])
        made = make_features(TASK, examples([record], tmp_path), Packer.of(tokenizer, 256), "mine")
    else:
        made = features(examples([record], tmp_path))
    row = made.row(0)
    text, found = row["text"].tobytes().decode(), []
    for first, last in zip(row["firsts"], row["lasts"], strict=True):
        start, end = int(row["begins"][first]), int(row["ends"][last])
        found.append((text[start:end].strip(), "s" if end <= text.index("Two") else "o"))
    assert found == expected
    assert made.counts == ({} if expected else {"with an answer that is not in what is read": 1})


def test_paragraphs_of_the_same_title(tmp_path: Path) -> None:
    """Are shown where their sentences are; a title may have two lines."""
    context = [["A", ["one."]], ["A", ["two.", " three.", " four."]], ["B\nc", ["five."]]]
    record = {"_id": "a", "question": "Who?", "context": context, "answer": "four", "supporting_facts": [["A", 2]]}
    (example,) = examples([record], tmp_path)
    made = features([example])
    row = made.row(0)
    for token in np.flatnonzero(row["part"] >= 0):
        output = {"answer_type": np.array([1, 0, 0]), "first": token, "last": token, "score": 1.0}
        output |= {"paragraphs": np.array([0.0, 9.0, 1.0, 0.0]), "sentences": np.array([-1.0, -9, -9, 5, -1, 0, 0, 0])}
        prediction = TASK.decode(made.examples[0], [row], [output])
        page = TASK.marked(example, prediction)
        (begin, end, _), *sentences = page.spans
        assert page.text[begin:end] == prediction["answer"]
        assert [page.text[a:b].strip() for a, b, _ in sentences] == prediction["support"] == ["four.", "five."]


def test_what_was_not_read_is_shown(tmp_path: Path) -> None:
    task = dataclasses.replace(TASK, max_paragraphs=2)
    text = "One. Two.\n\nThree.\n\nFour. Five."
    example = task.from_question("Who?", text, "file")
    made = features([example], task)
    output = {"answer_type": np.array([0.0, 1, 0]), "first": 0, "last": 0, "score": -np.inf}
    output |= {"paragraphs": np.zeros(2), "sentences": np.zeros(8)}
    page = task.marked(example, task.decode(made.examples[0], [made.row(0)], [output]))
    assert [text[a:b].strip() for a, b, kind in page.spans if kind == "unread"] == ["Four. Five."]
