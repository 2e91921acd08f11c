import hashlib
import http.server
import logging
import shutil
import socket
import threading
import zipfile
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from longformer_jax.data import load_corpus, train_batches
from longformer_jax.data.tfds_builders import Enwik8, LargeText, Text8
from longformer_jax.errors import InputError

TEXT = np.random.default_rng(0).integers(0, 256, 830_007, dtype=np.uint8).tobytes()
SPLIT_SIZES = {"train": 800_000, "validation": 20_003, "test": 10_004}
BUILDERS = {"enwik8": Enwik8, "text8": Text8}


@pytest.fixture(autouse=True)
def small_text(monkeypatch):
    """Both data sets, in their own code, but 830,007 bytes long."""
    monkeypatch.setattr(LargeText, "SPLIT_SIZES", SPLIT_SIZES)
    for builder in BUILDERS.values():
        monkeypatch.setattr(builder, "MD5", hashlib.md5(TEXT).hexdigest())
        monkeypatch.setattr(builder, "URL", "http://127.0.0.1:9/no-download-expected.zip")


@pytest.fixture
def manual(tmp_path):
    directory = tmp_path / "manual"
    directory.mkdir()
    return directory


@pytest.fixture
def prepared(tmp_path, manual):
    """enwik8, prepared in `tmp_path`; gives the directory of its records."""
    (manual / "enwik8").write_bytes(TEXT)
    load_corpus("enwik8", path=manual, data_dir=tmp_path)
    return tmp_path / "enwik8" / "1.0.0"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory served at http://127.0.0.1:PORT, from which enwik8 is downloaded."""
    directory = tmp_path / "site"
    directory.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Enwik8, "URL", f"http://127.0.0.1:{server.server_port}/enwik8.zip")
    yield directory
    server.shutdown()
    server.server_close()


def write_zip(file, text, member="enwik8"):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)


def assert_is_the_text(corpus):
    assert {name: len(split) for name, split in corpus.splits.items()} == SPLIT_SIZES
    assert b"".join(split.tobytes() for split in corpus.splits.values()) == TEXT


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zip"])
@pytest.mark.parametrize("name", BUILDERS)
def test_from_a_manual_directory(name, packed, tmp_path, manual):
    if packed:
        write_zip(manual / f"{name}.zip", TEXT, member=name)
    else:
        (manual / name).write_bytes(TEXT)
    corpus = load_corpus(name, path=manual, data_dir=tmp_path, download=False)
    assert_is_the_text(corpus)
    assert corpus.name == name and corpus.vocab_size == 256
    for split in corpus.splits.values():
        assert isinstance(split, np.memmap) and split.dtype == np.uint8 and not split.flags.writeable
    batch = next(train_batches(corpus.split("test"), sequence_length=10_003, batch_size=1, seed=0))
    assert batch.tobytes() == TEXT[-10_004:]


def test_from_the_manual_directory_of_tfds(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    write_zip(manual / "enwik8.zip", TEXT)
    assert_is_the_text(load_corpus("enwik8", data_dir=tmp_path))


def test_a_home_directory(tmp_path, manual, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (manual / "text8").write_bytes(TEXT)
    assert_is_the_text(load_corpus("text8", path="~/manual", data_dir="~/data"))
    assert (tmp_path / "data" / "text8" / "1.0.0" / "text8.bin").is_file()


def test_the_data_set_serves_tfds_alone(prepared):
    for builder in (tfds.builder_from_directory(prepared), tfds.builder("enwik8", data_dir=prepared.parents[1])):
        records: Any = builder.as_data_source()
        assert {name: len(split) for name, split in records.items()} == {"train": 8, "validation": 1, "test": 1}
        assert records["train"][1]["bytes"].dtype == np.uint8
        assert records["train"][1]["bytes"].tobytes() == TEXT[100_000:200_000]
        text = b"".join(record["bytes"].tobytes() for split in SPLIT_SIZES for record in records[split])
        assert text == TEXT
    last: Any = tfds.data_source("enwik8", split="train[7:]", data_dir=prepared.parents[1])
    assert [record["bytes"].tobytes() for record in last] == [TEXT[700_000:800_000]]


def test_prepared_data_needs_neither_network_nor_manual_directory(prepared, tmp_path, manual):
    shutil.rmtree(manual)
    before = (prepared / "enwik8.bin").stat().st_mtime_ns
    assert_is_the_text(load_corpus("enwik8", data_dir=tmp_path, download=False))
    assert (prepared / "enwik8.bin").stat().st_mtime_ns == before


def test_downloaded(site, tmp_path):
    write_zip(site / "enwik8.zip", TEXT)
    assert_is_the_text(load_corpus("enwik8", data_dir=tmp_path / "data"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT[:-1] + b"\0", "holds a text with MD5 [0-9a-f]{32}; expected [0-9a-f]{32}, that of enwik8"),
        (TEXT[:-1], "holds 830,006 bytes; expected the 830,007 of enwik8"),
        (None, "is damaged .*; expected an archive of enwik8"),
    ],
    ids=["other bytes", "short", "no zip"],
)
def test_a_bad_download_is_refused_and_not_kept(content, message, site, tmp_path):
    if content is None:
        (site / "enwik8.zip").write_text("<html>Please log in</html>")
    else:
        write_zip(site / "enwik8.zip", content)
    with pytest.raises(InputError, match="http://.*/enwik8.zip " + message):
        load_corpus("enwik8", data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "enwik8" / "1.0.0").exists()
    assert not [*(tmp_path / "data" / "downloads").rglob("*.zip*")]

    write_zip(site / "enwik8.zip", TEXT)
    assert_is_the_text(load_corpus("enwik8", data_dir=tmp_path / "data"))


def test_a_failed_download(site, tmp_path):
    with pytest.raises(InputError, match=r"enwik8 could not be downloaded from http.*enwik8.zip \(.*404"):
        load_corpus("enwik8", data_dir=tmp_path / "data")


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match="enwik8 could not be downloaded from http.*; expected the network, or a path"):
        load_corpus("enwik8", data_dir=tmp_path)


