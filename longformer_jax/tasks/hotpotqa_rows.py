"""How a question and paragraphs become a row of HotpotQA's, token by token, and where an answer stands in them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longformer_jax.tasks.answers import find_answers, find_joined, normalize_hotpotqa
from longformer_jax.tasks.extraction import token_spans

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer


class Row:
    """A row while it is put together: what there is room for is added, whole.

    Attributes:
      titles, sentences: the positions of their marks.
      paragraphs, facts: the numbers of these paragraphs, and of these sentences' paragraphs and their own, in the
        example.
    """

    def __init__(self, packer: "Packer", marks: Sequence[int], question: Sequence[int]) -> None:
        begin, end, self._title, self._title_end, self._sentence_end = marks
        self._packer = packer
        self._ids = [packer.bos_token_id, begin, *question, end]
        self._question = len(self._ids)
        self._text = ""
        # For each token the part of the text that it belongs to, and the characters that it stands for.
        self._tokens = [(-1, 0, 0)] * self._question
        self._parts = 0
        self.titles: list[int] = []
        self.paragraphs: list[int] = []
        self.sentences: list[int] = []
        self.facts: list[tuple[int, int]] = []

    def add_title(self, paragraph: int, title: str, encoding: "Encoding", may_answer: bool) -> bool:
        """Whether there was room for the title, which may be the answer, and for the mark of a sentence."""
        if len(self._ids) + len(encoding.ids) + 4 > self._packer.sequence_length:
            return False
        self.titles.append(len(self._ids))
        self.paragraphs.append(paragraph)
        self._add_mark(self._title)
        self._add(title, encoding, may_answer)
        self._add_mark(self._title_end)
        return True

    def add_sentence(self, paragraph: int, number: int, sentence: str, encoding: "Encoding") -> bool:
        """Whether there was room for it."""
        if len(self._ids) + len(encoding.ids) + 2 > self._packer.sequence_length:
            return False
        start = len(self._text)
        self._add(sentence, encoding)
        self.sentences.append(len(self._ids))
        self.facts.append((paragraph, number))
        self._add_mark(self._sentence_end, start, start + len(sentence))
        return True

    def _add_mark(self, token: int, start: int = 0, end: int = 0) -> None:
        self._ids.append(token)
        self._tokens.append((-1, start, end))

    def _add(self, text: str, encoding: "Encoding", may_answer: bool = True) -> None:
        start = len(self._text)
        shift = start - (len(spaced(text)) - len(text))
        self._ids += encoding.ids
        for a, b in encoding.offsets:
            a, b = max(shift + a, start), shift + b
            is_blank = not text[a - start : b - start].strip()
            self._tokens.append((self._parts if may_answer and not is_blank else -1, a, b))
        self._parts += 1
        self._text += f"{text}\n"  # where a word of one part does not go on in the next

    def find(self, answer: str, is_fact: Sequence[bool]) -> list[tuple[int, int]]:
        """The first and last tokens of the answer in supporting sentences; where it is in none, anywhere.

        In both as it is written, or else what the scorer takes for the same, in another case for example.
        """
        parts, begins, ends = (np.array(column) for column in zip(*self._tokens, strict=True))
        inside = np.flatnonzero(parts >= 0)
        text, answer = self._text, answer.strip()
        marks = [mark for mark, yes in zip(self.sentences, is_fact, strict=True) if yes]  # of supporting sentences
        anywhere = []
        for search in (occurrences, _alike):
            tokens = token_spans(search(text, answer), begins[inside], ends[inside])
            tokens = [(int(inside[first]), int(inside[last])) for first, last in tokens]
            tokens = [(first, last) for first, last in tokens if parts[first] == parts[last]]
            supporting = [
                (first, last)
                for first, last in tokens
                if any(begins[mark] <= begins[first] and ends[last] <= ends[mark] for mark in marks)
            ]
            if supporting:
                return supporting
            anywhere = anywhere or tokens
        return anywhere

    def finished(self) -> dict[str, Any]:
        """The arrays of the row but for the targets."""
        self._ids.append(self._packer.sep_token_id)
        self._tokens.append((-1, 0, 0))
        part, begins, ends = zip(*self._tokens, strict=True)
        return {
            "input_ids": self._ids,
            "question": [self._question],
            "titles": self.titles,
            "sentences": self.sentences,
            "part": part,
            "paragraphs": self.paragraphs,
            "facts": [number for fact in self.facts for number in fact],
            "begins": begins,
            "ends": ends,
            "text": np.frombuffer(self._text.encode(), np.uint8),
        }


def _alike(text: str, answer: str) -> list[tuple[int, int]]:
    """Where the text has what the scorer takes for the answer."""
    normal = normalize_hotpotqa(answer)
    found = [(a, b) for a, b in find_answers(text, [answer]) if normalize_hotpotqa(text[a:b]) == normal]
    return sorted({*found, *find_joined(text, answer)})


def spaced(text: str) -> str:
    """With a space in front, as words in a text have it."""
    return text if text[:1].isspace() else f" {text}"


def occurrences(text: str, answer: str) -> list[tuple[int, int]]:
    """Start and end of the answer, wherever it stands as it is written and is not a part of words."""
    spans, start = [], text.find(answer) if answer else -1
    while start >= 0:
        end = start + len(answer)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not (before.isalnum() and answer[0].isalnum()) and not (after.isalnum() and answer[-1].isalnum()):
            spans.append((start, end))
        start = text.find(answer, start + 1)
    return spans


def placed_answer(example: Mapping[str, Any], row: Mapping[str, np.ndarray], first: int, last: int) -> dict[str, Any]:
    """The text of a row's tokens from `first` to `last`, and where it stands, as `HotpotQA.decode` returns it."""
    text = row["text"].tobytes().decode()
    start, end = int(row["begins"][first]), int(row["ends"][last])
    answer = text[start:end].strip()
    start = text.index(answer, start)  # a token may begin with a space
    # The mark of a title comes before it, that of a sentence behind, and stands for the characters of the sentence.
    paragraph = int(row["paragraphs"][np.searchsorted(row["titles"], first) - 1])
    mark, number = int(np.searchsorted(row["sentences"], last)), None
    title = int(row["titles"][np.searchsorted(row["titles"], first) - 1]) + 1
    begin, sentence = text.rfind("\n", 0, int(row["begins"][title])) + 1, example["titles"][paragraph]
    if mark < len(row["sentences"]) and row["begins"][row["sentences"][mark]] <= start:
        begin, close = (int(row[name][row["sentences"][mark]]) for name in ("begins", "ends"))
        number, sentence = int(row["facts"][2 * mark + 1]), text[begin:close].strip()
        # Of a file, characters count in the sentence as it is shown; else in the text.
        begin = begin - example["places"][paragraph][number][0] if "places" in example else text.index(sentence, begin)
    start -= begin
    place = [example["titles"][paragraph], number]
    return {"answer": answer, "sentence": sentence, "place": place, "start": start, "end": start + len(answer)}


