"""Files of the CoNLL-2012 shared task: documents as words in columns, the last of which says who is who."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from longformer_jax.errors import InputError
from longformer_jax.tasks.records import opened

# Words of a document from the first to the last, counted from 0.
Mention = tuple[int, int]

_BEGIN = re.compile(r"#begin document \((?P<name>[^)]*)\);?(?:\s*part\s+(?P<part>\d+))?")
_PART = re.compile(r"(?P<open>\()?(?P<number>\d+)(?P<close>\))?")
_CHAINS = re.compile(r"(?:\(\d+\)?\|?|\d+\)\|?)+")  # the official scorer needs no | between them
_WORD, _SPEAKER = 3, 9  # columns, counted from 0


class Line(NamedTuple):
    """A word's line: what is before the last column, the last column, and what is behind it."""

    before: str
    chains: str
    behind: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A part of a document as its file has it.

    Attributes:
      name: such as "bc/cctv/00/cctv_0000", whose beginning is the genre.
      part: such as "000"; "" where the file does not say.
      lines: of the words, and None between sentences.
    """

    name: str
    part: str
    lines: tuple[Line | None, ...]

    @property
    def words(self) -> list[str]:
        """The words; "" for each where the file has none."""
        return [self._column(line, _WORD) or "" for line in self._word_lines]

    @property
    def speakers(self) -> list[str]:
        """Of each word; "-" where nobody is named."""
        return [self._column(line, _SPEAKER) or "-" for line in self._word_lines]

    @property
    def sentences(self) -> list[int]:
        """For each word the number of its sentence."""
        numbers, number, is_new = [], -1, True
        for line in self.lines:
            if line is None:
                is_new = True
                continue
            number, is_new = number + is_new, False
            numbers.append(number)
        return numbers

    @property
    def clusters(self) -> list[list[Mention]]:
        """The mentions of each entity, in ascending order; entities in the order of their first mentions."""
        return [*_clusters([line.chains for line in self._word_lines], self.name).values()]

    @classmethod
    def of_words(cls, name: str, words: Sequence[str], sentences: Sequence[int]) -> "Document":
        """One of five columns: its name, the part, the word's number in its sentence, the word, and coreference.

        What would end the name, spaces and parentheses, becomes _.
        """
        name = re.sub(r"[\s()]", "_", name)
        lines: list[Line | None] = []
        for _, sentence in itertools.groupby(zip(sentences, words, strict=True), key=lambda pair: pair[0]):
            lines += [Line(f"{name} 0 {number} {word} ", "-", "") for number, (_, word) in enumerate(sentence)]
            lines.append(None)
        return cls(name, "000", tuple(lines))

    def with_clusters(self, clusters: Iterable[Iterable[Mention]]) -> "Document":
        """The same with other clusters, numbered from 0; only the last column differs."""
        columns = chain_columns(len(self._word_lines), clusters)
        words = iter(columns)
        lines = tuple(None if line is None else line._replace(chains=next(words)) for line in self.lines)
        return dataclasses.replace(self, lines=lines)

    @property
    def _word_lines(self) -> list[Line]:
        return [line for line in self.lines if line is not None]

    @staticmethod
    def _column(line: Line, number: int) -> str | None:
        columns = line.before.split()
        return columns[number] if len(columns) > number else None

    def __str__(self) -> str:
        part = f" part {self.part}" if self.part else ""
        text = "\n".join("" if line is None else "".join(line) for line in self.lines)
        return f"#begin document ({self.name});{part}\n{text}\n#end document\n"


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file, one for each of its parts.

    Raises:
      InputError: the file is missing, no UTF-8, or not of this format; the sentence names the line.
    """
    with opened(path) as file:
        yield from parse_documents((line.decode() for line in file), str(path))


