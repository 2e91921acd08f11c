"""The files of the classification tasks, as they are distributed, and what is said of bad ones."""

import collections
import csv
import gzip
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longformer_jax import InputError
from longformer_jax.tasks import Task, find_task
from longformer_jax.tasks.base import as_line
from longformer_jax.tasks.classification import TextClassification
from longformer_jax.tasks.hyperpartisan import Hyperpartisan
from longformer_jax.tasks.imdb import Imdb
from tests.tasks import sets
from tests.tasks.sets import ARTICLES, TRUTH, write_records


def read(task: Task, path: Path, split: str = "train") -> list[dict[str, Any]]:
    return list(task.read(path, split, collections.Counter()))


def labels(examples: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(example["id"], example["label"]) for example in examples]


# ---- Records ---------------------------------------------------------------------------------------------------------

TASK = TextClassification(labels=("bad", "good"), text_field="words", label_field="verdict", id_field="name")
RECORDS = [
    {"name": "x", "words": 'one, "two"\nthree', "verdict": "good"},
    {"name": "y", "words": "ünïcödé\ttab", "verdict": "bad", "other": [1, 2]},
]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.csv", "train.csv.gz"])
def test_records_in_every_format(tmp_path: Path, name: str) -> None:
    plain = tmp_path / name.removesuffix(".gz")
    if ".jsonl" in name:
        write_records(plain, RECORDS)
    else:
        with plain.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            writer = csv.DictWriter(file, ["verdict", "words", "name"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(RECORDS)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    expected = [{"id": r["name"], "text": r["words"], "label": r["verdict"]} for r in RECORDS]
    for path in (tmp_path, tmp_path / name):
        held_out = TextClassification(**{**vars(TASK), "validation_fraction": 1e-9})
        assert read(held_out, path) == expected


def test_tsv_and_numbers_as_labels_and_ids(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('label\ttext\n1\tso "he said\n\n0\tyes\n')
    task = TextClassification(labels=("0", "1"), validation_fraction=1e-9)
    assert read(task, tmp_path) == [
        {"id": "1", "text": 'so "he said', "label": "1"},
        {"id": "2", "text": "yes", "label": "0"},
    ]
    write_records(tmp_path / "own.jsonl", [{"id": 7, "text": "yes", "label": 1}, {"text": "no", "label": None}])
    assert labels(list(task.read_own(tmp_path / "own.jsonl"))) == [("7", "1"), ("2", None)]


def test_a_document_longer_than_csv_takes_by_itself(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\n{'long ' * 100_000},bad\n")
    task = TextClassification(labels=("bad", "good"), validation_fraction=1e-9)
    assert len(read(task, tmp_path)[0]["text"]) == 500_000


def test_validation_is_set_aside_where_it_has_no_file(tmp_path: Path) -> None:
    task = TextClassification(labels=("a", "b"), validation_fraction=0.3)
    write_records(tmp_path / "train.jsonl", [{"text": f"{i}", "label": "ab"[i % 2]} for i in range(10)])
    train, validation = read(task, tmp_path), read(task, tmp_path, "validation")
    assert len(validation) == 3 and sorted(int(e["text"]) for e in train + validation) == list(range(10))
    assert (train, validation) == (read(task, tmp_path), read(task, tmp_path, "validation"))
    write_records(tmp_path / "validation.jsonl", [{"text": "v", "label": "a"}])
    assert (len(read(task, tmp_path)), len(read(task, tmp_path, "validation"))) == (10, 1)
    write_records(tmp_path / "validation.old.jsonl", [{"text": "o", "label": "a"}])
    assert len(read(task, tmp_path, "validation")) == 1
    (tmp_path / "validation.jsonl").unlink()
    assert len(read(task, tmp_path, "validation")) == 3


def test_of_which_files_predict_takes_the_text() -> None:
    task, articles = TextClassification(labels=("a", "b")), Hyperpartisan()
    for name, is_own in (
        ("notes", False), ("notes.md", False), ("notes.2024", False), ("notes.txt", False), ("own.JSONL", True),
        ("own.csv.gz", True), ("own.json", True),
    ):  # fmt: skip
        assert task.is_own(Path(name)) is articles.is_own(Path(name)) is is_own, name
    assert articles.is_own(Path("articles.xml.gz")) and not task.is_own(Path("articles.xml"))


def test_a_line_is_one_line() -> None:
    assert as_line("two\n lines", "0.5", "a\ttab ") == "two lines\t0.5\ta tab"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"words": "a", "verdict": "good"}\n\n{"words": "b", "verdict": "godo"}\n',
            "record 2 of '.*': verdict is 'godo'; expected one of bad, good",
        ),
        ('{"words": " \\n", "verdict": "good"}', "record 1 of '.*': words is empty; expected a document"),
        ('{"words": "a", "verdict": "good"}\n{"words"', "record 2 of '.*' is no JSON (.*); expected a JSON object in "),
        ('["a", "good"]', "record 1 of '.*' is a list; expected a JSON object in each line"),
        ('{"text": "a", "verdict": "good"}', "record 1 of '.*' has no field 'words'; expected it beside 'text', 'verd"),
        ('{"words": ["a"], "verdict": "good"}', r"record 1 of '.*': words is \['a'\]; expected a text"),
        ('{"words": "a", "verdict": true}', "record 1 of '.*': verdict is True; expected a text"),
        ('{"words": "a"}', "record 1 of '.*' has no 'verdict'; expected one of bad, good"),
        (b"\xff\xfe", "'.*' is no UTF-8 (.*); expected text in UTF-8"),
    ],
)  # fmt: skip
def test_bad_json_lines(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{message.replace('(.*)', '[(].*[)]')}"):
        read(TASK, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("words,verdict\na,good\nb\n", "record 2 of '.*' has 1 columns; expected 2: words, verdict"),
        ("words,words\n", r"'.*' has the columns \['words', 'words'\]; expected a name for each, none twice"),
        ('words,verdict\n"a"b,good\n', r"record 1 of '.*' is damaged \(.*\); expected CSV"),
        ("text,verdict\na,good\n", "record 1 of '.*' has no field 'words'; expected it beside 'text', 'verdict'"),
        ("words,verdict\na,\n", "record 1 of '.*' has no 'verdict'; expected one of bad, good"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(InputError, match=f"^{message}"):
        read(TASK, tmp_path)


def test_bad_files_of_records(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="^split is 'train', for which data.path '.*' has no file; expected train.jsonl"
    ):
        read(TASK, tmp_path)
    write_records(tmp_path / "train.jsonl", RECORDS)
    with pytest.raises(
        InputError, match="^split is 'test', for which data.path '.*' has no file; expected test.jsonl or"
    ):
        read(TASK, tmp_path, "test")
    (tmp_path / "train.csv").write_text("words,verdict\n")
    with pytest.raises(InputError, match="^data.path '.*' has train.csv and train.jsonl; expected one of them"):
        read(TASK, tmp_path)
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(b'{"words": "a"}')[:-9])
    with pytest.raises(InputError, match=r"^'.*one.jsonl.gz' is damaged \(.*\); expected a file compressed with gzip"):
        list(TASK.read_own(tmp_path / "one.jsonl.gz"))
    with pytest.raises(
        InputError, match=r"^'.*one.pdf' is no file of records; expected one whose name ends in .jsonl, .c"
    ):
        list(TASK.read_own(tmp_path / "one.pdf"))
    with pytest.raises(InputError, match=r"^'.*none.csv' is no file; expected one with data"):
        list(TASK.read_own(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a",)}, r"labels is \('a',\); expected the names of at least two labels, such as neg,pos"),
        ({"labels": ("a", "a")}, r"labels is \('a', 'a'\); expected the names of at least two"),
        ({"positive_label": "c"}, "positive_label is 'c'; expected one of a, b"),
        ({"metric": "bleu"}, "metric is 'bleu'; expected one of accuracy, f1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; expected a number between 0 and 1"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        TextClassification(**{"labels": ("a", "b"), **fields})


# ---- IMDB ------------------------------------------------------------------------------------------------------------


def test_imdb(tmp_path: Path) -> None:
    folder = sets.aclimdb(tmp_path)
    archive = sets.archived(folder)
    for path in (folder, folder.parent, archive):
        train, validation, test = (read(Imdb(), path, split) for split in ("train", "validation", "test"))
        assert sorted(labels(train)) == [
            ("train/neg/1_2", "neg"),
            ("train/neg/2_2", "neg"),
            ("train/pos/1_9", "pos"),
            ("train/pos/2_9", "pos"),
        ]
        assert sorted(labels(validation)) == [("train/neg/0_2", "neg"), ("train/pos/0_9", "pos")]
        assert sorted(labels(test)) == [("test/neg/0_2", "neg"), ("test/pos/0_9", "pos")]
    assert {e["id"]: e["text"] for e in test}["test/pos/0_9"] == (
        "A pos review, number 0 of test.<br /><br />Über 2 hours."
    )


def test_imdb_in_bad_order(tmp_path: Path) -> None:
    folder = sets.aclimdb(tmp_path)

    def refuse(message: str, change: Callable[[Path], Any], split: str = "train") -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = shutil.copytree(folder, tmp_path / "copy")
        change(copy)
        for path in (copy, sets.archived(copy)):
            with pytest.raises(InputError, match=message):
                read(Imdb(), path, split)

    refuse("^data.path '.*' has no train/urls_pos.txt; expected the", lambda at: (at / "train/urls_pos.txt").unlink())
    with pytest.raises(InputError, match="^data.path '.*' has no train/urls_pos.txt; expected the data as it is dist"):
        Imdb().files(tmp_path / "copy", "train")
    refuse(
        "^data.path '.*' has no reviews in test/neg or test/pos;", lambda at: (at / "test/neg/0_2.txt").unlink(), "test"
    )
    refuse(
        "^train/neg/x.txt in '.*' is no review by its name; expec", lambda at: (at / "train/neg/x.txt").write_text(".")
    )
    refuse(
        "^train/neg/7_1.txt in '.*' has no line in urls_neg.txt;", lambda at: (at / "train/neg/7_1.txt").write_text(".")
    )
    refuse(
        "^line 1 of train/urls_neg.txt is 'x'; expected the addr",
        lambda at: (at / "train/urls_neg.txt").write_text("x"),
    )
    refuse(
        "^train/pos/1_9.txt in '.*': text is empty; expected a", lambda at: (at / "train/pos/1_9.txt").write_text(" ")
    )
    refuse("^train/pos/1_9.txt is no UTF-8 at byte 1;", lambda at: (at / "train/pos/1_9.txt").write_bytes(b"a\xff"))
    archive = sets.archived(folder)
    whole = archive.read_bytes()
    for size in (9, 100, 300, len(whole) // 2):
        archive.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"^data.path '.*' is damaged \(.*\); expected aclImdb_v1.tar.gz"):
            read(Imdb(), archive)
    for kind in ("xz", "bz2"):
        damaged = tmp_path / f"aclImdb.tar.{kind}"
        with tarfile.open(damaged, f"w:{kind}") as packed:
            packed.add(folder, "aclImdb")
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 255
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=r"^data.path '.*' is damaged \(.*\); expected aclImdb_v1.tar.gz"):
            read(Imdb(), damaged)
    with pytest.raises(InputError, match="^data.path is '.*/test'; expected aclImdb_v1.tar.gz, or the folder aclImdb"):
        Imdb().files(folder / "test", "train")


# ---- Hyperpartisan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_hyperpartisan(tmp_path: Path, compressed: bool) -> None:
    path = sets.semeval(tmp_path / "data", compressed=compressed)
    task = Hyperpartisan(split_file=sets.split_file(tmp_path / "split.json"))
    assert [labels(read(task, path, split)) for split in ("train", "validation", "test")] == [
        [("0000000", "false"), ("0000001", "true"), ("0000002", "true")],
        [("0000003", "false")],
        [("0000004", "true")],
    ]
    counts: collections.Counter[str] = collections.Counter()
    text = next(iter(task.read(path, "test", counts)))["text"]
    assert text == "Title & 0000004\nFirst link of 0000004.\nit\nLast of 0000004.".replace("\nit\n", "\nBetween\nit\n")
    list(task.read(path, "train", counts))
    assert counts == {"dropped, as they are in no part of the split": 1}
    own = path / (f"{ARTICLES}.xml.gz" if compressed else f"{ARTICLES}.xml")
    assert [label for _, label in labels(list(task.read_own(own)))] == [None] * 6


def test_the_split_of_the_library() -> None:
    parts = Hyperpartisan().split_ids()
    assert {name: len(ids) for name, ids in parts.items()} == {"train": 516, "validation": 64, "test": 65}
    assert sorted(i for ids in parts.values() for i in ids) == [f"{i:07}" for i in range(645)]


def test_bad_articles(tmp_path: Path) -> None:
    path = sets.semeval(tmp_path / "data")
    task = Hyperpartisan(split_file=sets.split_file(tmp_path / "split.json"))
    articles, truth = ((path / f"{name}.xml").read_text() for name in (ARTICLES, TRUTH))

    def refuse(message: str, changed_articles: str = articles, changed_truth: str = truth) -> None:
        (path / f"{ARTICLES}.xml").write_text(changed_articles)
        (path / f"{TRUTH}.xml").write_text(changed_truth)
        with pytest.raises(InputError, match=message):
            read(task, path)

    refuse(
        "^article 0000002 of '.*' is not in ground-.*; expected its", articles, truth.replace('id="0000002"', 'id="9"')
    )
    other = [text.replace('id="0000002"', 'id="0000009"') for text in (articles, truth)]
    refuse("^article 0000002 is in the split's part train, but not in '", *other)
    unknown = truth.replace('"false" id', '"no" id', 1)
    refuse("^article 0000000 of '.*': hyperpartisan is 'no'; expected false or true", articles, unknown)
    refuse("^article 2 of '.*' has the id 0000000, as another;", articles.replace('id="0000001"', 'id="0000000"'))
    refuse("^article 2 of '.*' has the id 'a b'; expected no spaces", articles.replace('id="0000001"', 'id="a b"'))
    refuse("^article 2 of '.*' has no id; expected one", articles.replace('id="0000001"', ""))
    cut = articles[: articles.index('<article id="0000002"') + 50]
    refuse(r"^'.*' is damaged after 2 articles \(.*\); expected XML", cut)
    encoded = f'<?xml version="1.0" encoding="foo"?>{articles.partition("?>")[2] or articles}'
    refuse(r"^'.*' is damaged after 0 articles \(unknown encoding: foo\); expected XML", encoded)
    (path / f"{TRUTH}.xml").unlink()
    with pytest.raises(
        InputError, match=f"^data.path is '.*', without {TRUTH}; expected a directory with it as .xml, "
    ):
        task.files(path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "task.split_file is '.*', which is no file; expected lists of ids in JSON"),
        (
            {"train": ["1"], "test": []},
            "'.*' is no split; expected lists of ids as train, validation, test, and nothing",
        ),
        ({"train": [1], "validation": [], "test": []}, "'.*' is no split; expected lists of ids"),
        (
            {"train": ["1", "2"], "validation": ["2"], "test": []},
            "'.*' has the id '2' twice; expected parts that are disj",
        ),
    ],
)
def test_bad_splits(tmp_path: Path, content: Any, message: str) -> None:
    if content is not None:
        (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{message}"):
        Hyperpartisan(split_file=str(tmp_path / "split.json")).split_ids()


def test_predictions_in_the_official_format(tmp_path: Path) -> None:
    prediction = {"id": "0000003", "label": "true", "scores": {"false": 0.25, "true": 0.75}, "characters": 9}
    Hyperpartisan().write_predictions(tmp_path / "out", [prediction], [])
    assert (tmp_path / "out").read_text() == "0000003 true 0.750000\n"
    Imdb().write_predictions(tmp_path / "out", [prediction], [])
    assert json.loads((tmp_path / "out").read_text()) == prediction


# ---- Kinds -----------------------------------------------------------------------------------------------------------


def test_which_task_is_meant() -> None:
    assert find_task("imdb") is Imdb
    assert find_task("longformer_jax.tasks.hyperpartisan:Hyperpartisan") is Hyperpartisan
    for kind in ("translation", "json:JSONDecoder", "no_such_module:Task", "longformer_jax.tasks.imdb:None", 5, None):
        with pytest.raises(
            InputError, match=r"^task.kind is .*; expected one of classification, coreference, .*or MODULE"
        ):
            find_task(kind)
