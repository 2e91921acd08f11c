"""What a user calls a path, and what is no JSON object."""

import errno
import fcntl
import os
import re
import socket
from pathlib import Path

import pytest

from longformer_jax import InputError, load_pretrained
from longformer_jax.checkpoints import has_checkpoint
from longformer_jax.data import load_corpus
from longformer_jax.evaluation import evaluate
from longformer_jax.files import (
    check_output,
    check_shared,
    locked,
    read_json,
    replacing,
    user_cache,
    user_path,
    write_text,
)
from longformer_jax.training import ExperimentConfig, train
from longformer_jax.weights import load_tokenizer
from tests.training.tiny import CONFIG


def test_a_tilde_is_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("path", "~/a/b") == tmp_path / "a" / "b"
    assert user_path("path", Path("a")) == Path("a")
    assert user_path("path", "C:/models/x") == Path("C:/models/x")
    CONFIG.save(tmp_path)
    assert ExperimentConfig.load("~") == CONFIG


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-of-that-name/x", "is '~nobody-of-that-name/x', whose user has no home here; expected another path"),
        ("a\0b", r"is 'a\\x00b'; expected a path without a null character"),
        (3, "is 3; expected a path"),
        ("gs://bucket/run", "is 'gs://bucket/run'; expected a path of this machine's file system"),
        (Path("s3://bucket/run"), "is 's3:/bucket/run'; expected a path of this machine's file system"),
    ],
)
@pytest.mark.parametrize(
    ("field", "use"),
    [
        ("workdir", lambda path: train(CONFIG, path)),
        ("workdir", evaluate),
        ("workdir", has_checkpoint),
        ("path", lambda path: load_corpus("text_file", path=path)),
        ("path", lambda path: load_corpus("enwik8", path=path)),
        ("data_dir", lambda path: load_corpus("enwik8", data_dir=path)),
        ("source", load_pretrained),
        ("source", load_tokenizer),
    ],
)
def test_what_can_be_no_path(field: str, use, path, message: str) -> None:
    with pytest.raises(InputError, match=f"^{field} {message}$"):
        use(path)


def test_a_workdir_that_is_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^workdir is '/.*\\udcff', which is no UTF-8; expected a name in UTF-8$"):
        train(CONFIG, tmp_path / "run\udcff")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 200_000, b'{"a":' * 200_000])
def test_what_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"^/.*/file\.json is damaged.*; expected a JSON object$"):
        read_json(file)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file(tmp_path: Path, make) -> None:
    make(tmp_path / "file.json")
    with pytest.raises(InputError, match=r"^'/.*/file\.json' is there, but is no file; expected a file$"):
        read_json(tmp_path / "file.json")


def test_links_and_devices_stay(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "target"]


@pytest.mark.parametrize("place", ["empty", "link", "."])
def test_an_empty_directory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """And not replaced: somebody may be in it, or something be mounted there."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "link").symlink_to("empty")
    number = empty.stat().st_ino
    monkeypatch.chdir(empty if place == "." else tmp_path)
    with replacing(Path(place)) as partial:
        (partial / "folder").mkdir(parents=True)
        (partial / "folder" / "file").touch()
    assert [path.relative_to(empty).as_posix() for path in empty.rglob("file")] == ["folder/file"]
    assert empty.stat().st_ino == number and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def test_what_is_to_be_written_later(tmp_path: Path) -> None:
    check_output("predictions", tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    check_output("predictions", Path("/dev/null"))
    with pytest.raises(InputError, match=r"^predictions is '/.*/new', which is a directory; expected a file$"):
        check_output("predictions", tmp_path / "new")
    with pytest.raises(OSError):
        check_output("predictions", Path("/proc/file"))


def test_nobody_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    with pytest.raises(InputError, match="^cache_dir is None, and there is no home to keep a cache in; expected a dir"):
        user_cache()


def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "file" / "precious").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file" / "precious").exists()


class RustError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (RustError("Error while serializing: I/O error: File too large (os error 27)"), errno.EFBIG),
        (ValueError("OUT_OF_RANGE: Failed writing [os_error_code='27']"), errno.EFBIG),
    ],
)
def test_what_the_system_refuses_names_the_file(tmp_path: Path, raised: Exception, number: int) -> None:
    write_text(tmp_path / "file", "before")
    with pytest.raises(OSError) as found, replacing(tmp_path / "file"):
        raise raised
    assert (found.value.errno, found.value.filename) == (number, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "before"
    with pytest.raises(RustError), replacing(tmp_path / "file"):
        raise RustError("something else")
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "file"):
        (tmp_path / "none").read_text()
    assert found.value.filename == str(tmp_path / "none")


def test_a_lock_keeps_others_out_while_it_is_held(tmp_path: Path) -> None:
    holder = re.escape(f"process {os.getpid()} on {socket.gethostname()} since 2") + "[-0-9:. ]+"
    for directory in (tmp_path / "new", tmp_path):
        with locked("workdir", directory) as name:
            assert re.fullmatch(holder, name)
            check_shared("workdir", directory, name)
            message = f"^workdir is '{directory}', which is in use by {holder}; expected another directory$"
            with pytest.raises(InputError, match=message), locked("workdir", directory):
                pass
    (tmp_path / ".lock").write_text("process 1 on host")  # what a killed process leaves
    with locked("workdir", tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_another_directory_of_the_same_name_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longformer_jax.files._SHARED_WITHIN", 0.2)
    message = (
        "^workdir is '.*', which is not the directory of process 1 on a; expected one that all processes of a run sh"
    )
    with pytest.raises(InputError, match=message):
        check_shared("workdir", tmp_path, "process 1 on a")
    with locked("workdir", tmp_path), pytest.raises(InputError, match=message):
        check_shared("workdir", tmp_path, "process 1 on a")


def test_a_lock_that_the_file_system_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked("workdir", tmp_path):
        pass


def test_a_new_directory_goes_with_what_failed_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^wrong$"), locked("workdir", tmp_path / "empty"):
        raise InputError("wrong")
    with pytest.raises(InputError, match="^wrong$"), locked("workdir", tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
        raise InputError("wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
