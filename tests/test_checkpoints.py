"""Checkpoints: what is kept, what is refused and in which words, other devices, parameters alone."""

import contextlib
import dataclasses
import gc
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import checkpoints
from longformer_jax.checkpoints import Checkpoints, has_params, load_params, save_params, saved_shapes
from longformer_jax.errors import InputError
from longformer_jax.training import MeshConfig, restore_params
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import State, abstract_state
from longformer_jax.training.workdir import restore_checkpoint
from tests.training.commands import checkpoints as steps_in
from tests.training.tiny import CONFIG

MESH = make_mesh(MeshConfig())
ABSTRACT = abstract_state(CONFIG, MESH)


def state_of(step: int) -> State:
    """Random numbers, other ones for each step."""
    rng = np.random.default_rng(step)
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), ABSTRACT)
    return jax.device_put(state | {"step": np.int32(step)}, jax.tree.map(lambda leaf: leaf.sharding, ABSTRACT))


def assert_same(left: Any, right: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with checkpoints of steps 2 to 4, of which two are kept."""
    workdir = tmp_path_factory.mktemp("saved")
    CONFIG.save(workdir)
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (2, 3, 4):
            checkpoints.save(step, state_of(step))
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` to damage."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_latest_is_restored_and_old_ones_are_removed(saved: Path) -> None:
    assert steps_in(saved) == [3, 4]
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.latest_step == 4
        restored = checkpoints.restore(ABSTRACT)
    assert_same(restored, state_of(4))
    assert jax.tree.map(lambda leaf: leaf.sharding, restored) == jax.tree.map(lambda leaf: leaf.sharding, ABSTRACT)


def test_a_save_does_not_see_later_changes(tmp_path: Path) -> None:
    """The state is donated to the next step as soon as `save` returns."""
    destroy = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            state = state_of(step)
            checkpoints.save(step, state)
            destroy(state)
        checkpoints.wait()
        assert_same(checkpoints.restore(ABSTRACT), state_of(2))


def test_parameters_alone(saved: Path) -> None:
    assert_same(restore_params(saved), state_of(4)["params"])
    assert_same(restore_params(str(saved), step=3), state_of(3)["params"])


@pytest.mark.parametrize("before", ["_verify", "_check_tensors", "load"])
def test_a_run_may_replace_the_latest_checkpoint_while_it_is_read(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    older, newest = workdir / "checkpoints" / "3", workdir / "checkpoints" / "4"
    newest.rename(workdir / "4")
    place = checkpoints.ocp if before == "load" else checkpoints
    original = getattr(place, before)

    def replace_first(*arguments: Any, **options: Any) -> Any:
        if older.exists():
            (workdir / "4").rename(newest)
            shutil.rmtree(older)
        return original(*arguments, **options)

    monkeypatch.setattr(place, before, replace_first)
    step, params = restore_checkpoint(workdir)
    assert step == 4
    assert_same(params, state_of(4)["params"])


def test_a_checkpoint_that_is_asked_for_is_not_replaced_by_another(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_verify", lambda directory, *_: shutil.rmtree(directory))
    with pytest.raises(InputError, match=r"with checkpoints \[4\]; expected checkpoint 3 in it$"):
        restore_params(workdir, step=3)


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_parameters_alone_do_not_need_the_rest(workdir: Path, damage: str) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    if damage == "remove":
        shutil.rmtree(checkpoint / "train")
    else:
        for file in [*data_files(checkpoint / "train"), checkpoint / "_CHECKPOINT_METADATA"]:
            truncate(file)
    assert_same(restore_params(workdir), state_of(4)["params"])


@pytest.mark.parametrize(("step", "wanted"), [(None, "a checkpoint"), (7, "checkpoint 7")])
def test_no_checkpoint(tmp_path: Path, step: int | None, wanted: str) -> None:
    CONFIG.save(tmp_path)
    with pytest.raises(InputError, match=rf"^workdir is '.*', with checkpoints \[\]; expected {wanted} in it$"):
        restore_params(tmp_path, step)
    assert not (tmp_path / "checkpoints").exists()


def test_no_such_checkpoint(saved: Path) -> None:
    with pytest.raises(InputError, match=r"with checkpoints \[3, 4\]; expected checkpoint 2 in it$"):
        restore_params(saved, step=2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def data_files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and path.name != "commit_success.txt")


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_any_damaged_file_is_noticed(workdir: Path, damage: Callable[[Path], None]) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    files = [*data_files(checkpoint / "params"), *data_files(checkpoint / "train")]
    assert len(files) >= 10
    with Checkpoints(workdir, keep=2) as checkpoints:
        for file in files:
            content = file.read_bytes()
            damage(file)
            name = file.relative_to(checkpoint).as_posix()
            message = rf"^checkpoint '.*/4' is damaged: {name} is missing or changed; expected its files as they were"
            with pytest.raises(InputError, match=message):
                checkpoints.restore(ABSTRACT)
            if name.startswith("params/"):
                with pytest.raises(InputError, match=message):
                    restore_params(workdir)
            file.write_bytes(content)
        assert_same(checkpoints.restore(ABSTRACT), state_of(4))


def nest(file: Path) -> None:
    file.write_text("[" * 200_000)


def empty(file: Path) -> None:
    file.write_text("{}")


def test_what_orbax_needs_and_changes_itself(workdir: Path) -> None:
    (workdir / "checkpoints" / "4" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(InputError, match=r"^checkpoint '.*/4' is damaged: _CHECKPOINT_METADATA is missing or changed"):
        restore_params(workdir)


@pytest.mark.parametrize("damage", [truncate, nest, empty, Path.unlink])
def test_damaged_checksums(workdir: Path, damage: Callable[[Path], None]) -> None:
    damage(workdir / "checkpoints" / "4" / "checksums.json")
    with pytest.raises(InputError, match=r"is damaged: checksums\.json is missing or changed"):
        restore_params(workdir)


def change_sums(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    sums = json.loads((checkpoint / "checksums.json").read_text())
    change(sums)
    (checkpoint / "checksums.json").write_text(json.dumps(sums))


def test_files_without_a_sum(workdir: Path) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    change_sums(checkpoint, lambda sums: sums.pop("train/_METADATA"))
    assert_same(restore_params(workdir), state_of(4)["params"])  # which is all that is read
    message = r"^checkpoint '.*/4' is damaged: checksums\.json has no sum of train/_METADATA; expected all files that"
    with Checkpoints(workdir, keep=2) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(ABSTRACT)
    change_sums(checkpoint, lambda sums: [sums.pop(name) for name in [*sums] if name != "params/_METADATA"])
    message = r"is damaged: checksums\.json has no sum of params/_sharding, params/array_metadatas/process_0, params/d/"
    with pytest.raises(InputError, match=message):
        restore_params(workdir)


def test_a_sum_that_is_none(workdir: Path) -> None:
    checkpoint = workdir / "checkpoints" / "4"
    whole = json.loads((checkpoint / "checksums.json").read_text())["params/_METADATA"]
    for entry in ("", whole[:10], f"{whole[:64]} ", 3, None):
        change_sums(checkpoint, lambda sums, entry=entry: sums.update({"params/_METADATA": entry}))
        with pytest.raises(InputError, match=r"is damaged: params/_METADATA is missing or changed"):
            restore_params(workdir)
    change_sums(checkpoint, lambda sums: sums.update({"params/_METADATA": whole[:64]}))  # of an earlier version
    assert_same(restore_params(workdir), state_of(4)["params"])


def test_what_others_put_into_a_checkpoint(workdir: Path) -> None:
    """Beside its two parts anything, and what is hidden."""
    checkpoint = workdir / "checkpoints" / "4"
    for name in ("why.txt", ".DS_Store", "params/.DS_Store", "train/d/.nfs0001", "notes/why.txt"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("")
    with Checkpoints(workdir, keep=2) as checkpoints:
        assert_same(checkpoints.restore(ABSTRACT), state_of(4))
    (checkpoint / "params" / "why.txt").write_text("")
    with pytest.raises(
        InputError, match=r"json has no sum of params/why\.txt; expected .* written, and no others \(rem"
    ):
        restore_params(workdir)


def test_a_renamed_checkpoint_is_not_taken_for_another_step(workdir: Path) -> None:
    (workdir / "checkpoints" / "4").rename(workdir / "checkpoints" / "40")
    message = r"^checkpoint '.*/40' is of step 4, and has been renamed; expected 4 as its name, not 40$"
    with Checkpoints(workdir, keep=2) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(ABSTRACT)
    with pytest.raises(InputError, match=message):
        restore_params(workdir)


def test_another_architecture(saved: Path, workdir: Path) -> None:
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, mlp_dim=64, positions="rotary"))
    message = (
        r"^checkpoint '.*/4' is of another architecture: 6 tensors differ, "
        r"layers/mlp_in/bias \(2, 32\) instead of \(2, 64\); "
        r"layers/mlp_in/kernel \(2, 16, 32\) instead of \(2, 16, 64\); "
        r"layers/mlp_out/kernel \(2, 32, 16\) instead of \(2, 64, 16\); "
        r"layers/relative \(2, 16, 16\) instead of none; …; "
        r"expected the tensors of the configured model$"
    )
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(abstract_state(other, MESH))
    other.save(workdir)
    with pytest.raises(InputError, match=message):
        restore_params(workdir)


def test_a_failed_save_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path) -> dict[str, str]:
        raise OSError("no space left")

    monkeypatch.setattr("longformer_jax.checkpoints._checksums", fail)
    with pytest.raises(OSError, match="no space left"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest_step is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_saved_stays_when_the_system_refuses_a_file(tmp_path: Path) -> None:
    """A limit on the size of files, as a full disk needs one of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"File too large; checkpoint 1 is the latest: '.*/checkpoints/2'$"
    with contextlib.suppress(OSError), Checkpoints(tmp_path, keep=2) as checkpoints:  # closing says it once more
        checkpoints.save(1, state_of(1))
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            with pytest.raises(OSError, match=message):
                checkpoints.save(2, state_of(2))
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest_step == 1
        assert_same(checkpoints.restore(ABSTRACT), state_of(1))
    gc.collect()  # now, and not in another test, as Orbax leaves coroutines that nobody has awaited


# ---- Parameters in a directory of their own -----------------------------------------------------------------------

PARAMS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "scale": np.ones(3, np.float32)}
SHAPES = jax.eval_shape(lambda: PARAMS)


