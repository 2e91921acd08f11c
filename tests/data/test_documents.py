import gzip
import itertools
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax.data import TextFiles, TfdsText, document_source
from longformer_jax.errors import InputError

TEXT = "First of one.\nSecond of one.\n\n\n  First of two \n \t\nOnly line of thréé."


def documents(source):
    """The lines of each document, in a list per document."""
    lines = list(source.lines())
    numbers = [line.document for line in lines]
    grouped = itertools.groupby(lines, key=lambda line: line.document)
    result = [[line.text for line in group] for _, group in grouped]
    assert sorted(set(numbers)) == list(range(len(result))) and numbers == sorted(numbers)
    positions = [line.position for line in lines]
    assert positions == sorted(positions) and all(0 < position <= source.size for position in positions)
    return result


def test_a_blank_line_ends_a_document(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    source = TextFiles(tmp_path / "text")
    assert documents(source) == [["First of one.", "Second of one."], ["  First of two "], ["Only line of thréé."]]
    assert source.name == "text" and source.size == len(TEXT.encode())
    assert list(source.lines())[-1].position == source.size


def test_a_file_can_be_a_document(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "next").write_text("\n\nAnother.\n")
    assert documents(TextFiles(tmp_path, boundary="file")) == [
        ["Another."],
        ["First of one.", "Second of one.", "  First of two ", "Only line of thréé."],
    ]


def test_a_document_ends_with_its_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"{name} without a line's end")
    assert documents(TextFiles(tmp_path)) == [["a without a line's end"], ["b without a line's end"]]


def test_line_endings_of_windows(tmp_path):
    (tmp_path / "text").write_bytes(b"one\r\ntwo\r\n\r\nthree\rthree\x0bthree\xc2\x85three\r\n")
    assert documents(TextFiles(tmp_path / "text")) == [["one", "two"], ["three\rthree\x0bthree\x85three"]]


def test_compressed_text(tmp_path):
    (tmp_path / "text.gz").write_bytes(gzip.compress(TEXT.encode() * 1000))
    (tmp_path / "text").write_bytes(TEXT.encode() * 1000)
    source = TextFiles(tmp_path / "text.gz")
    assert documents(source) == documents(TextFiles(tmp_path / "text"))
    assert source.size == (tmp_path / "text.gz").stat().st_size


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1).filter(lambda line: line.strip())


@settings(deadline=None, max_examples=50)
@given(
    files=st.lists(st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_what_is_written_is_read(tmp_path_factory, files):
    directory = tmp_path_factory.mktemp("documents")
    for number, of_file in enumerate(files):
        text = "\n\n".join("\n".join(lines) for lines in of_file)
        (directory / f"{number}").write_text(text, encoding="utf-8", newline="")
    assert documents(TextFiles(directory)) == [lines for of_file in files for lines in of_file]


def test_paths_are_files_directories_and_patterns(tmp_path, monkeypatch):
    for name in ("b/two.txt", "b/deep/three.txt", "a.txt", "c[1].txt", "b/.hidden", "b/.git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    a, c, deep, two = (tmp_path / name for name in ("a.txt", "c[1].txt", "b/deep/three.txt", "b/two.txt"))
    assert TextFiles(tmp_path).files == (a, deep, two, c)
    assert TextFiles(str(tmp_path / "**/*.txt")).files == (a, deep, two, c)
    assert TextFiles(str(tmp_path / "?.txt")).files == (a,)
    assert TextFiles([tmp_path / "c[1].txt", tmp_path / "b", a, str(tmp_path / "a*")]).files == (a, deep, two, c)
    monkeypatch.chdir(tmp_path / "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextFiles(["two.txt", "~/a.txt"]).files == (a, two)
    assert TextFiles([a, two]).name == tmp_path.name


def test_fingerprint_is_json_that_follows_the_files(tmp_path):
    file = tmp_path / "text"
    file.write_text("one")
    fingerprints = [TextFiles(file).fingerprint(), TextFiles(file, boundary="file").fingerprint()]
    assert json.loads(json.dumps(fingerprints[0])) == fingerprints[0] == TextFiles([file, file]).fingerprint()
    os.utime(file, ns=(0, 0))
    fingerprints.append(TextFiles(file).fingerprint())
    file.write_text("three")
    os.utime(file, ns=(0, 0))
    fingerprints.append(TextFiles(file).fingerprint())
    file.rename(tmp_path / "other")
    fingerprints.append(TextFiles(tmp_path / "other").fingerprint())
    assert len({json.dumps(fingerprint) for fingerprint in fingerprints}) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": []}, "^paths is empty; expected files"),
        ({"paths": "missing"}, "^paths has '.*missing', which matches no file; expected files"),
        ({"paths": ["text", "*.none"]}, r"^paths has '.*\*\.none', which matches no file"),
        ({"paths": "directory"}, "^paths has '.*directory', which holds no file"),
        ({"paths": ["text", "empty"]}, "^paths has '.*empty', which is empty; expected files with text"),
        ({"paths": "text", "boundary": "page"}, "^boundary is 'page'; expected one of blank_line, file$"),
    ],
)
def test_bad_paths(tmp_path, arguments, message):
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "empty").touch()
    (tmp_path / "directory").mkdir()
    paths = arguments.pop("paths")
    paths = str(tmp_path / paths) if isinstance(paths, str) else [str(tmp_path / path) for path in paths]
    with pytest.raises(InputError, match=message):
        TextFiles(paths, **arguments)


@pytest.mark.parametrize("compress", [False, True])
def test_text_that_is_no_utf8(tmp_path, compress):
    text = "naïve\n\nline\n".encode() + b"caf\xe9\n"
    file = tmp_path / ("text.gz" if compress else "text")
    file.write_bytes(gzip.compress(text) if compress else text)
    offset = text.index(b"\xe9")
    with pytest.raises(InputError, match=rf"text(\.gz)?' is no UTF-8 at byte {offset} .*; expected text in UTF-8$"):
        list(TextFiles(file).lines())


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(np.random.default_rng(0).integers(32, 127, 10_000, dtype=np.uint8).tobytes())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for damaged in (whole[:-20], bytes(flipped), b"no gzip at all"):
        (tmp_path / "text.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"text\.gz' is damaged \(.*\); expected text compressed with gzip"):
            list(TextFiles(tmp_path / "text.gz").lines())


class TinyNotes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "title": tfds.features.Text(), "rating": np.int64}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": f"Note {i}.\r\n\nIts thréé lines\n", "title": f"Title {i}", "rating": i}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Where tiny_notes is prepared."""
    directory = tmp_path_factory.mktemp("tfds")
    source = TfdsText("tiny_notes", data_dir=directory)
    assert source.size == 3
    return directory


def test_examples_of_tfds_are_documents(tfds_dir):
    expected = [[f"Note {i}.", "Its thréé lines"] for i in range(3)]
    source = TfdsText("tiny_notes", data_dir=tfds_dir)
    assert documents(source) == expected and source.name == "tiny_notes"
    assert documents(TfdsText("tiny_notes:1.0.0", data_dir=tfds_dir, split="validation")) == expected[:2]
    assert documents(TfdsText("tiny_notes", data_dir=tfds_dir, split="train[1:]")) == expected[1:]
    titles = TfdsText("tiny_notes", data_dir=tfds_dir, field="title")
    assert documents(titles) == [["Title 0"], ["Title 1"], ["Title 2"]]
    assert "tensorflow" not in sys.modules


def test_fingerprint_of_tfds(tfds_dir):
    options = [{}, {"split": "validation"}, {"split": "train[:2]"}, {"field": "title"}]
    fingerprints = [TfdsText("tiny_notes", data_dir=tfds_dir, **option).fingerprint() for option in options]
    assert len({json.dumps(fingerprint) for fingerprint in fingerprints}) == 4
    assert fingerprints[0] == TfdsText("tiny_notes:1.0.0", data_dir=str(tfds_dir)).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "tiny_nots"},
            "^dataset is 'tiny_nots'; expected one that TFDS has, .* .Dataset tiny_nots not found",
        ),
        ({"dataset": "no name!"}, "^dataset is 'no name!'; expected one that TFDS has"),
        ({"field": "rating"}, "^field is 'rating', no text feature of tiny_notes; expected text, title$"),
        ({"split": "dev"}, "^split is 'dev'; expected one of tiny_notes, train, validation, or"),
    ],
)
def test_bad_tfds_source(tfds_dir, arguments, message):
    source = TfdsText(**({"dataset": "tiny_notes", "data_dir": tfds_dir} | arguments))
    with pytest.raises(InputError, match=message):
        source.fingerprint()
    with pytest.raises(InputError, match=message):
        list(source.lines())


