"""Answers shown in their documents: what a browser reads of the page is the text as it is, with the right marks."""

import re
from html.parser import HTMLParser

from longformer_jax.scripts.page import page
from longformer_jax.tasks.base import Marked


class Reader(HTMLParser):
    """The text of each article, with the classes of each of its characters, and the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.articles: list[list[tuple[str, frozenset[str]]]] = []
        self.open: list[tuple[str, frozenset[str]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag != "meta":
            self.open.append((tag, frozenset((values.get("class") or "").split())))
        if tag == "article":
            self.articles.append([])
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        assert not {"src", "onclick", "onerror"} & values.keys()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "article" in tags:
            classes = frozenset[str]().union(*(found for _, found in self.open))
            self.articles[-1] += [(character, classes) for character in data]
        elif "style" not in tags:
            self.outside += data


def test_pages() -> None:
    text = 'A <b>bold</b> claim & more.\nThe answer, 東京, is "here". Never read.'
    spans = [
        (text.index("東京"), text.index("東京") + 2, "answer"),
        (text.index("The"), text.index(" Never"), "sentence"),
        (text.index("Never") - 1, len(text), "unread"),
    ]
    items = [
        Marked("Which <city>?", "東京 & 1.5", "<file>", text, spans),
        Marked("And?", "no answer", "empty.txt", "", ()),
        Marked("And?", "no answer", "plain.txt", "plain", ()),
    ]
    reader = Reader()
    reader.feed(page(items))
    reader.close()
    assert not reader.open and len(reader.articles) == 3
    for found, item in zip(reader.articles, items, strict=True):
        assert "".join(character for character, _ in found) == item.text
        for place, (_, classes) in enumerate(found):
            assert classes == {kind for start, end, kind in item.spans if start <= place < end}
    assert reader.ids == ["answer1"] and reader.links == ["#answer1"]
    for shown in ("Which <city>?", "東京 & 1.5", "<file>"):
        assert shown in reader.outside
    assert page([]).startswith("<!doctype html>")


def test_mentions_that_end_together() -> None:
    text = "the captain of the ship slept"
    spans = [(0, 23, "entity 1"), (15, 23, "entity 2")]
    shown = page([Marked("Who?", "", "story", text, spans)])
    assert "the ship</mark><sub>2, 1</sub> slept" in shown


def test_a_mention_within_one_of_its_own_entity() -> None:
    text = "the man and his dog"
    shown = page([Marked("Who?", "", "story", text, [(0, 19, "entity 1"), (12, 15, "entity 1"), (16, 19, "entity 1")])])
    colours = re.findall(r'style="background: hsl\((\d+) [^/]*/ ([0-9.]+)\)">([^<]*)<', shown)
    assert colours == [
        ("137", "0.3", "the man and "), ("137", "0.6", "his"), ("137", "0.3", " "), ("137", "0.6", "dog"),
    ]  # fmt: skip
