"""Examples as rows: what is in them, how they are kept, what is counted, and how they become batches."""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.data.packing import Packer
from longformer_jax.tasks import features as features_module
from longformer_jax.tasks.base import Example, Field
from longformer_jax.tasks.classification import TextClassification
from longformer_jax.tasks.features import FeatureSet, load_features, make_features
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks.sets import write_records

TASK = TextClassification(labels=("bad", "good"), validation_fraction=1e-9)
TEXTS = ["the quick brown fox", "jam", "a lazy dog " * 10, "Üf\n<s>"]
EXAMPLES = [{"id": f"e{i}", "text": text, "label": "good" if i % 2 else "bad"} for i, text in enumerate(TEXTS)]


def packer(length: int = 16) -> Packer:
    return Packer.of(tiny_tokenizer(), length)


def encode(text: str) -> Any:
    return packer().tokenizer.encode(text, add_special_tokens=False)


def test_rows_of_documents() -> None:
    made = make_features(TASK, EXAMPLES, packer(), "mine")
    assert (len(made), made.name, made.counts) == (4, "mine", {"cut at 16 tokens": 1})
    assert made.examples == [{"id": e["id"], "label": e["label"]} for e in EXAMPLES]
    for i, text in enumerate(TEXTS):
        encoding = encode(text)
        row = made.row(i)
        assert row["input_ids"].tolist() == [0, *encoding.ids[:14], 2]
        assert row["label"].tolist() == [i % 2]
        assert row["characters"].tolist() == [encoding.offsets[:14][-1][1]]  # where the model stops to read
        if len(encoding.ids) <= 14:
            assert row["characters"].tolist() == [len(text)]
    assert made.columns["input_ids"].values.dtype == np.uint16
    assert 0 not in made.row(3)["input_ids"][1:]  # "<s>" in a text is three characters


def test_batches_are_filled_up() -> None:
    made = make_features(TASK, EXAMPLES, packer(), "mine")
    batch = made.batch([1, 0], 12, ["input_ids", "label"])
    assert batch.keys() == {"input_ids", "label"}
    for padded, row in zip(batch["input_ids"], (1, 0), strict=True):
        ids = made.row(row)["input_ids"]
        assert padded.tolist() == [*ids, *[1] * (12 - len(ids))]
    assert batch["label"].tolist() == [[1], [0]]


