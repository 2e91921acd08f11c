"""The wheel and the sdist, built and used: commands outside of a checkout, and all that the tests need."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """What a command prints; `path` is where Python looks first."""
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both."""
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-d", directory, cwd=ROOT)
    return directory


def test_the_wheel_trains_and_evaluates(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel, cwd=built
    )
    elsewhere.mkdir()
    (elsewhere / "mine.py").write_text(
        f"import longformer_jax\nassert longformer_jax.__file__.startswith({str(site)!r})\n"
        "from configs.char_lm.quickstart import get_config\n"
    )
    train, evaluate = site / "bin" / "longformer-train", site / "bin" / "longformer-eval"
    assert "--config.seed=7" in run(
        train, "--config=mine.py:minute", "--config.seed=7", "--help", cwd=elsewhere, path=site
    )

    model = {"embed_dim": 8, "num_layers": 1, "mlp_dim": 8, "position_dim": 4, "dilations": 1}
    phase = {"sequence_length": 16, "batch_size": 2, "steps": 2, "windows": 4}
    overrides = [f"--config.model.{name}={value}" for name, value in model.items()]
    overrides += [f"--config.phases[0].{name}={value}" for name, value in phase.items()]
    named = ["--config=quickstart:minute", "--config.eval_interval=0", *overrides]
    output = run(train, *named, "--workdir=run", cwd=elsewhere, path=site)
    assert "wrote the model to run/model" in output
    (elsewhere / "text").write_text("So much for that.\n" * 5)
    output = run(evaluate, "--model=example", "--data=text", "--protocol=stream", cwd=elsewhere, path=site)
    assert "bits per character over 89 characters" in output
    output = run(evaluate, "--workdir=run", "--data=text", "--protocol=stream", cwd=elsewhere, path=site)
    assert re.fullmatch(r"text, protocol stream, step 2: \d\.\d+ bits per character over 89 characters, .*\n", output)


def test_the_sdist_has_all_that_the_tests_need(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode == 0:  # in a checkout
        assert not [name for name in listing.stdout.split("\0") if not (unpacked / name).exists()]
    collected = run(sys.executable, "-m", "pytest", "-q", "--collect-only", cwd=unpacked, path=unpacked)
    assert re.search(r"^[1-9]\d{2,} tests collected", collected, re.MULTILINE)
    passed = run(sys.executable, "-m", "pytest", "-q", "tests/attention/test_band.py", cwd=unpacked, path=unpacked)
    assert re.search(r"^[1-9]\d* passed", passed, re.MULTILINE)
