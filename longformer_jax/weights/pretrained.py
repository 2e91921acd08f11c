"""Loads weights of RoBERTa and Longformer into our parameter trees, and saves them in Hugging Face's format."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from longformer_jax.checksums import check_sum, recording
from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.models import CharLM, CharLMConfig, Longformer, LongformerConfig
from longformer_jax.models.checks import check_bool, check_config, check_seed, check_size
from longformer_jax.models.parameters import abstract_params, check_tree
from longformer_jax.weights import names
from longformer_jax.weights.architectures import (
    BARE_LONGFORMER,
    ModelFactory,
    differences,
    ending_of,
    init_params,
    listing,
    make_module,
    model_called,
    model_of,
)
from longformer_jax.weights.char_lm import load_char_lm_files, save_char_lm
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.hugging_face_config import CONFIG, config_to_hugging_face, read_config, read_values
from longformer_jax.weights.stored_tensor import StoredTensor
from longformer_jax.weights.tensor_files import SAFETENSORS, has_tensors, read_tensors, write_tensors

_log = logging.getLogger(__name__)

# What a checkpoint need not have; all else is the encoder.
_TASK_HEADS = ("lm_head", "classifier", "qa_outputs")
_HEADS = ("pooler", *_TASK_HEADS)
_DECODER_BIAS = "lm_head.decoder.bias"
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@overload
def load_pretrained(
    source: str | os.PathLike[str], model: type[CharLM], *, revision: str | None = None
) -> tuple[CharLMConfig, Any]: ...


@overload
def load_pretrained(
    source: str | os.PathLike[str],
    model: ModelFactory = Longformer,
    *,
    revision: str | None = None,
    num_labels: int | None = None,
    ignore_head: bool = False,
    seed: int = 0,
) -> tuple[LongformerConfig, Any]: ...


def load_pretrained(
    source: str | os.PathLike[str],
    model: ModelFactory = Longformer,
    *,
    revision: str | None = None,
    num_labels: int | None = None,
    ignore_head: bool = False,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Loads a model's configuration and parameters.

    Weights of RoBERTa (XLM-RoBERTa, CamemBERT) load into the same encoder with full attention; `roberta_to_longformer`
    makes a Longformer of them. Tensors decide: a "RoBERTa" with global projections and `attention_window` in its
    config.json, as AI2's conversion notebook leaves it, is the Longformer that it is. A head or pooler that the
    checkpoint lacks is initialised, with a warning in the log; heads that `model` does not have are ignored. A prefix
    that all tensor names share, such as "module.", is dropped, with a warning.

    Args:
      source: a directory that transformers, `save_pretrained` or `longformer_jax.weights.convert` has written, or the
        name of a model on the Hugging Face hub.
      model: the class to load: `Longformer`, one with a head, or `CharLM`.
      revision: on the hub: branch, tag or commit.
      num_labels: for a classification head that is initialised; None means config.json's number. With another number,
        its `id2label` is dropped.
      ignore_head: whether to initialise the head even if the checkpoint has one. The pooler does not count as a head.
      seed: for initialisation.

    Returns:
      The configuration and the parameters, float32 on the default device.

    Raises:
      InputError: the model cannot be found or is of another kind; its files are missing, damaged or dangerous, or have
        changed since `save_pretrained` wrote them; tensors are missing or of other shapes; a masked language model's
        output projection is not the transposed embedding, though config.json does not untie it; the checkpoint's head
        has another number of labels than `num_labels`.
    """
    seed = check_seed(seed)
    check_bool("ignore_head", ignore_head)
    if model is CharLM:
        for name, value, expected in (("num_labels", num_labels, None), ("ignore_head", ignore_head, False)):
            if value is not expected:
                raise InputError(f"{name} is {value!r}; expected {expected!r}, as a CharLM has no such head")
        return load_char_lm_files(source, revision)
    if num_labels is not None:
        num_labels = check_size("num_labels", num_labels)
    directory = find_directory(source, revision)
    check_sum(directory / SAFETENSORS)
    stored_config = read_model_config(directory)
    config = stored_config
    if num_labels is not None and num_labels != stored_config.num_labels:
        config = dataclasses.replace(stored_config, num_labels=num_labels, id2label=None)
    module = make_module(model, config)
    expected = abstract_params(module)
    wanted = {path: x for path, x in expected.items() if not (ignore_head and _head_of(path) in _TASK_HEADS)}
    if has_tensors(directory):
        stored = read_tensors(directory)
        if prefix := names.shared_prefix(stored):
            _log.warning("the names of all tensors in %s begin with %r, which is left out", directory, prefix)
        params = _gather(wanted, names.without_prefix(stored), config, num_labels, directory)
    else:
        params = _load_converted(wanted, stored_config, num_labels, directory)
    if absent := wanted.keys() - params.keys():
        modules = ", ".join(sorted({path.rsplit("/", 1)[0] for path in absent}))
        _log.warning("%s has no %s; initialised at random (seed %d)", directory, modules, seed)
    if absent := expected.keys() - params.keys():
        params |= _initialise(module, absent, seed)
    return config, unflatten_dict(params, sep="/")


