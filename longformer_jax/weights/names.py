"""What Hugging Face calls our parameters; the one table behind loading and saving."""

import os.path
import re
from collections.abc import Iterable, Mapping

from longformer_jax.errors import InputError
from longformer_jax.weights.stored_tensor import StoredTensor

# Our module: theirs. {} is the number of a layer, where we have one array for all layers.
_MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings_norm": "embeddings.LayerNorm",
    "layers/query": "encoder.layer.{}.attention.self.query",
    "layers/key": "encoder.layer.{}.attention.self.key",
    "layers/value": "encoder.layer.{}.attention.self.value",
    "layers/query_global": "encoder.layer.{}.attention.self.query_global",
    "layers/key_global": "encoder.layer.{}.attention.self.key_global",
    "layers/value_global": "encoder.layer.{}.attention.self.value_global",
    "layers/attention_out": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/mlp_in": "encoder.layer.{}.intermediate.dense",
    "layers/mlp_out": "encoder.layer.{}.output.dense",
    "layers/mlp_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
    "lm_head": "lm_head",
    "lm_head/dense": "lm_head.dense",
    "lm_head/norm": "lm_head.layer_norm",
    "lm_head/decoder": "lm_head.decoder",
    "classifier": "classifier",
    "classifier/dense": "classifier.dense",
    "classifier/out_proj": "classifier.out_proj",
    "qa_outputs": "qa_outputs",
}
_MODULE_OF = {theirs: ours for ours, theirs in _MODULES.items()}
# A kernel is their weight transposed.
_LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}

# Other names of a tensor, in files that write it twice or under the other name alone; where the output projection is
# not tied, only the biases are one.
TIED = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def encoder_path(path: str) -> str:
    """The path of a parameter, as "layers/query/kernel", without the "longformer/" that it has in models with heads."""
    return path.removeprefix("longformer/")


def is_stacked(path: str) -> bool:
    """Whether a parameter has a leading axis of layers, each of which is a tensor of Hugging Face's."""
    return encoder_path(path).startswith("layers/")


def hugging_face_names(path: str, num_layers: int) -> list[str]:
    """The tensors, without a model's prefix, that a parameter is made of: one, or one for each layer."""
    module, leaf = encoder_path(path).rsplit("/", 1)
    name = f"{_MODULES[module]}.{_LEAVES[leaf]}"
    return [name.format(layer) for layer in range(num_layers)] if is_stacked(path) else [name]


def hugging_face_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each of these tensors, for a parameter of shape `shape`."""
    shape = shape[1:] if is_stacked(path) else shape
    return shape[::-1] if is_kernel(path) else shape


def is_kernel(path: str) -> bool:
    """Whether a parameter is transposed in Hugging Face's files."""
    return path.endswith("/kernel")


def shared_prefix(names: Iterable[str]) -> str:
    """What all names begin with and no model here knows, as the "module." of wrappers; "" where there is none.

    That is the shortest one, of whole words, without which the most names are known.
    """
    shared = os.path.commonprefix(list(names))
    prefixes = [""] + [shared[: match.end()] for match in re.finditer(r"\.", shared)]
    known = [sum(is_known(_plain(name[len(prefix) :])) for name in names) for prefix in prefixes]
    return prefixes[known.index(max(known))]


def elsewhere(names: Iterable[str]) -> str | None:
    """Where an encoder is whose tensors are within another model: the prefix of its embeddings."""
    embeddings = "embeddings.word_embeddings.weight"
    return next((name.removesuffix(embeddings) for name in names if name.endswith(embeddings)), None) or None


def without_prefix(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors under the names that `hugging_face_names` gives: no prefix, no names of old versions.

    Raises:
      InputError: two tensors would have one name.
    """
    prefix = shared_prefix(stored)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        plain = _plain(name[len(prefix) :])
        if plain in tensors:
            raise InputError(f"the weights have two tensors {plain}, one of them as {name}; expected one of each")
        tensors[plain] = tensor
    for other, name in TIED.items():
        if other in tensors:
            tensors.setdefault(name, tensors[other])
    return tensors


def untied(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """What `without_prefix` gives, of a model whose output projection is not the embeddings: only biases are one."""
    words, bias = TIED.values()
    decoder, decoder_bias = TIED
    found = {**tensors}
    if decoder in found and found.get(words) is found[decoder]:
        del found[words]
    if decoder_bias in found:
        found[bias] = found[decoder_bias]
    return found


def _plain(name: str) -> str:
    """A name without its model's prefix, and as new versions have it."""
    name = re.sub(r"^(roberta|longformer)\.", "", name)
    for old, new in _OLD_ENDINGS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def has_global_projections(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether these tensors are a Longformer's."""
    return any("_global." in name for name in stored)


def layer_number(name: str) -> int | None:
    """The layer that a tensor of Hugging Face's belongs to."""
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(match[1]) if match else None


def module_of(name: str) -> str | None:
    """Our name for the module that a tensor belongs to; None where no model here has it."""
    module, _, leaf = re.sub(r"^encoder\.layer\.\d+\.", "encoder.layer.{}.", name).rpartition(".")
    return _MODULE_OF.get(module) if leaf in _LEAVES.values() else None


def is_known(name: str) -> bool:
    """Whether a tensor is of some model here, or repeats another one, or is no parameter."""
    return name in TIED or name in _BUFFERS or module_of(name) is not None
