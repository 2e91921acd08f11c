"""Words of plain text, as OntoNotes and the Penn Treebank cut them."""

import re
import unicodedata

# A number; letters and digits that a hyphen or apostrophe may join; or a mark.
_WORD = re.compile(r"\d+(?:[.,:]\d+)+(?!\w)|\w+(?:[-']\w+)*|'(?:s|m|d|re|ve|ll)\b|[^\w\s]", re.IGNORECASE)
# What is a word of its own at the end of another: do|n't, Anna|'s.
_CLITIC = re.compile(r"(.*\w)(?:n't|'(?:s|m|d|re|ve|ll))", re.IGNORECASE | re.DOTALL)


def words_of(text: str) -> list[tuple[str, int, int]]:
    """Each word, and where it begins and ends in the text, in characters.

    A word is in Unicode's NFC, with ' for ’, which the text need not be.
    """
    # As long as the text, so that places are the same: a combining mark is a letter of the word that it stands in.
    shape = "".join(
        "'" if c == "’" else "x" if i and unicodedata.category(c)[0] == "M" and not text[i - 1].isspace() else c
        for i, c in enumerate(text)
    )
    found = []
    for match in _WORD.finditer(shape):
        ends = [match.end()]
        while clitic := _CLITIC.fullmatch(shape, match.start(), ends[0]):
            ends.insert(0, clitic.end(1))
        for start, end in zip([match.start(), *ends], ends, strict=False):
            found.append((unicodedata.normalize("NFC", text[start:end]).replace("’", "'"), start, end))
    return found
