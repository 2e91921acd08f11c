"""Tests run on the CPU whatever the machine has, and so do the processes that they start; how to start some."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of XLA. Each warpgroup that the Hopper kernels' interpreter runs holds one while it waits for another.
os.environ["PJRT_NPROC"] = "8"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where programs are kept once they are compiled, from the first test on that asks for it."""
    import jax

    cache = tmp_path_factory.mktemp("jax_cache")
    values = {"jax_compilation_cache_dir": str(cache), "jax_persistent_cache_min_compile_time_secs": 0.1}
    previous = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    yield cache
    for name, value in previous.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def start_python(compilation_cache: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a Python in the repository's root."""

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **cache, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_python(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python to its end."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        with start_python(*arguments, **environment) as process:
            output, errors = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run