def test_a_server_that_says_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("longformer_jax.data.tfds_builders._PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/enwik8.zip"
        monkeypatch.setattr(Enwik8, "URL", url)
        message = rf"^enwik8 could not be downloaded from {url} \(.*\); expected the network, or a path that h"
        with pytest.raises(InputError, match=message):
            load_corpus("enwik8", data_dir=tmp_path)
    assert f"downloading {url}\n" in capsys.readouterr().err


def test_a_name_that_is_looked_up_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("longformer_jax.data.tfds_builders._PATIENCE", 0.2)
    never = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: never.wait())
    with pytest.raises(InputError, match=r"^enwik8 could not be downloaded"):
        load_corpus("enwik8", data_dir=tmp_path)
    never.set()


def write_other_text(manual):
    (manual / "enwik8").write_bytes(TEXT[::-1])


def write_short_text(manual):
    (manual / "enwik8").write_bytes(TEXT[:100_000])


def write_short_zip(manual):
    write_zip(manual / "enwik8.zip", TEXT)
    whole = (manual / "enwik8.zip").read_bytes()
    (manual / "enwik8.zip").write_bytes(whole[: len(whole) // 2])


def write_damaged_zip(manual):
    write_zip(manual / "enwik8.zip", TEXT)
    damaged = bytearray((manual / "enwik8.zip").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (manual / "enwik8.zip").write_bytes(damaged)


def write_zip_of_something_else(manual):
    write_zip(manual / "enwik8.zip", TEXT, member="text8")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_other_text, "manual/enwik8 holds a text with MD5 [0-9a-f]{32}; expected [0-9a-f]{32}"),
        (write_short_text, "manual/enwik8 holds 100,000 bytes; expected the 830,007 of enwik8"),
        (write_short_zip, "manual/enwik8.zip is damaged .*; expected an archive of enwik8"),
        (write_damaged_zip, "manual/enwik8.zip is damaged .*; expected an archive of enwik8"),
        (write_zip_of_something_else, "manual/enwik8.zip is damaged .*; expected an archive of enwik8"),
        (lambda manual: None, "path is '.*manual'; expected a directory that holds enwik8 or enwik8.zip"),
    ],
)
def test_a_bad_manual_directory(write, message, tmp_path, manual):
    write(manual)
    with pytest.raises(InputError, match=message):
        load_corpus("enwik8", path=manual, data_dir=tmp_path / "data")
    assert not (tmp_path / "data" / "enwik8" / "1.0.0").exists()


def test_download_false_without_data(tmp_path):
    with pytest.raises(InputError, match="download is False, and text8 is not prepared in .*text8/1.0.0; expected"):
        load_corpus("text8", data_dir=tmp_path, download=False)


@pytest.mark.parametrize("damage", [lambda text: text[:-1], lambda text: text[:-1] + b"\0"], ids=["short", "changed"])
def test_a_damaged_file_of_bytes_is_written_again(damage, prepared, tmp_path, caplog):
    file = prepared / "enwik8.bin"
    file.write_bytes(damage(TEXT))
    with caplog.at_level(logging.WARNING):
        assert_is_the_text(load_corpus("enwik8", data_dir=tmp_path))
    assert "enwik8.bin is damaged; writing it again" in caplog.text
    assert [path.name for path in prepared.glob("enwik8.bin*")] == ["enwik8.bin"]


def test_records_that_cannot_be_read_are_refused(prepared, tmp_path):
    (prepared / "enwik8.bin").unlink()
    records = prepared / "enwik8-train.array_record-00000-of-00001"
    records.write_bytes(records.read_bytes()[:400_000])
    with pytest.raises(InputError, match="the records in .*1.0.0 are damaged; delete that directory"):
        load_corpus("enwik8", data_dir=tmp_path)


def test_records_of_another_text_are_refused(tmp_path, manual, monkeypatch):
    other = tmp_path / "other"
    (manual / "enwik8").write_bytes(TEXT[::-1])
    with monkeypatch.context() as patch:
        patch.setattr(Enwik8, "MD5", hashlib.md5(TEXT[::-1]).hexdigest())
        load_corpus("enwik8", path=manual, data_dir=other)
    (other / "enwik8/1.0.0/enwik8.bin").unlink()
    with pytest.raises(InputError, match="the records in .*1.0.0 are damaged; delete that directory"):
        load_corpus("enwik8", data_dir=other)


def test_a_second_process_that_prepares_first_does_no_harm(tmp_path, manual, monkeypatch):
    (manual / "enwik8").write_bytes(TEXT)
    generate = Enwik8._generate_examples

    def generate_late(self, data):
        monkeypatch.setattr(Enwik8, "_generate_examples", generate)
        load_corpus("enwik8", path=manual, data_dir=tmp_path)
        yield from generate(self, data)

    monkeypatch.setattr(Enwik8, "_generate_examples", generate_late)
    assert_is_the_text(load_corpus("enwik8", path=manual, data_dir=tmp_path))
    assert [path.name for path in (tmp_path / "enwik8").iterdir()] == ["1.0.0"]