def marked_text(example: Mapping[str, Any], prediction: Mapping[str, Any]) -> tuple[str, list[tuple[int, int, str]]]:
    """The text of an example, and the spans of it that `HotpotQA.marked` has."""
    text, titles, places = _shown_text(example)

    def paragraph_of(title: str, number: int | None, sentence: str) -> int:
        """Of paragraphs with the same title the one with this sentence."""
        named = [paragraph for paragraph, other in enumerate(example["titles"]) if other == title]
        if number is None:
            return named[0]
        found = (p for p in named if number < len(places[p]))
        return next((p for p in found if text[slice(*places[p][number])].strip() == sentence), named[0])

    facts = zip(prediction["facts"], prediction["support"], strict=True)
    spans = [
        (*places[paragraph_of(title, number, sentence)][number], "sentence") for (title, number), sentence in facts
    ]
    if prediction["place"] is not None:
        (title, number), shift = prediction["place"], 0
        if "text" not in example:
            paragraph = paragraph_of(title, number, prediction["sentence"])
            shift = titles[paragraph]
            if number is not None:
                shift = text.index(prediction["sentence"], places[paragraph][number][0])
        spans.insert(0, (shift + prediction["start"], shift + prediction["end"], "answer"))
    unread = (places[i] for i, score in enumerate(prediction["paragraphs"]) if score is None)
    spans += [(spans_of[0][0], spans_of[-1][1], "unread") for spans_of in unread if spans_of]
    return text, spans


def _shown_text(example: Mapping[str, Any]) -> tuple[str, list[int], list[list[tuple[int, int]]]]:
    """A text, where titles begin in it, and of each paragraph where the sentences begin and end."""
    if "text" in example:
        return example["text"], [], [[(start, end) for start, end in spans] for spans in example["places"]]
    text, titles, places = "", [], []
    for title, sentences in zip(example["titles"], example["sentences"], strict=True):
        titles.append(len(text))
        text += f"{title}\n"
        places.append([])
        for sentence in sentences:
            places[-1].append((len(text), len(text) + len(sentence)))
            text += sentence
        text += "\n\n"
    return text, titles, places
