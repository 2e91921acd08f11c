"""A process that waits for another, which trains together with others, and says in one line when one of those has died.

JAX ends a process whose peer has died by an abort, with pages from C++, and no code in that process can have it
otherwise. So the program goes on in a child, and what JAX's coordination service prints there is held back.
"""

import os
import re
import signal
import sys
import threading
from contextlib import suppress
from typing import BinaryIO

# How an entry of C++'s log begins, and the sources whose entries are held back. A line of another form goes on with the
# entry before it.
_ENTRY = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.+-]+):\d+\] |\[external/.*/(gloo)/")
_HELD_BACK = re.compile(rb"(coordination|preemption)_\w+\.cc|client\.h|gloo")
_PYTHON = b"error: "  # what this library prints to the file of C++'s log

_FATAL = b"JAX distributed service detected fatal errors"
_DEAD = re.compile(rb"(?:stopped sending heartbeats\)|timed out task names):((?:\n[\w/:]*\d+)+)")
_NO_SERVICE = b"Failed to send RPC to coordination service"  # which is in process 0


def supervised() -> None:
    """Goes on in a child, whose exit status this process has in the end; to be called before there are threads."""
    parent = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _die_with(parent)
        os.setpgid(0, 0)  # Ctrl-C comes to the parent alone, which passes it on
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")  # Python's goes past the parent
        os.dup2(writing, 2)
        os.close(writing)
        return

    def pass_on(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, pass_on)
    os.close(writing)
    held: list[bytes] = []
    reader = threading.Thread(target=hold_back, args=(os.fdopen(reading, "rb"), sys.stderr.buffer, held), daemon=True)
    reader.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reader.join(timeout=2)  # what the child has started may keep the pipe open
    status, text = conclude(status, b"".join(held))
    sys.stderr.buffer.write(text)
    sys.stderr.flush()
    os._exit(status)


def _die_with(parent: int) -> None:
    """Has this process killed when its parent is, where the system can do that."""
    with suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def hold_back(lines: BinaryIO, rest: BinaryIO, held: list[bytes]) -> None:
    """Sorts the lines of C++'s log: entries of the coordination service go to `held`, all else is printed to `rest`."""
    holding = False
    for line in lines:
        if entry := _ENTRY.match(line):
            holding = _HELD_BACK.fullmatch(entry[1] or entry[2]) is not None
        if holding and not line.startswith(_PYTHON):
            held.append(line)
        else:
            rest.write(line)
            rest.flush()


def conclude(status: int, held: bytes) -> tuple[int, bytes]:
    """The exit status that follows from that of a child, as Python gives it, and what is to be printed at its end."""
    if status >= 0:
        return status, b""
    if _FATAL in held:
        numbers = {int(number) for block in _DEAD.findall(held) for number in re.findall(rb"(\d+)$", block, re.M)}
        if _NO_SERVICE in held:
            numbers |= {0}
        names = " and ".join(map(str, sorted(numbers)))
        who = f"process {names} of the run has" if names else "another process of the run has"
        if len(numbers) > 1:
            who = f"processes {names} of the run have"
        return (
            1,
            f"error: {who} ended or cannot be reached; the same command goes on from the last checkpoint\n".encode(),
        )
    name = signal.Signals(-status).name
    return 128 - status, held + f"error: ended by {name}\n".encode()
