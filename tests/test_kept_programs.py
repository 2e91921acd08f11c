"""Compiled programs are kept for the next start, which computes the same."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src.lru_cache import LRUCache

from longformer_jax.settings import keep_compiled
from longformer_jax.training import restore_params

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
)


@pytest.fixture
def jax_as_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX's settings of its cache as they are where nobody has set them."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in zip(SETTINGS, (None, 1.0, -1, True), strict=True):
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_programs_are_kept(jax_as_new: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "longformer_jax" / "compiled")
    assert jax.config.jax_persistent_cache_min_compile_time_secs < 1
    assert 0 < jax.config.jax_compilation_cache_max_size < 2**40


@pytest.mark.parametrize(("limit", "has_filelock"), [(None, True), ("-1", True), (None, False)])
def test_only_what_is_half_written_is_removed(
    jax_as_new: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, has_filelock: bool
) -> None:
    """A program is kept with a time of use, written last, if there is a limit, and without any otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if limit:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", limit)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: has_filelock or None)
    keep_compiled()
    place, is_limited = Path(jax.config.jax_compilation_cache_dir), limit is None and has_filelock
    cache = LRUCache(str(place), max_size=jax.config.jax_compilation_cache_max_size)
    assert cache.eviction_enabled == is_limited
    cache.put("whole", b"program")
    (place / "half-cache").write_bytes(b"pro")
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    kept = {path.name for path in place.glob("*-cache")}
    assert kept == {"whole-cache"} | (set() if is_limited else {"half-cache"})


@pytest.mark.parametrize("wish", [{"jax_compilation_cache_dir": "/mine"}, {"jax_enable_compilation_cache": False}])
def test_what_the_user_has_set_stays(
    jax_as_new: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: dict
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in wish.items():
        jax.config.update(name, value)
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    keep_compiled()
    assert {name: getattr(jax.config, name) for name in SETTINGS} == before
    assert not any(tmp_path.iterdir())


def test_single_settings_of_the_user_stay(jax_as_new: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    keep_compiled()
    assert jax.config.jax_compilation_cache_max_size == -1
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1


def test_without_a_place(jax_as_new: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


def start(workdir: Path, cache: Path) -> subprocess.Popen[str]:
    """train.py in an environment that says nothing of JAX's cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_C", "JAX_PERS"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "train.py", "--config=tests/training/tiny.py", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def entries(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.rglob("*-cache")}


@pytest.mark.slow
def test_kept_programs_compute_the_same(tmp_path: Path) -> None:
    """Two processes that fill the cache at the same time, one that finds it, one that finds it damaged, one without."""
    cache, results = tmp_path / "cache", {}

    def run(*names: str, place: Path = cache) -> None:
        processes = {name: start(tmp_path / name, place) for name in names}
        for name, process in processes.items():
            _, errors = process.communicate(timeout=600)
            assert (process.returncode, errors) == (0, ""), name
            results[name] = restore_params(tmp_path / name)

    run("first", "beside")
    kept = entries(cache)
    assert any("train_step" in name for name in kept)
    run("second")
    assert entries(cache) == kept  # found, and nothing else was needed
    half_written = sorted(cache.rglob("*-cache"))[::2]
    for path in cache.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
        if path in half_written:  # as a process leaves it that is killed while it writes
            path.with_name(path.name.removesuffix("cache") + "atime").unlink()
    run("damaged")
    assert entries(cache).keys() == kept.keys()
    assert all(path.stat().st_size > 100 for path in half_written)  # kept anew
    (tmp_path / "file").write_text("")
    run("without", place=tmp_path / "file")
    for name in results:
        jax.tree.map(np.testing.assert_array_equal, results[name], results["without"])
