"""Names of files, JSON from outside, and files and directories that are written as a whole or not at all."""

import datetime
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from longformer_jax.errors import InputError

_LOCK = ".lock"
# Of what is read into memory in one piece: more than any document, line or tokenizer in use has.
_MOST_BYTES = 2**30
_SHARED_WITHIN = 5.0  # seconds, for a file to be seen from another machine
# How libraries that are not written in Python tell what the system refused them: in Rust, and TensorStore for Orbax.
_OS_ERROR = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")


def user_path(field: str, path: str | os.PathLike[str]) -> Path:
    """The path that a user means, ~ being a home; raises InputError naming `field` where it can be none."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise InputError(f"{field} is {path!r}; expected a path")
    if not text:
        raise InputError(f"{field} is ''; expected a path")
    if "\0" in text:
        raise InputError(f"{field} is {text!r}; expected a path without a null character")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # pathlib makes one slash of two; C:/ is a drive of Windows
        raise InputError(f"{field} is {text!r}; expected a path of this machine's file system")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{field} is {text!r}, whose user has no home here; expected another path") from None


def user_cache() -> Path:
    """Where the library keeps what it can make again: $XDG_CACHE_HOME/longformer_jax, or ~/.cache/longformer_jax.

    Raises InputError where the user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longformer_jax"
    except RuntimeError:
        raise InputError(
            "cache_dir is None, and there is no home to keep a cache in; expected a directory, or one in XDG_CACHE_HOME"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises InputError where there is none in it, and OSError where it cannot be read."""
    check_kinds(path)
    return parse_json(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """What is in a file, which may have a GiB; raises InputError where it has more."""
    with path.open("rb") as file:
        return read_stream(file, str(path), path.stat().st_size)


def read_stream(file: IO[bytes], name: str, size: int = 0) -> bytes:
    """As `read_file`, of what is open, by its name in a sentence, and its size, where that is known."""
    content = b"" if size > _MOST_BYTES else file.read(_MOST_BYTES + 1)
    if max(size, len(content)) > _MOST_BYTES:
        raise InputError(f"{name} has more than {_MOST_BYTES:,} bytes; expected at most as many")
    return content


def read_lines[T: (str, bytes)](file: IO[T], name: str) -> Iterator[T]:
    """The lines of a file, each of which may have a GiB; raises InputError, calling it `name`, where one has more."""
    while line := file.readline(_MOST_BYTES + 1):
        if len(line) > _MOST_BYTES:
            raise InputError(f"{name} has a line of more than {_MOST_BYTES:,} bytes; expected shorter ones")
        yield line


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `content`; raises InputError, calling it `name`, where it is anything else."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested too deep
        raise InputError(f"{name} is damaged ({error}); expected a JSON object") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} is damaged; expected a JSON object")
    return values


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block in which what the system refuses is an OSError that names a file, `path` where it would name none."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None or (number := error_number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def error_number(error: Exception) -> int | None:
    """The number of what the system refused, as Python or a library tells it; None where it is something else."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path`, for a file or a directory that takes its place when the block ends, unless by an error.

    A link stays, and what it points to is replaced. A device or a pipe is written to as it is.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with naming(path):
            yield path
        return
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path):
            yield partial
        if path.is_dir() and partial.is_dir():  # only a file is replaced in one go
            if not any(path.iterdir()):  # it may be where somebody is, or where something is mounted, and stays
                for entry in list(partial.iterdir()):
                    shutil.move(entry, path / entry.name)
                return
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        with suppress(OSError):  # what is left of it goes the next time
            _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Writes a file."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_kinds(*files: Path, directories: Sequence[Path] = ()) -> None:
    """Raises InputError where something is there that is no file, such as a pipe, or no directory."""
    for kind, paths, right in (("file", files, Path.is_file), ("directory", directories, Path.is_dir)):
        for path in paths:
            if path.exists() and not right(path):
                raise InputError(f"{str(path)!r} is there, but is no {kind}; expected a {kind}")


@contextmanager
def locked(field: str, directory: Path) -> Iterator[str]:
    """Keeps other processes that ask for it out of a directory, which is made if need be; yields what its file says.

    The lock goes with the process that holds it, however that ends. Where the file system has no locks, nobody is kept
    out. A directory that was new, and is empty at the end, is removed.

    Raises:
      InputError: another process has the lock; it names `field`, and the process.
    """
    new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _LOCK
    check_kinds(path)
    file = _open_locked(path)
    if file is None:
        holder = path.read_text(encoding="utf-8") or "another process"
        raise InputError(f"{field} is {str(directory)!r}, which is in use by {holder}; expected another directory")
    since = datetime.datetime.now().isoformat(" ", "milliseconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    try:
        with naming(path):
            file.truncate(0)
            file.write(holder)
            file.flush()
        yield holder
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if new and not any(directory.iterdir()):
            directory.rmdir()


def check_shared(field: str, directory: Path, holder: str) -> None:
    """Raises InputError naming `field` unless the lock on a directory is the one that `locked` has yielded as `holder`.

    Elsewhere a directory of the same name may be another one, or show what is new in it a little later.
    """
    path, end = directory / _LOCK, time.monotonic() + _SHARED_WITHIN
    while True:
        with suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == holder:
                return
        if time.monotonic() > end:
            raise InputError(
                f"{field} is {str(directory)!r}, which is not the directory of {holder}; expected one that all "
                "processes of a run share"
            )
        time.sleep(0.1)


def _open_locked(path: Path) -> TextIO | None:
    """A file with a lock on it, None where another process has that."""
    import fcntl  # not above: Windows has none, where all but runs works

    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # not on this file system
            return file
        # Its last holder may have removed it just before.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def check_output(field: str, path: Path) -> None:
    """Makes the folder of a file that is to be written later; raises InputError naming `field` where the file cannot
    be, and OSError where the system refuses it."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"{field} is {str(path)!r}, which is a directory; expected a file")
    if path.is_file() or not path.exists():  # no device or pipe
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), tempfile.TemporaryFile(dir=path.parent):
            pass


def check_unused(field: str, directory: Path) -> None:
    """Raises InputError naming `field` unless a directory is empty or not there yet."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{field} is {str(directory)!r}, which is there already; expected a new or empty directory")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
