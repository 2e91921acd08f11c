"""Checkpoints with Orbax: asynchronous, atomic, with checksums. The one file that knows Orbax.

`checkpoints/STEP/` of a run holds `params` and `train` (the optimizer's state and the step) apart, so that evaluation
reads the parameters alone, and `checksums.json`, the step and the sum of every file of the two, as Orbax does not
notice changed bytes or another name. `params/` of a model's directory, or of a run's best validation, is a checkpoint
of the same form that holds `params` alone; the latter has its step, too.
"""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.multihost import get_barrier_sync_fn

from longformer_jax.checksums import CHECKSUMS, file_sum, is_unchanged, write_sums
from longformer_jax.errors import InputError
from longformer_jax.files import error_number, naming, read_json, user_path
from longformer_jax.integers import as_integer
from longformer_jax.processes import Agreed, together

DIRECTORY = "checkpoints"
_PARAMS, _TRAIN = "params", "train"
_LAYOUT = "_CHECKPOINT_METADATA"  # Orbax's, which changes it when a checkpoint is finished, and takes none without it
_STEP = "step"  # the entry of the checksums that is none
_SAVED = ".saved"  # in the directory of checkpoints, where one has been complete

# {"params", "opt_state", "step"}
State = dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir, for the run that writes them; a context manager that waits for the last save."""

    def __init__(self, workdir: str | Path, keep: int) -> None:
        """Opens WORKDIR/checkpoints, making it if need be; the latest `keep` checkpoints stay."""
        context = ocp.Context()
        # Functions, since Orbax copies the context deeply, and with a bound method its object.
        context.asynchronous.post_finalization_callback = lambda: self._finalize()
        context.asynchronous.v0 = _without_waiting(context.asynchronous.v0)
        self._root = _root(workdir)
        self._saving = 0
        self._pending: ocp.AsyncResponse[bool] | None = None
        self._checkpointer = ocp.training.Checkpointer(
            str(self._root),
            context=context,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyrefly: ignore[bad-argument-type]
            cleanup_tmp_directories=True,
        )
        if jax.process_index() == 0 and self.latest_step is None:
            (self._root / _SAVED).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # Other processes do not come to wait for one that fails alone.
        if kind is None or issubclass(kind, Agreed) or jax.process_count() == 1:
            self.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest complete checkpoint, None where there is none."""
        return max(_steps(self._root), default=None)

    def save(self, step: int, state: State) -> None:
        """Starts to save and returns when `state` has been copied.

        Raises:
          OSError: the system refused a file of this checkpoint, or of the one before; what is complete stays.
        """
        self.wait()
        self._saving = step
        with self._os_errors():
            self._pending = self._checkpointer.save_checkpointables_async(
                step,
                {_PARAMS: state["params"], _TRAIN: {"opt_state": state["opt_state"], "step": state["step"]}},
                force=True,
            )

    def wait(self) -> None:
        """Waits for a save under way; raises what `save` does."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._os_errors():
                pending.result()
                if jax.process_index() == 0:
                    (self._root / _SAVED).touch()

    def close(self) -> None:
        """Waits for a save under way and for the removal of old checkpoints."""
        try:
            self.wait()
        finally:
            with self._os_errors():
                self._checkpointer.close()

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        """Raises what the system refused as OSError that names the checkpoint and the one that is left."""
        try:
            yield
        except Exception as error:
            number = error_number(error)
            waited = isinstance(error, TimeoutError) and jax.process_count() > 1  # for a process that has died
            if number is None and (waited or not isinstance(error, OSError)):
                raise
            reason = os.strerror(number) if number else str(error)
            steps = _steps(self._root)
            kept = f"checkpoint {steps[-1]} is the latest" if steps else "there is no checkpoint yet"
            raise OSError(number, f"{reason}; {kept}", str(self._root / str(self._saving))) from error

    def restore(self, abstract_state: State, step: int | None = None) -> State:
        """A checkpoint, on whatever devices the shardings of `abstract_state` name; all processes call this.

        Args:
          abstract_state: the shapes, dtypes and shardings of a state.
          step: which one; None is the latest.

        Raises:
          InputError: a file of it is missing or changed, or its tensors are not those of `abstract_state`.
        """
        step = self.latest_step if step is None else step
        assert step is not None, "there is no checkpoint to restore"
        train = {"opt_state": abstract_state["opt_state"], "step": abstract_state["step"]}
        with together():
            _verify(self._root / str(step), "", step)
            _check_tensors(self._root / str(step), abstract_state["params"])
        restored = self._checkpointer.load_checkpointables(step, {_PARAMS: abstract_state["params"], _TRAIN: train})
        return {"params": restored[_PARAMS], **restored[_TRAIN]}

    def _finalize(self) -> None:
        """Runs when all files of the step under way are written, before the directory gets its final name."""
        if jax.process_index() == 0:
            final = self._root / str(self._saving)
            # Storage without a rename has no other name.
            _write_checksums(next(self._root.glob(f"{final.name}.*"), final), self._saving)


def _without_waiting(options: Callable[[], Any]) -> Callable[[], Any]:
    """Options for asynchronous saves by which a process comes back from one that the system has refused it.

    Orbax has it wait at the end for the others, which wait for it before, all of them for 20 minutes.
    """

    def changed() -> Any:
        meet = get_barrier_sync_fn()

        def meet_unless_failed(*, key: str, timeout_ms: int) -> None:
            if sys.exception() is None:
                meet(key=key, timeout_ms=timeout_ms)

        return dataclasses.replace(options(), barrier_sync_fn=meet_unless_failed)

    return changed


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether a run can go on from where a workdir stands."""
    return bool(_steps(_root(workdir)))


