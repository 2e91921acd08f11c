"""What processes tell each other, and what is left of JAX's messages when one has died; they meet in
tests/training/test_several_processes.py."""

import errno
import importlib.metadata
import io
import signal

import pytest

from longformer_jax import InputError, processes
from longformer_jax.processes import Agreed, alone, check_same, digest, from_first, together, versions
from longformer_jax.scripts.supervisor import conclude, hold_back


def test_one_process_agrees_with_itself() -> None:
    assert alone()
    check_same({"seed": 0})
    assert from_first([1]) == [1]
    with pytest.raises(KeyError), together():
        raise KeyError


@pytest.mark.parametrize(
    ("everywhere", "sentence"),
    [
        ([{"seed": 0}] * 3, None),
        (
            [{"seed": 0, "steps": 5}, {"seed": 0, "steps": 5}, {"seed": 1, "steps": 5}],
            "processes 0 and 2 differ: seed is 0 and 1; expected the same in all processes of a run",
        ),
        (
            [{"kind": "char_lm", "a": 1, "b": [2], "c": 3}, {"kind": "masked_lm", "d": 4}],
            "processes 0 and 1 differ: kind is 'char_lm' and 'masked_lm', a is 1 and None, b is [2] and None, and 2 mor"
            "e; expected the same in all processes of a run",
        ),
    ],
)
def test_the_fields_that_differ_are_named(everywhere: list[dict], sentence: str | None) -> None:
    assert processes._difference(everywhere) == sentence


def test_what_one_process_cannot_do_all_raise() -> None:
    def in_all(failures: list[Exception | None]) -> Exception | None:
        report = processes._first_report([processes._report(failure) for failure in failures])
        return processes._agreed(*report) if report else None

    assert in_all([None, None]) is None
    error = in_all([None, InputError("seed is -1; expected at least 0")])
    assert isinstance(error, InputError) and isinstance(error, Agreed)
    assert str(error) == "process 1: seed is -1; expected at least 0"
    assert str(in_all([InputError("in all"), InputError("in all")])) == "in all"
    error = in_all([None, PermissionError(errno.EACCES, "Permission denied", "text")])
    assert isinstance(error, OSError) and isinstance(error, Agreed)
    assert (error.errno, error.strerror, error.filename) == (errno.EACCES, "Permission denied; in process 1", "text")
    assert in_all([KeyError("a bug"), None]) is None


def test_versions_tell_what_computes() -> None:
    found = versions()
    assert found["version of jax"] == importlib.metadata.version("jax")
    assert len(found["code of longformer_jax"]) == 16
    assert digest([b"a", b"b"]) != digest([b"ab"])


# As jaxlib 0.12 prints it; older ones name a process as /job:jax_worker/replica:0/task:1.
DEAD = b"""\
E1127 15:16:44.651297   26732 coordination_service.cc:1518] [5613] Use error polling to propagate the following error
to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
/job:jax_worker/replica:0/task:13
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.

"""
ABORT = b"""\
F1127 15:16:44.65 267 client.h:86] Terminating process because the JAX distributed service detected fatal errors.
*** Check failure stack trace: ***
    @     0x7fdfd26f81b4  absl::lts_20260526::log_internal::LogMessage::SendToLog()
"""
NO_SERVICE = (
    b"E1127 15:16:44.65 7 coordination_service_agent.cc:288] Failed to send RPC to coordination service. Either\n"
)
OTHER = b"W1127 15:16:40.000000   26743 hlo_pass.cc:7] A warning\nof two lines\n"


@pytest.mark.parametrize(
    ("log", "status", "shown", "expected"),
    [
        (OTHER, 0, OTHER, 0),
        (OTHER, 2, OTHER, 2),
        (DEAD, 0, b"", 0),
        (DEAD + ABORT, -signal.SIGABRT, b"error: processes 1 and 13 of the run have ended or cannot be reached; ", 1),
        (
            OTHER + NO_SERVICE + ABORT,
            -signal.SIGABRT,
            OTHER + b"error: process 0 of the run has ended or cannot be reached; ",
            1,
        ),
        (ABORT + b"error: interrupted\n", 130, b"error: interrupted\n", 130),
        (OTHER, -signal.SIGKILL, OTHER + b"error: ended by SIGKILL\n", 137),
        (DEAD + OTHER, -signal.SIGSEGV, OTHER + DEAD + b"error: ended by SIGSEGV\n", 139),
    ],
)
def test_one_line_tells_who_has_died(log: bytes, status: int, shown: bytes, expected: int) -> None:
    printed, held = io.BytesIO(), []
    hold_back(io.BytesIO(log), printed, held)
    ended, text = conclude(status, b"".join(held))
    assert ended == expected
    assert (printed.getvalue() + text).startswith(shown)
    if status == -signal.SIGABRT:
        assert (printed.getvalue() + text).count(b"error: ") == 1
    else:
        assert printed.getvalue() + text == shown
