"""What tests of train.py share: its configuration, what it has printed and saved, and where several processes meet."""

import socket
from pathlib import Path
from subprocess import Popen

CONFIG_FLAG = "--config=tests/training/tiny.py"
# Runs a script whose files may have so many bytes: `-c LIMITED BYTES SCRIPT …`.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def read_until(process: Popen[str], beginning: str) -> str:
    """The first line of the output that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    assert process.stderr is not None
    raise AssertionError(f"the output ended without {beginning!r}: {process.stderr.read()}")
