"""Small data sets in the forms of the real ones, written for the tests."""

import gzip
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Samples of real data, which only developers have.
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"

ARTICLES, TRUTH = "articles-training-byarticle-20181122", "ground-truth-training-byarticle-20181122"

# By their SHA-256, the first of these films validates and the others do not.
FILMS = ("tt0000014", "tt0000001", "tt0000002")


def write_records(path: Path, records: Sequence[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def aclimdb(folder: Path) -> Path:
    """The folder aclImdb in `folder`: 6 reviews to train on, of 3 films, and 2 to test."""
    for label, rating in (("neg", 2), ("pos", 9)):
        for split, count in (("train", 3), ("test", 1)):
            place = folder / "aclImdb" / split
            (place / label).mkdir(parents=True)
            for number in range(count):
                text = f"A {label} review, number {number} of {split}.<br /><br />Über 2 hours."
                (place / label / f"{number}_{rating}.txt").write_text(text, encoding="utf-8")
            films = "".join(f"http://www.imdb.com/title/{film}/usercomments\n" for film in FILMS[:count])
            (place / f"urls_{label}.txt").write_text(films)
    (folder / "aclImdb" / "train" / "unsup").mkdir()
    (folder / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("Nobody knows.")
    (folder / "aclImdb" / "README").write_text("About the data.")
    return folder / "aclImdb"


def archived(folder: Path) -> Path:
    """aclImdb as an archive beside it."""
    with tarfile.open(folder.with_name("aclImdb_v1.tar.gz"), "w:gz") as archive:
        archive.add(folder, "aclImdb")
    return folder.with_name("aclImdb_v1.tar.gz")


def semeval(folder: Path, labels: dict[str, str] | None = None, compressed: bool = False) -> Path:
    """Articles with these ids and labels, and their ground truth, in `folder`."""
    labels = labels or {f"{i:07}": "true" if i % 3 else "false" for i in range(6)}
    articles = "".join(
        f'<article id="{name}" published-at="2017-01-0{i + 1}" title="Title &amp; {name}">\n'
        f'<p>First  <a href="x">link</a> of\n{name}.</p> Between <q>it</q>\n<p>Last of {name}.</p></article>\n'
        for i, name in enumerate(labels)
    )
    truth = "".join(
        f'<article hyperpartisan="{label}" id="{name}" labeled-by="article" url="http://x/{name}" />\n'
        for name, label in labels.items()
    )
    folder.mkdir(exist_ok=True)
    for name, elements in ((ARTICLES, articles), (TRUTH, truth)):
        content = f"<?xml version='1.0' encoding='utf-8'?>\n<articles>\n{elements}</articles>\n".encode()
        if compressed:
            (folder / f"{name}.xml.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{name}.xml").write_bytes(content)
    return folder


def split_file(path: Path) -> str:
    """A split of `semeval`'s articles, one of which is in no part."""
    parts = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
    path.write_text(json.dumps({name: [f"{i:07}" for i in ids] for name, ids in parts.items()}))
    return str(path)
