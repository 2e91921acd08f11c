"""What train.py and eval.py share: bad input takes one line on standard error."""

import argparse
import inspect
import io
import logging
import os
import re
import signal
import sys
import sysconfig
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags

from longformer_jax.errors import InputError

# How XLA says so, by the platform.
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|Out of memory")
_PACKAGE = Path(__file__).parent
_LIBRARIES = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def fail(status: int, error: BaseException | str) -> NoReturn:
    """Prints the sentence and exits."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        fail(2, message)


def print_anything() -> None:
    """Lets what the terminal has no character for be printed as an escape sequence, as a file's name or a sample."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_log() -> None:
    """Lets the library's log be seen, such as which implementation of the attention it chooses."""
    logger = logging.getLogger("longformer_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False  # absl would say it, too
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))


def ignore_late_results() -> None:
    """Lets nothing be printed of what TensorStore has written after the save that waited for it has failed.

    It gives the news to Orbax's event loop, which is closed by then.
    """
    previous = sys.unraisablehook

    def hook(what: Any) -> None:
        if not (isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"):
            previous(what)

    sys.unraisablehook = hook


@contextmanager
def one_line_for_errors() -> Iterator[None]:
    """Says in one line what is wrong with the input, and exits with 2, or what the system refuses, and exits with 1.

    Ctrl-C exits with 130, and so does a second one, at once.
    """
    try:
        with _second_interrupt_ends():
            yield
    except KeyboardInterrupt:
        fail(130, "interrupted")
    except (InputError, NotImplementedError) as error:
        fail(2, error)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again at its end
        fail(1, f"what is printed has no reader any more ({error.strerror})")
    except OSError as error:
        what = " to ".join(repr(str(name)) for name in (error.filename, error.filename2) if name is not None)
        fail(1, f"{what or 'a file'} cannot be read or written ({error.strerror or error})")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        reason = next(iter(str(error).splitlines()), "")[:300]
        fail(1, f"the memory is too small ({reason}); a smaller batch, shorter sequences or narrower windows may help")


@contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """Ends the process at the second Ctrl-C, also while it compiles, when Python's own handlers would have to wait.

    Outside of the main thread, which alone hears of signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)

    def listen() -> None:
        interrupts = 0
        while received := os.read(receiver, 1):
            interrupts += received[0] == signal.SIGINT
            if interrupts == 2:
                os.write(2, b"error: interrupted\n")
                os._exit(130)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    previous = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(sender)
        listener.join()
        os.close(receiver)


class _OrNone(flags.ArgumentParser):
    """What another parser takes, or None; says what was expected where that one says how it failed."""

    def __init__(self, parser: flags.ArgumentParser, expected: str) -> None:
        self._parser = parser
        self._expected = expected

    def parse(self, argument: Any) -> Any:
        try:
            return None if argument == "None" else self._parser.parse(argument)
        except (TypeError, ValueError):
            raise ValueError(f"expected {self._expected}") from None

    def flag_type(self) -> str:
        return self._parser.flag_type()


def accept_none() -> None:
    """Lets None override any field of a configuration; whether the field may be None, the experiment says."""
    from ml_collections import config_flags

    for kind, parser, expected in (
        (bool, flags.BooleanParser(), "true or false"),
        (int, flags.IntegerParser(), "an integer"),
        (float, flags.FloatParser(), "a number"),
        (str, flags.ArgumentParser(), "text"),
    ):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser, expected))


def parse_flags(arguments: Sequence[str], module: str, more_help: Callable[[], list[str]] = list) -> list[str]:
    """Parses as absl would, but says in one line what is wrong, and helps in fewer.

    Args:
      arguments: the command line, with the program's name.
      module: the name of the one that defines the flags, and whose docstring begins the help.
      more_help: the lines that end it.
    """
    rest = [
        argument for argument in arguments if argument not in ("-h", "-help", "--help", "--helpshort", "--helpfull")
    ]
    remaining = _parse_flags(rest)
    if len(rest) < len(arguments):
        text = "\n".join([*_help(module), *more_help()])
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends as other programs do
        print(text, flush=True)
        sys.exit(0)
    return remaining


def _help(module: str) -> Iterator[str]:
    """What a command is for, and its flags."""
    yield inspect.cleandoc(sys.modules[module].__doc__ or "") + "\n"
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        lead = f"  --{flag.name}{'' if flag.boolean else '=…'}"
        yield textwrap.fill(f"{lead:<22}{flag.help}", 120, subsequent_indent=" " * 22)
    yield ""


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(arguments))
    except Exception as error:  # a file of configs/ is a program, which may raise anything
        sentence = _what_is_wrong(error, arguments)
        if sentence is None:
            raise
        fail(2, sentence)


def _what_is_wrong(error: Exception, arguments: Sequence[str]) -> str | None:
    """What a user can do about an error of parsing flags; None where it is a bug."""
    causes: list[BaseException] = [error]
    while causes[-1].__context__:  # absl and ml_collections wrap what a file of configs/ raises
        causes.append(causes[-1].__context__)
    file = next((argument for argument in arguments if argument.startswith("--config=")), "--config")
    for cause in causes:
        if isinstance(cause, InputError) and "ml_collections" not in Path(_files(cause)[-1][0]).parts:
            return str(cause)
    for cause in causes:
        if isinstance(cause, AttributeError) and cause.name == "get_config" and inspect.ismodule(cause.obj):
            return f"{file} has no get_config; expected a function of that name"
        path, line = _origin(cause)
        if path and Path(path).is_relative_to(_PACKAGE):
            return None
        if path:
            place = path if line is None else f"{path}, line {line},"
            reason = cause.msg if isinstance(cause, SyntaxError) else _in_one_line(str(cause))
            return f"{file} cannot be read: {place} raises {type(cause).__name__} ({reason})"
    if isinstance(error, flags.Error):
        return _in_one_line(str(error))
    if isinstance(error, OSError):  # how ml_collections says that it could not read the file
        return f"{file} cannot be read: {_in_one_line(str(error.__cause__ or error))}"
    # And that an overridden field is not in the configuration.
    if isinstance(error, AttributeError | IndexError | KeyError | TypeError | ValueError):
        overrides = ", ".join(argument for argument in arguments if argument.startswith("--config."))
        return f"{overrides or '--config'} cannot be applied ({error}); expected a field of the configuration"
    return None


def _files(error: BaseException) -> list[tuple[str, int | None]]:
    """The files and lines that an exception went through, the one that raised it last."""
    return [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)] or [("", None)]


def _origin(error: BaseException) -> tuple[str, int | None]:
    """The file and the line that an exception is of, libraries that were called there set aside; "" where in none."""
    files = _files(error)
    if isinstance(error, SyntaxError):
        files.append((error.filename or "the file", error.lineno))
    for file, line in reversed(files):
        in_library = file == __file__ or any(Path(file).is_relative_to(place) for place in _LIBRARIES)
        if Path(file).is_relative_to(_PACKAGE) and file != __file__ or not in_library and not file.startswith("<"):
            return file, line
    return "", None


def _in_one_line(text: str) -> str:
    """The first line and, where there are others, such as of a traceback, the last."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return " ".join([*lines[:1], *lines[1:][-1:]])


def check_devices() -> None:
    """Raises InputError where JAX_PLATFORMS names what JAX cannot find here. Without it JAX always has the CPU."""
    try:
        jax.devices()
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # JAX's word for it depends on the platform
        reason = f" ({error})" if str(error) else ""
        name = os.environ.get("JAX_PLATFORMS")
        raise InputError(
            f"JAX_PLATFORMS is {name!r}, but JAX has no such device here{reason}; expected another, such as cpu"
        ) from None
