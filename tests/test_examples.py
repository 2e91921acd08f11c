"""The Python blocks of the README and the docs run, top to bottom, page by page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))] if BLOCK.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of(page):
    namespace = {}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        # Line numbers of an error are those of the page.
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)


def test_there_are_examples():
    assert {page.name for page in PAGES} >= {"README.md", "library.md"}
