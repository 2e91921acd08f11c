"""Answers in their documents, as a page of HTML that needs no other file."""

import html
import itertools
from collections.abc import Iterable

from longformer_jax.tasks.base import Marked

_PAGE = """<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 45rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 serif; }}
h1, h2, nav {{ font-family: sans-serif; }}
h1 {{ font-size: 1.3rem; }}
h2 {{ font-size: 1rem; font-weight: normal; }}
article {{ white-space: pre-wrap; overflow-wrap: anywhere; margin-bottom: 4rem; }}
mark {{ color: inherit; background: none; }}
.sentence {{ background: #ffd54f44; }}
.answer {{ background: #ffd54f; color: black; font-weight: bold; }}
.unread {{ opacity: 0.5; }}
.entity {{ border-radius: 0.2em; }}
sub {{ font: 0.6em sans-serif; }}
</style>
</head>
<body>
{body}</body>
</html>
"""
_SECTION = """<h1>{heading}</h1>
<p>{note}</p>
<h2>{name}</h2>
<article>{text}</article>
"""


def page(items: Iterable[Marked]) -> str:
    """One section for each document: the question, the answer with a link to its place, and the text."""
    items = list(items)
    sections = []
    for number, item in enumerate(items, start=1):
        shown, anchor = (
            {name: html.escape(getattr(item, name)) for name in ("heading", "note", "name")},
            f"answer{number}",
        )
        if any(kind == "answer" for _, _, kind in item.spans):
            shown["note"] = f'<a href="#{anchor}">{shown["note"]}</a>'
        sections.append(_SECTION.format(text=_marked_text(item, anchor), **shown))
    title = html.escape(items[0].heading) if items else ""
    return _PAGE.format(title=title, body="".join(sections))


def _marked_text(item: Marked, anchor: str) -> str:
    """The text in pieces, each within the same spans; the first of the answer is what is linked to.

    A piece has the colour of the shortest mention that it is in, the stronger the more mentions it is in, so that one
    within another of its own entity is seen. A mention ends with the number of its entity; of those that end together,
    the shortest comes first.
    """
    places = sorted({0, len(item.text), *(place for start, end, _ in item.spans for place in (start, end))})
    pieces = []
    for start, end in itertools.pairwise(places):
        around = sorted((last - first, kind) for first, last, kind in item.spans if first <= start and end <= last)
        kinds = dict.fromkeys(kind.partition(" ")[0] for kind in sorted(kind for _, kind in around))
        piece = html.escape(item.text[start:end])
        if kinds:
            attributes = f' class="{" ".join(kinds)}"'
            if "answer" in kinds and anchor:
                attributes, anchor = f' id="{anchor}"{attributes}', ""
            numbers = [_number(kind) for _, kind in around if kind.startswith("entity ")]
            if numbers:  # a golden angle apart, so that neighbours differ
                strength = min(0.3 * len(numbers), 0.9)
                attributes += f' style="background: hsl({numbers[0] * 137 % 360} 80% 50% / {strength:.1f})"'
            piece = f"<mark{attributes}>{piece}</mark>"
        ended = sorted((last - first, _number(kind)) for first, last, kind in item.spans if last == end and " " in kind)
        pieces += [piece, f"<sub>{', '.join(str(number) for _, number in ended)}</sub>" if ended else ""]
    return "".join(pieces)


def _number(kind: str) -> int:
    return int(kind.removeprefix("entity "))
