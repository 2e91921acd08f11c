"""Finds and opens the files of a checkpoint: safetensors or PyTorch's, in one piece or in shards."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from longformer_jax.errors import InputError
from longformer_jax.files import read_json
from longformer_jax.weights.stored_tensor import StoredTensor
from longformer_jax.weights.torch_pickle import read_torch_file

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"

# By safetensors' names. Its integers are nothing that a model of ours has.
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, which others may read if they may read what else this process writes."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)  # from safetensors 0.8 on, save_file leaves a file of its own in its place, for its owner alone


def has_tensors(directory: Path) -> bool:
    """Whether `read_tensors` finds a file to read."""
    return _find(directory) is not None


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name, from safetensors if there are such, else from PyTorch's files.

    Raises:
      InputError: there is no file, one is missing or damaged, or a pickle has more in it than tensors.
    """
    path = _find(directory)
    if path is None:
        raise InputError(
            f"{directory} holds no weights; expected {SAFETENSORS}, {TORCH}, or one of these with .index.json"
        )
    if path.suffix == ".json":
        return _read_shards(path)
    return _read_file(path)


def _find(directory: Path) -> Path | None:
    names = (SAFETENSORS, f"{SAFETENSORS}.index.json", TORCH, f"{TORCH}.index.json")
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _read_file(path: Path) -> dict[str, StoredTensor]:
    return read_torch_file(path) if path.suffix == ".bin" else _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file: Any = safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError) as error:  # the last where it is too large to be mapped
        raise InputError(f"{path} is damaged ({error}); expected a whole safetensors file") from None
    return {
        name: StoredTensor(
            tuple(x.get_shape()),
            np.dtype(_FLOATS[x.get_dtype()]).name if x.get_dtype() in _FLOATS else x.get_dtype(),
            functools.partial(file.get_tensor, name),
        )
        for name, x in slices.items()
    }


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, Mapping) or not all(isinstance(file, str) for file in file_of.values()):
        raise InputError(f"{index} is damaged; expected JSON with a weight_map that names a file for each tensor")
    shards = {}
    for file in sorted(set(file_of.values())):
        if Path(file).name != file or Path(file).suffix not in (".safetensors", ".bin") or "\0" in file:
            raise InputError(f"{index} names the file {file!r}; expected a file of its own directory")
        path = index.with_name(file)
        if not path.is_file():
            raise InputError(f"{path} is missing; expected every file that {index.name} names")
        shards[file] = _read_file(path)
    absent = [name for name, file in file_of.items() if name not in shards[file]]
    if absent:
        raise InputError(
            f"{index.with_name(file_of[absent[0]])} has no tensor {absent[0]}; expected all that {index.name} assigns "
            f"to it ({len(absent)} tensors are missing)"
        )
    return {name: shards[file][name] for name, file in file_of.items()}
