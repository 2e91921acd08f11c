"""The house's own rules: what an import costs, which way imports point, what no file may contain."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A package may import itself and what stands after it, nothing that stands before.
LAYERS = {
    "scripts": {"evaluation", "training", "tasks", "models", "data", "weights", "attention"},
    "evaluation": {"training", "tasks", "models", "data", "weights", "attention"},
    "training": {"tasks", "models", "data", "weights", "attention"},
    "tasks": {"models", "data", "weights", "attention"},
    "weights": {"models", "attention"},
    "models": {"attention"},
    "data": set(),
    "attention": set(),
}


def committed_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not in a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def imported_modules(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in froms), f"{file} has a relative import"
    return plain.union(*({f"{node.module}.{alias.name}" for alias in node.names} for node in froms))


WEIGHTS = {"safetensors", "pickletools"}
RUNS = {"tensorflow_datasets", "grain", "orbax", "matplotlib", "tensorflow", "pyarrow", "ml_collections", "tokenizers"}


def test_import_is_light() -> None:
    """Each name loads what it needs, in whichever order they are asked for."""
    asked = {
        "import longformer_jax": {"jax", "flax", *WEIGHTS, *RUNS},
        "longformer_jax.banded_attention": {"flax", *WEIGHTS, *RUNS},
        "from longformer_jax import CharLM, Longformer, InputError, generate, best_spans": {*WEIGHTS, *RUNS},
        "from longformer_jax import load_pretrained, load_tokenizer, resize_vocab": RUNS,
    }
    program = "import json, sys; sys.modules['fcntl'] = None; loaded = []"  # which Windows does not have
    for line in asked:
        program += f"; {line}; loaded.append([*sys.modules])"
    program = f"{program}; print(json.dumps(loaded))"
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    for (line, heavy), loaded in zip(asked.items(), json.loads(printed.stdout), strict=True):
        assert not heavy & {*loaded}, line


def test_every_public_name_is_there() -> None:
    import longformer_jax

    assert {*longformer_jax.__all__} <= {*dir(longformer_jax)}
    for name in longformer_jax.__all__:
        assert callable(getattr(longformer_jax, name))
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        longformer_jax.train  # noqa: B018 # pyrefly: ignore


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package: str) -> None:
    files = list((ROOT / "longformer_jax" / package).rglob("*.py"))
    assert files
    for file in files:
        inside = {name.split(".")[1] for name in imported_modules(file) if name.startswith("longformer_jax.")}
        assert inside & LAYERS.keys() <= LAYERS[package] | {package}, file


def test_checkpoints_import_nothing_of_the_library_but_its_foundations() -> None:
    modules = imported_modules(ROOT / "longformer_jax" / "checkpoints.py")
    assert {name.rpartition(".")[0] for name in modules if name.startswith("longformer_jax")} == {
        "longformer_jax.checksums",
        "longformer_jax.errors",
        "longformer_jax.files",
        "longformer_jax.integers",
        "longformer_jax.processes",
    }


def test_kernels_import_nothing_of_the_library() -> None:
    for file in (ROOT / "pallas_kernels").rglob("*.py"):
        assert not [name for name in imported_modules(file) if name.startswith("longformer_jax")], file


def test_gpu_benchmark_needs_little(tmp_path: Path) -> None:
    heavy = ["grain", "orbax", "ml_collections", "tensorflow_datasets", "matplotlib", "torch", "pytest"]
    program = (
        "import runpy, sys; file = sys.argv[1]; sys.argv = ['gpu', '--help']\n"
        "try: runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])\n"
        # Its first process must leave the device to the others, which a failed kernel may take along.
        "from jax._src import xla_bridge\n"
        "from benchmarks.gpu import plan, results\n"
        "plan.jobs(plan.STAGES, plan.OURS, results.Results(results.Path(file)))\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "results.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-2:] == ["[]", "False"]


def test_library_does_not_import_its_users() -> None:
    users = {"train", "eval", "configs", "benchmarks", "tests"}
    for file in [*(ROOT / "longformer_jax").rglob("*.py"), *(ROOT / "pallas_kernels").rglob("*.py")]:
        assert not users & {name.split(".")[0] for name in imported_modules(file)}, file


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_scripts_are_short(script: str) -> None:
    assert len((ROOT / script).read_text().splitlines()) < 100


def test_no_file_names_a_registry() -> None:
    hosts = re.compile(rb"(py[p]i|pythonhoste[d]|npmj[s]|anacond[a])\.(org|com)")
    assert not [file for file in committed_files() if hosts.search(file.read_bytes())]


def test_constraints_pin_every_dependency() -> None:
    def name(requirement: str) -> str:
        return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")

    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = [
        extra for key in ("dev", "tensorboard", "hub", "aot") for extra in project["optional-dependencies"][key]
    ]
    assert {name(needed) for needed in project["dependencies"] + installed} <= {name(pin) for pin in pins}