def read_model_config(directory: Path) -> LongformerConfig:
    """The configuration that `load_pretrained` returns: what config.json says, and what the tensors show.

    Raises:
      InputError: as `load_pretrained`, for config.json and files of tensors that cannot be read.
    """
    stored = read_tensors(directory) if has_tensors(directory) else {}
    return read_config(directory, global_projections=names.has_global_projections(stored))


def find_model(directory: Path) -> ModelFactory:
    """The model, with its head, that a directory has the weights of; raises InputError as `load_pretrained` does."""
    if not has_tensors(directory):
        return _converted_model(directory)
    stored = _read_tensors(directory)
    modules = {module for module in map(names.module_of, stored) if module is not None}
    width = next((x.shape[0] for name, x in stored.items() if name == "classifier.weight" and x.shape), None)
    return model_of(modules, width)


def stored_heads(directory: Path) -> set[str]:
    """The heads, and the pooler, of which a directory of Hugging Face's has tensors."""
    modules = map(names.module_of, _read_tensors(directory)) if has_tensors(directory) else ()
    return {module.split("/")[0] for module in modules if module is not None} & {*_HEADS}


def save_pretrained(
    directory: str | os.PathLike[str],
    config: LongformerConfig | CharLMConfig,
    params: Any,
    model: ModelFactory | None = None,
) -> None:
    """Writes model.safetensors and config.json, which transformers loads as its class of the same name.

    And checksums.json, by which `load_pretrained` notices a changed byte. It refuses what has been changed on purpose,
    too, until that file is removed.

    Full attention without global projections is written as RoBERTa, everything else as Longformer. transformers ignores
    dilation and all other settings that its Longformer does not have. A character LM, which transformers does not have,
    is written under the names of its parameters here, and with the windows of `config`.

    Args:
      directory: created if missing; existing files of these two names are replaced.
      config, params: the model's, as `load_pretrained` returns them.
      model: its class; None means to infer it from the parameters.

    Raises:
      InputError: the parameters are not those of the model.
    """
    check_config(config, LongformerConfig, CharLMConfig)
    check_tree(params)
    if isinstance(config, CharLMConfig):
        if model is not None and model is not CharLM:
            raise InputError(f"model is {model!r}; expected CharLM, as config is a CharLMConfig")
        return save_char_lm(directory, config, params)
    flat = flatten_dict(params, sep="/")
    model = model or _model_of_params(flat)
    if model is Longformer and "pooler/kernel" not in flat:
        model = BARE_LONGFORMER
    module = make_module(model, config)
    _check_params(flat, module)
    values = config_to_hugging_face(config, ending_of(module))
    tensors = {}
    for path, x in flat.items():
        x = np.asarray(x, np.float32)
        layers = x if names.is_stacked(path) else [x]
        prefix = f"{values['model_type']}." if path.startswith("longformer/") else ""
        for name, tensor in zip(names.hugging_face_names(path, len(layers)), layers, strict=True):
            tensors[prefix + name] = np.ascontiguousarray(tensor.T if names.is_kernel(path) else tensor)
    if "lm_head.decoder.weight" in tensors:
        tensors[_DECODER_BIAS] = tensors[names.TIED[_DECODER_BIAS]]
    directory = user_path("directory", directory)
    with recording(directory / SAFETENSORS) as partial:
        write_tensors(partial, tensors, {"format": "pt"})
    write_config(directory, values)