def had_checkpoint(workdir: str | Path) -> bool:
    """Whether there is a sign that a workdir has had a checkpoint, which may be gone."""
    return (_root(workdir) / _SAVED).exists()


def find_checkpoint(workdir: str | Path, step: int | None = None) -> int:
    """The step of the latest checkpoint of a workdir, or `step` where there is one of it; else raises InputError."""
    steps = _steps(_root(workdir))
    if not steps or step is not None and as_integer(step) not in steps:
        wanted = "a checkpoint" if step is None else f"checkpoint {step!r}"
        raise InputError(f"workdir is {str(workdir)!r}, with checkpoints {steps}; expected {wanted} in it")
    return steps[-1] if step is None else int(step)


def _steps(root: Path) -> list[int]:
    return sorted(int(path.name) for path in root.glob("*") if path.name.isdecimal())


def _root(workdir: str | Path) -> Path:
    return _place("workdir", workdir) / DIRECTORY


def _place(field: str, directory: str | Path) -> Path:
    """The absolute path of a directory; raises InputError where it is no UTF-8, which Orbax cannot write to."""
    path = user_path(field, directory).absolute()
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise InputError(f"{field} is {str(path)!r}, which is no UTF-8; expected a name in UTF-8") from None
    return path


def restore_params(workdir: str | Path, abstract_params: Any, step: int | None = None) -> tuple[int, Any]:
    """The step and the parameters of a run's checkpoint, plain arrays on the default device, for evaluation.

    A run that still trains may remove the latest checkpoint while it is read; the one that is then the latest is read
    instead.

    Args:
      workdir: a directory that train.py has written.
      abstract_params: their shapes and dtypes, a tree of anything with these two.
      step: which checkpoint; None is the latest.

    Raises:
      InputError: there is no such checkpoint, a file of it is missing or changed, or it has another architecture.
    """
    while True:
        found = find_checkpoint(workdir, step)
        try:
            return found, _load(_root(workdir) / str(found), abstract_params, step=found)
        except Exception:  # whatever Orbax raises when files vanish
            if found == find_checkpoint(workdir, step):
                raise


def save_params(directory: str | Path, params: Any, *, step: int | None = None) -> None:
    """Writes DIRECTORY/params: the tensors of a tree, all of them or nothing, in place of what was there.

    With several processes, all of them call this.

    Args:
      directory: made if need be.
      params: the tree.
      step: after which a run has these parameters, for `load_params` to compare.
    """
    final = _place("directory", directory) / _PARAMS
    partial = final.with_name(f"{_PARAMS}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with naming(final):
        ocp.save_checkpointables(str(partial), {"params": params}, overwrite=True)
    with together():
        if jax.process_index() == 0:
            _write_checksums(partial, step)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)


def load_params(directory: str | Path, abstract_params: Any, *, step: int | None = None, on_host: bool = False) -> Any:
    """What `save_params` wrote, plain arrays on the default device; all processes call this, as Orbax waits for all.

    Args:
      directory: the one that `save_params` was given.
      abstract_params: the shapes and dtypes expected, a tree of anything with these two.
      step: the one that they are to be of; None is any, as are parameters that were saved without one.
      on_host: returns NumPy arrays instead, which take no memory of a device.

    Raises:
      InputError: there is nothing, a file of it is missing or changed, or it has another step or architecture.
    """
    if not has_params(directory):
        raise InputError(f"directory is {str(directory)!r}, which has no {_PARAMS}; expected saved parameters in it")
    return _load(_place("directory", directory) / _PARAMS, abstract_params, step=step, on_host=on_host)