def parse_documents(file: Iterable[str], source: str) -> Iterator[Document]:
    """As `read_documents`, of lines; `source` is what errors call them."""
    name = part = None
    lines: list[Line | None] = []
    number = 0
    for number, content in enumerate(file, start=1):
        text = content.rstrip("\r\n")
        place = f"line {number:,} of {source!r}"
        if text.startswith("#end document"):
            if name is None:
                raise InputError(f"{place} ends a document; expected one that has begun")
            yield _checked(Document(name, part or "", tuple(lines)), source)
            name = part = None
        elif text.startswith("#begin document"):
            found = _BEGIN.match(text)
            if found is None or name is not None:
                raise InputError(f"{place} is {text!r}; expected #begin document (NAME); part 000, after an #end")
            name, part, lines = found["name"], found["part"], []
        elif name is not None and not text.strip():
            lines.append(None)
        elif name is not None:
            lines.append(_line(text, place))
        elif text.strip():
            raise InputError(f"{place} is {text!r}; expected #begin document (NAME); part 000")
    if name is not None:
        raise InputError(f"{source!r} ends within document {name!r}; expected #end document")
    if not number:
        raise InputError(f"{source!r} is empty; expected documents in the CoNLL-2012 format")


def _line(text: str, place: str) -> Line:
    content = text.rstrip()
    chains = content.split()[-1]
    before = content[: len(content) - len(chains)]
    if not before.strip():
        raise InputError(f"{place} has one column; expected several, of which the last one has coreference")
    return Line(before, chains, text[len(content) :])


def _checked(document: Document, source: str) -> Document:
    try:
        _ = document.clusters
    except InputError as error:
        raise InputError(f"{source!r}: {error}") from None
    return document


def _clusters(columns: Sequence[str], name: str) -> dict[int, list[Mention]]:
    """The mentions of each entity by its number. Those of one entity may be nested, of several may cross."""
    clusters: dict[int, list[Mention]] = {}
    open_at: dict[int, list[int]] = collections.defaultdict(list)
    for word, column in enumerate(columns):
        if column in ("-", "_"):
            continue
        if not _CHAINS.fullmatch(column):
            raise InputError(f"word {word} of {name!r} has coreference {column!r}; expected -, (1, 1), (1) or (1|(2)")
        for found in _PART.finditer(column):
            number = int(found["number"])
            if found["open"]:
                open_at[number].append(word)
            if found["close"]:
                if not open_at[number]:
                    raise InputError(f"word {word} of {name!r} ends a mention of {number}; expected one that has begun")
                clusters.setdefault(number, []).append((open_at[number].pop(), word))
    if left := [number for number, starts in open_at.items() if starts]:
        raise InputError(f"{name!r} has a mention of {left[0]} that does not end; expected {left[0]}) behind it")
    ordered = {number: sorted(mentions) for number, mentions in clusters.items()}
    return dict(sorted(ordered.items(), key=lambda item: (item[1][0], item[0])))


def without_crossing(clusters: Iterable[Iterable[Mention]]) -> list[list[Mention]]:
    """The clusters in ascending order, without mentions that cross an earlier one of the same entity.

    The format cannot hold these: which of several open mentions of an entity ends is not said.
    """
    kept: list[list[Mention]] = []
    for mentions in clusters:
        kept.append([])
        for first, last in sorted((first, last) for first, last in mentions):
            if not any(begin < first <= end < last for begin, end in kept[-1]):
                kept[-1].append((first, last))
    return kept


def chain_columns(length: int, clusters: Iterable[Iterable[Mention]]) -> list[str]:
    """The last column of so many words; entities are numbered from 0.

    Raises:
      InputError: there is no such word, or two mentions of one entity cross, see `without_crossing`.
    """
    starts: Mapping[int, list[tuple[int, str]]] = collections.defaultdict(list)
    ends: Mapping[int, list[tuple[int, str]]] = collections.defaultdict(list)
    for number, mentions in enumerate(clusters):
        mentions = sorted((first, last) for first, last in mentions)
        for one, other in itertools.combinations(mentions, 2):
            if one[0] < other[0] <= one[1] < other[1]:
                raise InputError(
                    f"clusters[{number}] has {one} and {other}, which cross; expected those of one entity to be nested"
                )
        for first, last in mentions:
            if not 0 <= first <= last < length:
                raise InputError(
                    f"clusters[{number}] has the mention {(first, last)}; expected words 0 to {length - 1}"
                )
            if first == last:
                starts[first].append((last, f"({number})"))
            else:
                starts[first].append((last, f"({number}"))
                ends[last].append((first, f"{number})"))
    columns = []
    for word in range(length):
        # The longest begins first and ends last, so that mentions of one entity are nested.
        begun = [part for _, part in sorted(starts.get(word, ()), key=lambda item: -item[0])]
        ended = [part for _, part in sorted(ends.get(word, ()), key=lambda item: -item[0])]
        columns.append("|".join(begun + ended) or "-")
    return columns
