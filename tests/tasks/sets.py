"""Small data sets in the forms of the real ones, written for the tests."""

import gzip
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# Samples of real data, which only developers have.
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"
VOCAB = SHARED.parent / "vocab"

ARTICLES, TRUTH = "articles-training-byarticle-20181122", "ground-truth-training-byarticle-20181122"

# By their SHA-256, the first of these films validates and the others do not.
FILMS = ("tt0000014", "tt0000001", "tt0000002")


def write_records(path: Path, records: Sequence[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def roberta_tokenizer() -> Tokenizer:
    """RoBERTa's, which only developers have; skips the test where it is not."""
    if not VOCAB.is_dir():
        pytest.skip("needs RoBERTa's vocabulary")
    tokenizer = Tokenizer(models.BPE.from_file(str(VOCAB / "roberta_vocab.json"), str(VOCAB / "roberta_merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


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


# Documents of a made-up TriviaQA, by folder and name.
EVIDENCE = {
    "wikipedia/Harbour.txt": "The harbour of Vellmar.\nAnna-Maria Tolk dug it in 1604. “Anna Maria Tolk!” they sang.\n",
    "wikipedia/Tolk.txt": "Anna Maria Tolk (1570 – 1641) was an engineer. She was born in İzgür, by the sea.",
    "wikipedia/One_sentence.txt": "Nobody lives there",
    "wikipedia/Empty.txt": " \n",
    "web/12/12_7.txt": "A blog about boats. In IZGÜR there are boats... and ANNA MARIA TOLK was from i̇zgür. " * 3,
    "web/9/9_1.txt": "Boats, all about boats.",
}  # fmt: skip


def triviaqa(folder: Path) -> Path:
    """The folder with qa/ and evidence/, of both domains."""
    for name, text in EVIDENCE.items():
        file = folder / "evidence" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def question(number: int, text: str, aliases: list[str], *pages: str, verified: bool = True) -> dict[str, Any]:
        listed: dict[str, Any] = {"EntityPages": [], "SearchResults": []}
        for page in pages:
            kind, _, name = page.partition("/")
            field = "EntityPages" if kind == "wikipedia" else "SearchResults"
            listed[field].append({"Filename": name, "DocPartOfVerifiedEval": verified and name != "9/9_1.txt"})
        answer = {"NormalizedAliases": aliases, "Aliases": aliases, "Value": aliases[0]}
        return {
            "QuestionId": f"tc_{number}",
            "Question": text,
            "Answer": answer,
            "QuestionPartOfVerifiedEval": verified,
            **listed,
        }

    digger = question(
        *(1, "Who dug the harbour of Vellmar?", ["anna maria tolk", "tolk"]),
        *("wikipedia/Harbour.txt", "wikipedia/Tolk.txt", "wikipedia/Empty.txt"),
    )
    birth = question(2, "Where was she born?", ["i̇zgür"], "wikipedia/Tolk.txt", "wikipedia/Harbour.txt")
    nobody = question(3, "Who lives there?", ["hermit"], "wikipedia/One_sentence.txt", verified=False)
    boats = question(
        4, "Who was from İzgür?", ["anna maria tolk"], "wikipedia/Tolk.txt", "web/12/12_7.txt", "web/9/9_1.txt"
    )
    unanswered = {name: value for name, value in digger.items() if name != "Answer"}
    for name, questions in {
        "wikipedia-train": [digger, birth],
        "wikipedia-dev": [birth, nobody],
        "verified-wikipedia-dev": [birth, nobody],
        "wikipedia-test-without-answers": [unanswered],
        "web-train": [boats],
        "web-dev": [boats],
        "verified-web-dev": [boats],
    }.items():
        file = folder / "qa" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        domain, split, *_ = name.removeprefix("verified-").split("-")
        if domain == "wikipedia":  # whose files do not have the other field
            questions = [{k: v for k, v in question.items() if k != "SearchResults"} for question in questions]
        about = {"Domain": domain.title(), "Split": split, "VerifiedEval": name.startswith("verified"), "Version": 1.0}
        file.write_text(json.dumps({"Data": questions, **about}, ensure_ascii=False))
    return folder
