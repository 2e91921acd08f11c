"""The Python blocks of the README and the docs run, top to bottom, page by page, and so do the notebooks."""

import json
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


@pytest.mark.slow
def test_from_scratch_in_small(tmp_path, monkeypatch):
    """The notebook's cells, one after the other, and what they say in the end."""
    page = ROOT / "docs" / "from_scratch.ipynb"
    notebook = json.loads(page.read_text())
    assert notebook["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"]  # which would grow old
            exec(compile("".join(cell["source"]), f"{page}, cell {number}", "exec"), namespace)
    assert namespace["result"].metrics["accuracy"] > 0.9
    texts = ["The plot was dull. The camera was silly.", "The plot was funny. The camera was superb."]
    assert [answer["label"] for answer in namespace["classify"](texts)] == ["neg", "pos"]


def test_there_are_examples():
    assert {page.name for page in PAGES} >= {"README.md", "library.md"}