def test_saved_params_are_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "model"
    assert not has_params(directory)
    save_params(directory, PARAMS)
    assert has_params(directory) and [path.name for path in directory.iterdir()] == ["params"]
    loaded = load_params(directory, SHAPES)
    assert_same(loaded, PARAMS)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))


def test_params_of_a_step(tmp_path: Path) -> None:
    for step in (2, None):  # those of an earlier version have none
        save_params(tmp_path, PARAMS, step=step)
        assert_same(load_params(tmp_path, SHAPES, step=2), PARAMS)
        assert_same(load_params(tmp_path, SHAPES), PARAMS)
    save_params(tmp_path, PARAMS, step=2)
    with pytest.raises(
        InputError, match=r"/params' is of step 2, and has been renamed; expected 2 as its name, not 3$"
    ):
        load_params(tmp_path, SHAPES, step=3)


def test_params_are_replaced_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_params(str(tmp_path), {"old": np.zeros(2, np.float32)})
    save_params(str(tmp_path), PARAMS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "params"]
    assert_same(load_params(str(tmp_path), SHAPES), PARAMS)


def test_a_failed_save_keeps_the_old_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(directory: Path) -> dict[str, str]:
        raise OSError("no space left")

    save_params(tmp_path, PARAMS)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("longformer_jax.checkpoints._checksums", fail)
        save_params(tmp_path, {"new": np.zeros(2, np.float32)})
    assert_same(load_params(tmp_path, SHAPES), PARAMS)