def save_converted(directory: Path, config: LongformerConfig, params: Any) -> None:
    """Writes config.json and the parameters as a checkpoint of Orbax, for `load_pretrained`."""
    from longformer_jax.checkpoints import save_params  # imports Orbax

    flat = flatten_dict(params, sep="/")
    module = make_module(_model_of_params(flat), config)
    _check_params(flat, module)
    save_params(directory, params)
    write_config(directory, config_to_hugging_face(config, ending_of(module)))


def write_config(directory: Path, values: Mapping[str, Any]) -> None:
    """Writes DIRECTORY/config.json."""
    with recording(directory / CONFIG) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_tensors(directory: Path) -> dict[str, StoredTensor]:
    return names.without_prefix(read_tensors(directory))


def _gather(
    expected: Mapping[str, jax.ShapeDtypeStruct],
    stored: Mapping[str, StoredTensor],
    config: LongformerConfig,
    num_labels: int | None,
    directory: Path,
) -> dict[str, jax.Array]:
    """The parameters that are stored: the encoder's, and those of heads, unless all of a head is absent."""
    if not config.tie_word_embeddings:
        stored = names.untied(stored)
    parts = {path: names.hugging_face_names(path, config.num_hidden_layers) for path in expected}
    present = {_head_of(path) for path in expected if any(name in stored for name in parts[path])} | {None}
    parts = {path: tensors for path, tensors in parts.items() if _head_of(path) in present}
    found = {path: stored[tensors[0]].shape for path, tensors in parts.items() if tensors[0] in stored}
    _check_num_labels(num_labels, expected, found, directory)
    if config.global_projections and not names.has_global_projections(stored):
        raise InputError(
            f"{directory} has no global projections, which its {CONFIG} promises; expected a Longformer's (python "
            "-m longformer_jax.weights.convert makes one of a RoBERTa with its own config.json)"
        )
    wrong = []
    for path, tensors in parts.items():
        shape = names.hugging_face_shape(path, expected[path].shape)
        for name in tensors:
            if name not in stored:
                wrong.append(f"{name} is missing")
            elif stored[name].shape != shape:
                wrong.append(f"{name} is {list(stored[name].shape)} instead of {list(shape)}")
            elif stored[name].dtype not in _FLOATS:
                wrong.append(f"{name} is of {stored[name].dtype} instead of float32")
    for name in stored:
        if (names.layer_number(name) or 0) >= config.num_hidden_layers:
            wrong.append(f"{name} is of a layer that is none of the {config.num_hidden_layers}")
        elif not names.is_known(name):
            _log.info("%s has the tensor %s, which is of no use here", directory, name)
    if wrong:
        elsewhere = names.elsewhere(stored) if "embeddings.word_embeddings.weight" not in stored else None
        raise InputError(
            f"the weights in {directory} are not what its {CONFIG} describes: {listing(wrong)}"
            + (f" (only some names of tensors begin with {elsewhere!r}; expected all or none)" if elsewhere else "")
        )
    if "lm_head" in present and config.tie_word_embeddings:
        _check_tied(stored, directory)
    return {path: _read(path, tensors, expected[path].shape, stored) for path, tensors in parts.items()}


def _head_of(path: str) -> str | None:
    """The head that a parameter belongs to; None for the encoder."""
    first = names.encoder_path(path).split("/")[0]
    return first if first in _HEADS else None


