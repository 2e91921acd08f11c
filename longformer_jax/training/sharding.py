"""The mesh, and where parameters and batches lie on it."""

import functools
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.attention.split import BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS
from longformer_jax.errors import InputError
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.parts import MeshConfig

_logger = logging.getLogger(__name__)

# What has one output for each head or hidden unit, and what takes them in.
_OUT_OF_UNITS = r"layers/(attention_out|mlp_out)"
_INTO_UNITS = r"layers/((query|key|value)(_global)?|mlp_in)"

# The first pattern found in a tensor's path decides; what it leaves open is replicated. The matrices of all layers,
# [L, in, out], and the encoder's tables, [V, E], hold nearly all parameters. The optimizer's moments have the paths of
# their parameters.
PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (rf"{_INTO_UNITS}/kernel|layers/relative", P(None, "fsdp", "tensor")),
    (rf"{_INTO_UNITS}/bias|layers/[uv]$", P(None, "tensor")),
    (rf"{_OUT_OF_UNITS}/kernel", P(None, "tensor", "fsdp")),
    (r"layers/.*kernel", P(None, "fsdp")),  # a character LM's qkv, whose heads do not lie in one piece
    (r"(word|position)_embeddings/", P(None, "fsdp")),
    (r"", P()),
)


def make_mesh(config: MeshConfig) -> Mesh:
    """A mesh (data, fsdp, sequence, tensor) over all devices of all processes; raises InputError where their number
    does not fit."""
    devices = jax.device_count()
    sizes = {axis: devices // _given(config) if size == -1 else size for axis, size in config.sizes.items()}
    if math.prod(sizes.values()) != devices:
        named = " by ".join(f"{axis}={size}" for axis, size in config.sizes.items() if size != 1)
        raise InputError(
            f"mesh is {named or 'of one device'}; expected the product to be {devices}, the number of devices that JAX "
            "sees"
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _given(config: MeshConfig) -> int:
    """The product of the sizes that are not -1."""
    return math.prod(size for size in config.sizes.values() if size != -1)


def evaluation_mesh(config: MeshConfig, lengths: Sequence[int]) -> Mesh:
    """A run's mesh over the devices of this process, as far as their number and the sequences' lengths allow; else each
    device has whole sequences, which is logged."""
    devices = jax.local_devices()
    rest = max(len(devices) // _given(config), 1)
    sizes = {axis: rest if (size := config.sizes[axis]) == -1 else size for axis in (SEQUENCE_AXIS, TENSOR_AXIS)}
    if len(devices) % math.prod(sizes.values()) or any(length % sizes[SEQUENCE_AXIS] for length in lengths):
        named = " by ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1)
        all_lengths = ", ".join(map(str, sorted(set(lengths))))
        _logger.info(
            f"evaluation: every device has whole sequences, as {named} does not fit {len(devices)} devices and "
            f"sequences of {all_lengths}"
        )
        sizes = dict.fromkeys(sizes, 1)
    sizes = {"data": len(devices) // math.prod(sizes.values()), "fsdp": 1, **sizes}
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def describe_mesh(mesh: Mesh) -> str:
    """The axes with more than one device; "data=1" where there is none."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "data=1"


def batch_devices(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def in_use[**P, R](mesh: Mesh, traced: Callable[P, R]) -> Callable[P, R]:
    """The same function with the mesh in use, by which models spread their attention."""

    @functools.wraps(traced)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return traced(*args, **kwargs)

    return call


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """The NamedSharding of each tensor of a state, by `PARAMETER_RULES`.

    Raises:
      InputError: the mesh does not divide a dimension that a rule splits.
    """

    def sharding(path: tuple[Any, ...], tensor: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in PARAMETER_RULES if re.search(pattern, name))
        for size, axis in zip(tensor.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"mesh.{axis} is {mesh.shape[axis]}; expected a divisor of {size}, as {name} is {tensor.shape}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def check_memory(abstract_state: Any) -> None:
    """Raises InputError if the part of a state that falls to a device is larger than its memory."""
    tensors = jax.tree.leaves(abstract_state)
    needed = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in tensors)
    (device, *others), size = jax.local_devices(), None
    if device.platform == "cpu":  # all of them have one memory
        needed *= 1 + len(others)
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    elif stats := device.memory_stats():  # not of every platform
        size = stats.get("bytes_limit")
    if size and needed > size:
        parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_state["params"]))
        raise InputError(
            f"model has {parameters:,} parameters, which take {needed / 2**30:,.1f} GiB of {device.device_kind} in "
            f"training; expected at most its {size / 2**30:,.1f} GiB"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def microbatch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch `[A, B / A, …]`: each of the A microbatches over the axes that split it."""
    return NamedSharding(mesh, P(None, BATCH_AXES))


def accumulation_steps(config: ExperimentConfig, phase: int, mesh: Mesh, length: int | None = None) -> int:
    """A, the fewest microbatches of a phase's batch that give each device at most `sequences_per_device` at once.

    Devices that have one sequence together count as one.

    Of shorter sequences, of `length` tokens, as many more as have the same number of tokens; of longer ones fewer.

    Raises:
      InputError: the batch cannot be split evenly over the devices.
    """
    batch_size, most = config.phases[phase].batch_size, config.phases[phase].sequences_per_device
    if batch_size % (devices := batch_devices(mesh)):
        raise InputError(
            f"phases[{phase}].batch_size is {batch_size}; expected a multiple of {devices}, the number of devices that "
            "it is split over"
        )
    tokens, parts = length or config.phases[phase].sequence_length, mesh.shape[SEQUENCE_AXIS]
    if tokens % parts:
        raise InputError(
            f"phases[{phase}] has sequences of {tokens} tokens; expected a multiple of mesh.sequence, {parts}"
        )
    per_device = batch_size // devices
    if most is not None and length is not None:
        most = max(1, most * config.phases[phase].sequence_length // length)
    return next(
        count
        for count in range(1, per_device + 1)
        if per_device % count == 0 and per_device // count <= (most or per_device)
    )


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process reads the rows `[i * B / n, (i + 1) * B / n)` of a batch.

    Processes whose devices have parts of the same sequences read the same rows.

    Raises:
      InputError: it would have a part of what another process reads, and more.
    """
    parts = batch_devices(mesh)
    indices = NamedSharding(mesh, P(BATCH_AXES)).addressable_devices_indices_map((parts,)).values()
    mine = sorted({rows.indices(parts)[0] for (rows,) in indices})  # type: ignore
    count = len(mine)
    if mine[0] % count or parts % count or mine[-1] >= mine[0] + count:
        raise InputError(
            f"mesh splits batches into {parts} parts, of which this process has {', '.join(map(str, mine))}; expected "
            "data times fsdp to be such that every process has as many whole parts, side by side"
        )
    return mine[0] // count, parts // count


def put_batch(rows: Any, accumulate: int, mesh: Mesh) -> Any:
    """Puts the rows of a batch that this process holds on the mesh.

    Args:
      rows: a tree of arrays `[B / n, …]`, the rows of this process by `batch_share`.
      accumulate: A, the number of microbatches.

    Returns:
      A tree of arrays `[A, B / A, …]` over all processes, the same for any n: microbatch a has the rows a, a + A,
      a + 2A, …
    """

    def put(array: np.ndarray) -> jax.Array:
        microbatches = array.reshape(-1, accumulate, *array.shape[1:]).swapaxes(0, 1)
        return jax.make_array_from_process_local_data(microbatch_sharding(mesh), microbatches)

    return jax.tree.map(put, rows)