def test_params_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^directory is '.*', which has no params; expected saved parameters in it$"):
        load_params(tmp_path, SHAPES)
    save_params(tmp_path, PARAMS)
    message = r"^checkpoint '.*/params' is of another architecture: 1 tensors differ, scale \(3,\) instead of \(4,\)"
    with pytest.raises(InputError, match=message):
        load_params(tmp_path, SHAPES | {"scale": jax.ShapeDtypeStruct((4,), jnp.float32)})
    file = next(data_files(tmp_path / "params" / "params"))
    flip(file)
    with pytest.raises(InputError, match=rf"^checkpoint '.*/params' is damaged: params/.*{file.name} is missing"):
        saved_shapes(tmp_path)
    with pytest.raises(InputError, match=rf"^checkpoint '.*/params' is damaged: params/.*{file.name} is missing"):
        load_params(tmp_path, SHAPES)


# ---- Other devices ------------------------------------------------------------------------------------------------

OTHER_DEVICES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from longformer_jax import checkpoints
from longformer_jax.checkpoints import Checkpoints
from longformer_jax.training import MeshConfig, restore_params
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import abstract_state
from tests.training.tiny import CONFIG
workdir, out = sys.argv[1:]
abstract = abstract_state(CONFIG, make_mesh(MeshConfig(data=2, fsdp=2)))
with Checkpoints(workdir, keep=2) as checkpoints:
    state = checkpoints.restore(abstract)
kernel = state["params"]["layers"]["qkv"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (2, 8, 48), kernel.sharding
jax.tree.map(np.testing.assert_array_equal, restore_params(workdir), state["params"])
np.savez(out, *map(np.asarray, jax.tree.leaves(state)))
"""


def test_restores_on_other_devices(saved: Path, tmp_path: Path, run_python: Callable) -> None:
    result = run_python("-c", OTHER_DEVICES, saved, tmp_path / "state.npz")
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "state.npz") as restored:
        assert_same([restored[name] for name in restored.files], jax.tree.leaves(state_of(4)))
