"""Words of plain text, much as the Penn Treebank cuts them."""

import itertools
import re
import unicodedata

# What a name follows, so that its full stop ends no sentence; by their lengths, for look-behind.
TITLES = (
    ("Mr", "Ms", "Dr", "St", "Lt", "Mt"),
    ("Mrs", "Gen", "Sen", "Rep", "Gov", "Col", "Sgt", "Rev"),
    ("Prof", "Capt"),
)
# A title; initials, of which I alone is none; numbers; letters and digits that a hyphen or apostrophe may join; dots;
# dashes; or another mark.
_WORD = re.compile(
    rf"\b(?:{'|'.join(itertools.chain(*TITLES))})\.|\b[A-HJ-Z]\.(?=\s+[A-Z])|\b(?:[^\W\d_]\.){{2,}}"
    r"|\d+(?:[.,:]\d+)+(?!\w)|\w+(?:[-']\w+)*|'(?i:s|m|d|re|ve|ll)\b|\.{2,}|-{2,}|[^\w\s]"
)
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