def test_tfds_in_the_format_of_tensorflow(tfds_dir, tmp_path):
    shutil.copytree(tfds_dir / "tiny_notes", tmp_path / "tiny_notes")
    info = tmp_path / "tiny_notes" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="^dataset is 'tiny_notes'; .* stored as ArrayRecord .*TFRECORD"):
        list(TfdsText("tiny_notes", data_dir=tmp_path).lines())


def test_tfds_that_cannot_be_prepared(tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(TinyNotes, "download_and_prepare", fail)
    with pytest.raises(
        InputError, match="^dataset is 'tiny_notes', which TFDS could not prepare here .No module named"
    ):
        list(TfdsText("tiny_notes", data_dir=tmp_path).lines())


def test_text_of_tfds_that_is_no_utf8(tfds_dir, monkeypatch):
    source = TfdsText("tiny_notes", data_dir=tfds_dir)
    monkeypatch.setitem(source.__dict__, "_examples", [{"text": b"fine"}, {"text": b"caf\xe9"}])
    with pytest.raises(InputError, match=r"^text of example 1 of tiny_notes \(train\) is no UTF-8 at byte 3; expected"):
        list(source.lines())


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in (("text", "\ufeff\nOne\ufeff.\n"), ("other", "\ufeffTwo.\n")):
        (tmp_path / name).write_text(content)
    (tmp_path / "packed.gz").write_bytes(gzip.compress("\ufeffThree.".encode()))
    assert documents(TextFiles(tmp_path)) == [["Two."], ["Three."], ["One\ufeff."]]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("", "^paths is ''; expected a path$"),
        (5, "^paths is 5; expected a path, or a list of paths$"),
        (b"text", "^paths is b'text'; expected a path, or a list of paths$"),
        ([5], "^paths is 5; expected a path$"),
    ],
)
def test_paths_that_are_none(paths, message):
    with pytest.raises(InputError, match=message):
        TextFiles(paths)


@pytest.mark.parametrize("source", [None, 5])
def test_sources_that_are_none(source):
    with pytest.raises(InputError, match=rf"^source is {source}; expected paths or a DocumentSource$"):
        document_source(source)


def test_short_forms(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    path = tmp_path / "text"
    assert document_source("tfds:wiki40b/en") == TfdsText("wiki40b/en")
    assert document_source(path) == TextFiles(path) and document_source([str(path)]) == TextFiles([str(path)])
    source = TextFiles(path, boundary="file")
    assert document_source(source) is source
