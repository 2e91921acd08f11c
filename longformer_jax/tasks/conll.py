"""Files of the CoNLL-2012 shared task: documents as words in columns, the last of which says who is who."""

import collections
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from longformer_jax.errors import InputError
from longformer_jax.tasks.records import opened, shown

# Words of a document from the first to the last, counted from 0.
Mention = tuple[int, int]

BEGIN, _END = "#begin document", "#end document"
_BEGIN = re.compile(rf"{BEGIN} \((?P<name>.*)\);?(?:\s*part\s+(?P<part>[0-9]+))?")
_PART = re.compile(r"(?P<open>\()?(?P<number>[0-9]+)(?P<close>\))?")
# The official scorer needs no | between them. Possessive: if numbers could be cut, n of them could be read in 2^n ways.
_CHAINS = re.compile(r"(?:\([0-9]++\)?+\|?|[0-9]++\)\|?)+")
_BLANKS = " \t\r\n"  # other spaces may be part of a word
_WORD, _SPEAKER = 3, 9  # columns, counted from 0


class Line(NamedTuple):
    """A word's line: what is before the last column, that column, and what is behind it, with the line's end."""

    before: str
    chains: str
    behind: str


@dataclasses.dataclass(frozen=True)
class Document:
    """A part of a document as its file has it.

    Attributes:
      name: such as "bc/cctv/00/cctv_0000", whose beginning is the genre.
      part: such as "000"; "" where the file does not say.
      lines: of the words; and as they stand those that begin and end the document, and blank ones, which are between
        sentences.
    """

    name: str
    part: str
    lines: tuple[Line | str, ...]

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
            if isinstance(line, Line):
                number, is_new = number + is_new, False
                numbers.append(number)
            else:
                is_new = True
        return numbers

    @property
    def clusters(self) -> list[list[Mention]]:
        """The mentions of each entity, in ascending order; entities in the order in which they begin.

        Where several begin with a word, those whose mention ends with it come first, as for the official scorer.
        """
        return _clusters([line.chains for line in self._word_lines], self.name)

    @classmethod
    def of_words(cls, name: str, words: Sequence[str], sentences: Sequence[int]) -> "Document":
        """One of five columns: its name, the part, the word's number in its sentence, the word, and coreference.

        Between them are tabs: before a space, the official scorer would take a word "(7)" for coreference. What would
        end the name, spaces and parentheses, is written as in URLs, so that names stay distinct.
        """
        name = re.sub(r"[\s()%]", lambda match: quote(match[0]), name)
        lines: list[Line | str] = [f"{BEGIN} ({name}); part 000\n"]
        for _, sentence in itertools.groupby(zip(sentences, words, strict=True), key=lambda pair: pair[0]):
            lines += [Line(f"{name}\t0\t{number}\t{word}\t", "-", "\n") for number, (_, word) in enumerate(sentence)]
            lines.append("\n")
        return cls(name, "000", (*lines, f"{_END}\n"))

    def with_clusters(self, clusters: Iterable[Iterable[Mention]]) -> "Document":
        """The same with other clusters, numbered from 0; only the last column differs."""
        columns = iter(chain_columns(len(self._word_lines), clusters))
        lines = (line._replace(chains=next(columns)) if isinstance(line, Line) else line for line in self.lines)
        return dataclasses.replace(self, lines=tuple(lines))

    @property
    def _word_lines(self) -> list[Line]:
        return [line for line in self.lines if isinstance(line, Line)]

    @staticmethod
    def _column(line: Line, number: int) -> str | None:
        columns = re.split(f"[{_BLANKS}]+", line.before.strip(_BLANKS))
        return columns[number] if len(columns) > number else None

    def __str__(self) -> str:
        return "".join("".join(line) for line in self.lines)


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of a file, one for each of its parts.

    Raises:
      InputError: the file is missing, no UTF-8, or not of this format; the sentence names the line.
    """
    with opened(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        yield from parse_documents(text, str(path))


def parse_documents(file: Iterable[str], source: str) -> Iterator[Document]:
    """As `read_documents`, of lines with their ends; `source` is what errors call them.

    Blank lines between documents are the earlier one's, so that all of them together are the file.
    """
    begun: re.Match[str] | None = None
    has_ended, number = True, 0
    lines: list[Line | str] = []
    for number, line in enumerate(file, start=1):
        place, text, entry = f"line {number:,} of {source!r}", line.rstrip("\r\n"), line
        if line.startswith(BEGIN):
            found = _BEGIN.match(line)
            if found is None or not has_ended:
                raise InputError(f"{place} is {text!r}; expected {BEGIN} (NAME); part 000, after an #end")
            if begun is not None:
                yield _document(begun, lines, source)
                lines = []
            begun, has_ended = found, False
        elif line.startswith(_END):
            if has_ended:
                raise InputError(f"{place} ends a document; expected one that has begun")
            has_ended = True
        elif line.strip(_BLANKS):
            if has_ended:
                raise InputError(f"{place} is {text!r}; expected {BEGIN} (NAME); part 000")
            entry = _line(line, place)
        lines.append(entry)
    if not number:
        raise InputError(f"{source!r} is empty; expected documents in the CoNLL-2012 format")
    if begun is not None:
        if not has_ended:
            raise InputError(f"{source!r} ends within document {begun['name']!r}; expected {_END}")
        yield _document(begun, lines, source)


def _line(text: str, place: str) -> Line:
    content = text.rstrip(_BLANKS)
    chains = re.split(f"[{_BLANKS}]", content)[-1]
    before = content[: len(content) - len(chains)]
    if not before.strip(_BLANKS):
        raise InputError(f"{place} has one column; expected several, of which the last one has coreference")
    return Line(before, chains, text[len(content) :])


def _document(begun: re.Match[str], lines: Iterable[Line | str], source: str) -> Document:
    document = Document(begun["name"], begun["part"] or "", tuple(lines))
    try:
        _ = document.clusters
    except InputError as error:
        raise InputError(f"{source!r}: {error}") from None
    return document


def _clusters(columns: Sequence[str], name: str) -> list[list[Mention]]:
    """As `Document.clusters`. The mentions of one entity may be nested, those of several may cross."""
    clusters: dict[str, list[Mention]] = {}
    open_at: dict[str, list[int]] = collections.defaultdict(list)
    for word, column in enumerate(columns):
        if column in ("-", "_"):
            continue
        if not _CHAINS.fullmatch(column):
            raise InputError(
                f"word {word} of {name!r} has coreference {shown(column)}; expected -, (1, 1), (1) or (1|(2)"
            )
        parts = [*_PART.finditer(column)]
        # Whatever their order in the column, mentions of a word, then what begins with it, then what ends with it.
        for part in sorted(parts, key=lambda part: (not part["open"], not part["close"])):
            number = part["number"]
            if part["open"]:
                clusters.setdefault(number, [])
                open_at[number].append(word)
            if part["close"]:
                if not open_at[number]:
                    raise InputError(f"word {word} of {name!r} ends a mention of {number}; expected one that has begun")
                clusters[number].append((open_at[number].pop(), word))
    if left := [number for number, starts in open_at.items() if starts]:
        raise InputError(f"{name!r} has a mention of {left[0]} that does not end; expected {left[0]}) behind it")
    return [sorted(mentions) for mentions in clusters.values()]


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
