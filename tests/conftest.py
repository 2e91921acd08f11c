"""Tests run on the CPU whatever the machine has, and so do the processes that they start; how to start some."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of XLA. Each warpgroup that the Hopper kernels' interpreter runs holds one while it waits for another.
os.environ["PJRT_NPROC"] = "8"
# Half of the suite's time would be LLVM's, which optimises programs that run once, for milliseconds.
CHEAP_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{CHEAP_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimises the steps of a training that takes longer to run than to compile."""
    from jax.stages import Lowered

    compile = Lowered.compile
    options: dict[str, Any] = {"xla_backend_optimization_level": 3}
    monkeypatch.setattr(Lowered, "compile", lambda lowered: compile(lowered, compiler_options=options))


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
            stdin=subprocess.PIPE,
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


# Loads a command once, which takes longer than to refuse what is wrong with its flags; each line is a command to run
# and what is added to the environment.
FORKING = """
import importlib, json, os, runpy, sys, tempfile
importlib.import_module(sys.argv[1])
for line in sys.stdin:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        if not (child := os.fork()):
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv, environment = json.loads(line)
            os.environ.update(environment)
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = [file.seek(0) or file.read().decode() for file in (output, errors)]
        print(json.dumps([status, *printed]), flush=True)
"""
MODULES = {"train.py": "longformer_jax.scripts.train", "eval.py": "longformer_jax.scripts.evaluate"}


@pytest.fixture(scope="session")
def run_script(start_python: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable]:
    """Runs train.py or eval.py with arguments to its end, in a fork of a process that has loaded it before."""
    servers: dict[str, subprocess.Popen[str]] = {}

    def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        server = servers.get(script) or servers.setdefault(script, start_python("-c", FORKING, MODULES[script]))
        assert server.stdin and server.stdout
        print(json.dumps([[script, *map(str, arguments)], environment]), file=server.stdin, flush=True)
        line = server.stdout.readline()
        assert line, server.communicate()[1]
        return subprocess.CompletedProcess(arguments, *json.loads(line))

    yield run
    for server in servers.values():
        server.communicate()