def _read(path: str, tensors: list[str], shape: tuple[int, ...], stored: Mapping[str, StoredTensor]) -> jax.Array:
    """A parameter; one at a time, so that there is only one on the host beside those on the device."""

    def read(name: str) -> np.ndarray:
        return stored[name].read().T if names.is_kernel(path) else stored[name].read()

    with np.errstate(all="ignore"):  # float64 may be too large, and NaN is a number as any other
        if not names.is_stacked(path):
            return jnp.array(read(tensors[0]), jnp.float32)  # a copy, as files may change
        array = np.empty(shape, np.float32)
        for layer, name in enumerate(tensors):
            array[layer] = read(name)
        return jnp.asarray(array)


def _check_tied(stored: Mapping[str, StoredTensor], directory: Path) -> None:
    for other, name in names.TIED.items():
        if other in stored and stored[other] is not stored[name]:
            one, two = stored[other].read(), stored[name].read()
            if not np.array_equal(one, two, equal_nan=True):
                raise InputError(
                    f"{other} in {directory} is not {name}; expected them to be tied, or tie_word_embeddings false in "
                    f"its {CONFIG}"
                )


def _check_num_labels(
    num_labels: int | None, expected: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], directory: Path
) -> None:
    """Raises InputError where the caller asks for another number of labels than a classifier has."""
    for path in ("classifier/out_proj/bias", "classifier/bias"):
        if path in expected and expected[path].shape == (num_labels,) != found.get(path, (num_labels,)):
            (width,) = found[path]
            raise InputError(
                f"num_labels is {num_labels}, but the classifier in {directory} has {width} labels; expected "
                f"num_labels={width}, or ignore_head=True for a new classifier"
            )


def _load_converted(
    expected: Mapping[str, jax.ShapeDtypeStruct],
    stored_config: LongformerConfig,
    num_labels: int | None,
    directory: Path,
) -> dict[str, jax.Array]:
    """What `save_converted` wrote, as far as it is expected."""
    from longformer_jax.checkpoints import load_params

    module = make_module(_converted_model(directory), stored_config)
    loaded: dict[str, Any] = flatten_dict(
        load_params(directory, unflatten_dict(abstract_params(module), sep="/")), sep="/"
    )
    saved = {names.encoder_path(path): x for path, x in loaded.items()}
    params = {path: saved[names.encoder_path(path)] for path in expected if names.encoder_path(path) in saved}
    _check_num_labels(num_labels, expected, {path: x.shape for path, x in params.items()}, directory)
    wrong = [
        f"{path} is {list(x.shape)} instead of {list(expected[path].shape)}"
        for path, x in params.items()
        if x.shape != expected[path].shape
    ]
    if wrong:
        raise InputError(f"the parameters in {directory} are not those of the model: {listing(wrong)}")
    return params


def _converted_model(directory: Path) -> ModelFactory:
    from longformer_jax.checkpoints import has_params, saved_shapes

    if not has_params(directory):
        read_tensors(directory)  # says what is expected
    architectures = read_values(directory).get("architectures")
    model = model_called(architectures[0]) if isinstance(architectures, list) and architectures else None
    if model is Longformer and "pooler/kernel" not in saved_shapes(directory):
        return BARE_LONGFORMER
    if model is None:
        raise InputError(f"{directory / CONFIG}: architectures is {architectures!r}; expected the name of a Longformer")
    return model


def _initialise(module: Any, paths: set[str], seed: int) -> dict[str, jax.Array]:
    def init():
        params = flatten_dict(init_params(module, seed), sep="/")
        return {path: params[path] for path in paths}

    return jax.jit(init)()  # so that nothing else is computed


def _model_of_params(flat: Mapping[str, Any]) -> ModelFactory:
    modules = {names.encoder_path(path).rpartition("/")[0] for path in flat}
    kernel = flat.get("classifier/kernel")
    return model_of(modules, None if kernel is None else np.shape(kernel)[-1])


def _check_params(flat: Mapping[str, Any], module: Any) -> None:
    if wrong := differences({path: tuple(np.shape(x)) for path, x in flat.items()}, module):
        raise InputError(f"params are not those of {type(module).__name__}: {wrong}")