def test_some_of_the_examples_are_from_all_parts() -> None:
    """Of an example with several rows all of them, and what belongs to it."""
    made = make_features(Pieces(labels=("bad", "good")), EXAMPLES, packer(), "mine")
    assert made.some(made.size) is made
    for count in range(1, made.size):
        some, chosen = made.some(count), [i * made.size // count for i in range(count)]
        assert (some.size, some.counts) == (count, {})
        assert some.examples == [made.examples[i] for i in chosen]
        rows = [row for row, owner in enumerate(made.owners) if owner in chosen]
        assert [chosen[owner] for owner in some.owners] == made.owners[rows].tolist()
        assert len(some) == len(rows)
        for index, row in enumerate(rows):
            for name, array in some.row(index).items():
                np.testing.assert_array_equal(array, made.row(row)[name])


def test_documents_without_a_label() -> None:
    made = make_features(TASK, [{**example, "label": None} for example in EXAMPLES], packer(), "mine")
    assert made.row(0)["label"].tolist() == [] and made.row(0)["input_ids"][0] == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unlabelled(TextClassification):
    """Reads what has no label, as `read_own` does; and a folder, beside the file."""

    def files(self, path: Path, split: str) -> list[Path]:
        return [*super().files(path, split), path / "more"]

    def read(self, path: Path, split: str, counts: Any) -> Iterator[Example]:
        yield from self.read_own(path / f"{split}.jsonl")


def test_what_trains_and_validates_is_labelled(data: Path) -> None:
    (data / "more" / "deep").mkdir(parents=True)
    task = Unlabelled(labels=("bad", "good"), validation_fraction=1e-9)
    write_records(data / "test.jsonl", [{"text": "the fox"}])
    assert len(load(data, task, split="test")) == 1
    load(data, task)
    kept = {*(data.parent / "cache").iterdir()}
    (data / "more" / "deep" / "file").write_text("What is in folders counts, too.")
    load(data, task)
    assert len({*(data.parent / "cache").iterdir()} - kept) == 1
    write_records(data / "train.jsonl", [EXAMPLES[0], {"id": "no", "text": "a"}])
    with pytest.raises(InputError, match="^'no' in '.*data' has no label; expected one in all of train$"):
        load(data, task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces(TextClassification):
    """Each text in pieces of six tokens, with the characters of each token, and no row of a text of one token."""

    def rows(self, example: Example, encodings: Sequence[Any], packer: Packer, counts: Any) -> Iterator[dict[str, Any]]:
        (encoding,) = encodings
        if len(encoding.ids) == 1:
            counts["without a row"] += 1
            return
        for start in range(0, len(encoding.ids), 6):
            yield {
                "input_ids": encoding.ids[start : start + 6],
                "starts": [a for a, _ in encoding.offsets[start : start + 6]],
                "spans": [start] * min(start, 4),
            }

    def fields(self) -> dict[str, Field]:
        return {"input_ids": Field(), "starts": Field(for_model=False), "spans": Field("int16", length=4, fill=-1)}


def test_a_model_that_has_diverged_does_not_answer() -> None:
    made = make_features(TASK, EXAMPLES, packer(), "mine")
    with pytest.raises(InputError, match="^the scores of document 'e0' are no numbers; expected a model that has not"):
        TASK.decode(made.examples[0], [made.row(0)], [np.array([0.5, np.nan])])


def test_a_task_may_make_several_rows_of_an_example_or_none() -> None:
    examples = [*EXAMPLES, {"id": "short", "text": "x", "label": "bad"}]
    made = make_features(Pieces(labels=("bad", "good")), examples, packer(), "mine")
    counts = [0 if len(encode(e["text"]).ids) == 1 else -(-len(encode(e["text"]).ids) // 6) for e in examples]
    assert counts[-1] == 0 and max(counts) > 2
    assert collections.Counter(made.owners.tolist()) == {i: n for i, n in enumerate(counts) if n}
    assert made.size == len(made.examples) == 5 and made.counts == {"without a row": counts.count(0)}
    long = np.flatnonzero(made.owners == 2)
    np.testing.assert_array_equal(np.concatenate([made.row(i)["input_ids"] for i in long]), encode(TEXTS[2]).ids)
    text = TEXTS[2]
    assert [text[made.row(i)["starts"][0]] for i in long] == [
        text[encode(text).offsets[i * 6][0]] for i in range(len(long))
    ]
    batch = made.batch(long[:2], 8, ["input_ids", "spans"])
    assert batch["spans"].tolist() == [[-1] * 4, [6, 6, 6, 6]] and batch["spans"].dtype == np.int16


def test_what_no_row_may_be() -> None:
    class NoStarts(Pieces):
        def rows(self, *args: Any) -> Iterator[dict[str, Any]]:
            yield {"input_ids": [0]}

    class TooMany(Pieces):
        def rows(self, *args: Any) -> Iterator[dict[str, Any]]:
            yield {"input_ids": [0], "starts": [0], "spans": range(5)}

    for task, message in (
        (NoStarts, "a row has no starts; expected all of"),
        (TooMany, "a row has 5 entries of spans"),
    ):
        with pytest.raises(ValueError, match=message):
            make_features(task(labels=("bad", "good")), EXAMPLES, packer(), "mine")
    with pytest.raises(InputError, match="^id 'e0' is of two documents in mine; expected one of its own for each$"):
        make_features(TASK, EXAMPLES[:1] * 2, packer(), "mine")
    for change, message in (
        ({"text": "a \ud83d b"}, r"^'e0' has '\\ud83d' at character 2 of a text, which is half of a character; "),
        ({"id": "e\ud83d"}, r"^'e\\ud83d' has '\\ud83d' at character 1 of its id, which is half of a character; "),
    ):
        with pytest.raises(InputError, match=message):
            make_features(TASK, [{**EXAMPLES[0], **change}], packer(), "mine")
    with pytest.raises(InputError, match="^mine has no documents; expected at least one$"):
        make_features(TASK, [], packer(), "mine")


# ---- The cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_records(folder / "train.jsonl", EXAMPLES)
    return folder


def load(data: Path, task: TextClassification = TASK, length: int = 16, split: str = "train") -> FeatureSet:
    return load_features(task, data, split, packer(length), data.parent / "cache")


def same(a: FeatureSet, b: FeatureSet) -> bool:
    return all(
        np.array_equal(a.columns[name].values, b.columns[name].values)
        and np.array_equal(a.columns[name].starts, b.columns[name].starts)
        for name in a.columns
    )


def test_features_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(data)
    assert same(first, make_features(TASK, EXAMPLES, packer(), "mine"))
    assert first.name == "data (train)"
    monkeypatch.setattr(features_module, "_write", None)  # nothing is made again
    again = load(data)
    assert same(first, again)
    assert (again.fingerprint, again.counts, again.examples) == (
        first.fingerprint,
        {"cut at 16 tokens": 1},
        first.examples,
    )
    assert isinstance(again.columns["input_ids"].values, np.memmap)


def test_a_file_of_validation_changes_what_is_trained_with(data: Path) -> None:
    """Without one a part of training is set aside; neither is what the cache has of the other."""
    task = dataclasses.replace(TASK, validation_fraction=0.5)
    for _ in range(2):
        assert len(load(data, task)) + len(load(data, task, split="validation")) == len(EXAMPLES)
        write_records(data / "validation.jsonl", EXAMPLES[:1])
        assert (len(load(data, task)), len(load(data, task, split="validation"))) == (len(EXAMPLES), 1)
        (data / "validation.jsonl").unlink()


def test_what_changes_features_makes_others(data: Path) -> None:
    first = load(data)
    other_task = dataclasses.replace(TASK, labels=("good", "bad"))
    assert len({first.fingerprint, load(data, length=12).fingerprint, load(data, other_task).fingerprint}) == 3
    assert len(list((data.parent / "cache").iterdir())) == 3
    moved = data.rename(data.parent / "moved")
    assert load(moved).fingerprint == first.fingerprint  # of the content alone
    write_records(moved / "train.jsonl", EXAMPLES[:3])
    assert len(load(moved)) == 3


@pytest.mark.parametrize("file", ["input_ids.bin", "label.starts", "examples.jsonl", "manifest.json"])
def test_what_is_damaged_is_made_again(data: Path, file: str) -> None:
    first, made = load(data), make_features(TASK, EXAMPLES, packer(), "mine")
    (path,) = (data.parent / "cache").glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with (path.parent / "input_ids.bin").open("rb") as mapped:
        assert same(load(data), made)
        assert os.fstat(mapped.fileno()).st_nlink == 0  # what another process has mapped is not written to
    assert load(data).fingerprint == first.fingerprint
    path.unlink()
    assert same(load(data), made)


def test_a_failed_build_leaves_nothing_to_open(data: Path) -> None:
    write_records(data / "train.jsonl", [*EXAMPLES, {"text": "a", "label": "?"}])
    with pytest.raises(InputError, match="^record 5 of '.*': label is '[?]'; expected one of bad, good"):
        load(data)
    assert not list((data.parent / "cache").glob("*/manifest.json"))


def test_no_such_split(data: Path) -> None:
    with pytest.raises(InputError, match="^split is 'dev', which classification does not have; expected one of train,"):
        load(data, split="dev")


def test_a_cache_that_cannot_be(data: Path) -> None:
    (data.parent / "cache").write_text("a file")
    with pytest.raises(InputError, match="^cache_dir is '.*/cache', which cannot be written to"):
        load(data)


def test_kept_examples_are_json(data: Path) -> None:
    load(data)
    (path,) = (data.parent / "cache").glob("*/examples.jsonl")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [e["id"] for e in EXAMPLES]
