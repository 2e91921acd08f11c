"""A character LM as files: config.json and model.safetensors, under the names of our own parameters."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from longformer_jax.checksums import check_sum, recording
from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.weights.architectures import differences
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.hugging_face_config import CHAR_LM, CONFIG, read_values
from longformer_jax.weights.tensor_files import SAFETENSORS, read_tensors, write_tensors

# Settings of the computation that leave the numbers as they are.
_NOT_WRITTEN = ("remat", "implementation")


def save_char_lm(directory: str | os.PathLike[str], config: CharLMConfig, params: Any) -> None:
    """`save_pretrained` of a character LM.

    Raises:
      InputError: the parameters are not those of the model.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    if wrong := differences({path: np.shape(x) for path, x in flat.items()}, CharLM(config)):
        raise InputError(f"params are not those of the CharLM: {wrong}")
    tensors = {path.replace("/", "."): np.ascontiguousarray(x, np.float32) for path, x in flat.items()}
    directory = user_path("directory", directory)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {"architectures": ["CharLM"], "model_type": CHAR_LM} | {
        name: value for name, value in fields.items() if name not in _NOT_WRITTEN
    }
    with recording(directory / SAFETENSORS) as partial:
        write_tensors(partial, tensors, {"format": "flax"})
    with recording(directory / CONFIG) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_char_lm_files(source: str | os.PathLike[str], revision: str | None = None) -> tuple[CharLMConfig, Any]:
    """`load_pretrained` of a character LM.

    Raises:
      InputError: there is no such model; it is of another kind; its files are missing or damaged; the tensors are not
        those that config.json describes.
    """
    directory = find_directory(source, revision)
    config = read_char_lm_config(directory)
    check_sum(directory / SAFETENSORS)
    stored = {name.replace(".", "/"): tensor for name, tensor in read_tensors(directory).items()}
    if wrong := differences({path: x.shape for path, x in stored.items()}, CharLM(config)):
        raise InputError(f"the weights in {directory} are not what its {CONFIG} describes: {wrong}")
    for path, tensor in stored.items():
        if tensor.dtype != "float32":
            raise InputError(f"{path} in {directory} is of {tensor.dtype}; expected float32")
    # Copies, as files may change.
    return config, unflatten_dict({path: jnp.array(x.read(), jnp.float32) for path, x in stored.items()}, sep="/")


def read_char_lm_config(directory: Path) -> CharLMConfig:
    """The configuration in DIRECTORY/config.json; raises InputError where it is of another kind, or damaged."""
    values = read_values(directory)
    path = directory / CONFIG
    if values.get("model_type") != CHAR_LM:
        if "objective" in values:
            raise InputError(f"{path} is of a run; expected that of a model, such as {str(directory / 'model')!r}")
        raise InputError(f"{path}: model_type is {values.get('model_type')!r}; expected {CHAR_LM!r}")
    names = {field.name for field in dataclasses.fields(CharLMConfig)}
    fields = {name: value for name, value in values.items() if name not in ("architectures", "model_type")}
    try:
        for name, value in fields.items():
            if name not in names:
                raise InputError(f"{name} is {value!r}; expected no such field of a CharLMConfig")
        return CharLMConfig(**fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