def has_params(directory: str | Path) -> bool:
    """Whether `save_params` has written to a directory."""
    return (user_path("directory", directory) / _PARAMS).is_dir()


def saved_shapes(directory: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes of what `save_params` wrote, by path; raises InputError where a file of it is missing or changed."""
    checkpoint = _place("directory", directory) / _PARAMS
    _verify(checkpoint, "params/")
    return _shapes(_saved(checkpoint))


def _load(checkpoint: Path, abstract_params: Any, *, step: int | None, on_host: bool = False) -> Any:
    """The parameters of a checkpoint, once its files, its step and its tensors are seen to be right."""
    with together():
        _verify(checkpoint, "params/", step)
        _check_tensors(checkpoint, abstract_params)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(x: Any) -> Any:
        return np.empty(x.shape, x.dtype) if on_host else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    placed = jax.tree.map(place, abstract_params)
    return ocp.load(
        str(checkpoint), placed, checkpointable_name=_PARAMS
    )  # load_checkpointables looks at the others, too


def _write_checksums(directory: Path, step: int | None) -> None:
    entries = {} if step is None else {_STEP: step}
    write_sums(directory, entries | _checksums(directory))


def _checksums(directory: Path) -> dict[str, str]:
    """The entries of the files of a checkpoint, but the checksums' own."""
    return {name: file_sum(directory / name) for name in _files(directory)}


def _files(directory: Path) -> list[str]:
    """The names of the files that have checksums: those of `params` and `train`, but for Orbax's mark."""
    paths = (path for part in (_PARAMS, _TRAIN) for path in sorted((directory / part).rglob("*")) if path.is_file())
    return [path.relative_to(directory).as_posix() for path in paths if path.name != "commit_success.txt"]


def _verify(directory: Path, part: str, step: int | None = None) -> None:
    """Raises InputError unless the files of a checkpoint whose names begin with `part` are as they were written.

    And unless it is of `step`, where one is given and the checkpoint has one: those of earlier versions have none.
    """
    try:
        recorded = read_json(directory / CHECKSUMS)
    except (OSError, InputError):
        recorded = {}
    of_step = recorded.pop(_STEP, None)
    if step is not None and of_step is not None and of_step != step:
        raise InputError(
            f"checkpoint {str(directory)!r} is of step {of_step}, and has been renamed; expected {of_step} as its "
            f"name, not {step}"
        )
    expected = {name: entry for name, entry in recorded.items() if name.startswith(part)} or {CHECKSUMS: None}
    damaged = sorted(name for name, entry in expected.items() if not is_unchanged(directory / name, entry))
    damaged += [] if (directory / _LAYOUT).is_file() else [_LAYOUT]
    # Hidden files are other programs', such as .DS_Store of a file manager or .nfs… of a file system.
    files = (name for name in _files(directory) if name.startswith(part) and "/." not in name)
    unknown = [name for name in files if name not in expected]
    if damaged:
        verb = "is" if len(damaged) == 1 else "are"
        what = f"{', '.join(damaged[:3])} {verb} missing or changed; expected its files as they were written"
    elif unknown:
        what = (
            f"{CHECKSUMS} has no sum of {', '.join(unknown[:3])}; expected all files that were written, and no others"
        )
    else:
        return
    way = " (remove the directory to go back to the checkpoint before it)" if directory.name.isdecimal() else ""
    raise InputError(f"checkpoint {str(directory)!r} is damaged: {what}{way}")


def _check_tensors(directory: Path, params: Any) -> None:
    """Raises InputError naming the tensors whose shapes in a checkpoint are not those of `params`."""
    saved = _shapes(_saved(directory))
    expected = _shapes(params)
    wrong = [
        f"{name} {saved.get(name, 'missing')} instead of {expected.get(name, 'none')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if wrong:
        raise InputError(
            f"checkpoint {str(directory)!r} is of another architecture: {len(wrong)} tensors differ, "
            f"{'; '.join(wrong[:4])}{'; …' if len(wrong) > 4 else ''}; expected the tensors of the configured model"
        )


def _saved(checkpoint: Path) -> Any:
    """What is known of the parameters of a checkpoint before they are read."""
    return ocp.metadata(str(checkpoint), _PARAMS).metadata


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
