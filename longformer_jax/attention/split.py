"""How the models' attention is spread over the devices of the mesh in use (`jax.set_mesh`).

Everything else in a model works on each position by itself, and XLA spreads it as its inputs are. Attention is written
out for each device, so that what is sent is what the band needs: batch entries over the axes "data" and "fsdp", a
sequence over "sequence", heads over "tensor", as far as the mesh has them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from longformer_jax.errors import InputError

BATCH_AXES = ("data", "fsdp")
SEQUENCE_AXIS = "sequence"
TENSOR_AXIS = "tensor"


def axis_sizes() -> dict[str, int]:
    """The axes of the mesh in use that split something here: those that XLA manages, with more than one device.

    Raises:
      InputError: an axis of these names is Explicit, as `jax.make_mesh` makes them unless told otherwise, or the model
        is inside of a `jax.shard_map` over the sequence, where its tokens would be taken for a whole one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    known, sizes = (*BATCH_AXES, SEQUENCE_AXIS, TENSOR_AXIS), {}
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True):
        if name not in known or size == 1:
            continue
        if kind == AxisType.Explicit:
            raise InputError(f"the mesh in use has an Explicit axis {name!r}; expected axis_types of AxisType.Auto")
        if name == SEQUENCE_AXIS and kind == AxisType.Manual:
            raise InputError(
                f"the model is inside of jax.shard_map over {name!r}; expected it outside, as it splits its sequences"
            )
        if kind == AxisType.Auto:
            sizes[name] = size
    return sizes


def check_mesh(name: str, x: Any) -> None:
    """Raises InputError where an array lies on a mesh with Explicit axes: each operation would have to say how its
    result lies there."""
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
    axes = [] if mesh is None else zip(mesh.axis_names, mesh.axis_types, strict=True)
    if axis := next((axis for axis, kind in axes if kind == AxisType.Explicit), None):
        raise InputError(f"{name} is on a mesh with an Explicit axis {axis!r}; expected axis_types of AxisType.Auto")


def flat_rows(x: jax.Array) -> jax.Array:
    """[B, T, E] -> [B * T, E], on which XLA's CPU backend runs dense layers several times as fast; as it is where the
    mesh splits the sequence, which the merged axis could not be split by."""
    return x if SEQUENCE_AXIS in axis_sizes() else x.reshape(-1, x.shape[-1])


def spread(x: jax.Array) -> jax.Array:
    """x [B, T, …] as `over_devices` takes it: where this is called once, XLA need not find out."""
    sizes = axis_sizes()
    split = [_names(axis, length, sizes) or None for axis, length in zip("BT", x.shape, strict=False)]
    return lax.with_sharding_constraint(x, P(*split)) if any(split) else x


@dataclasses.dataclass(frozen=True)
class Part:
    """What of the arrays a device has.

    Attributes:
      is_whole: whether it is all of them, as there is no mesh.
      axis_name: the axis over which the sequence is split; None where it is not.
      batch, head: where the part begins, integers or traced ones.
    """

    is_whole: bool = True
    axis_name: str | None = None
    batch: Any = 0
    head: Any = 0

    @property
    def count(self) -> int:
        """How many parts the sequence has."""
        return 1 if self.axis_name is None else lax.axis_size(self.axis_name)

    def first(self, length: int) -> Any:
        """The position of the first of its `length` rows in the whole sequence."""
        return 0 if self.axis_name is None else lax.axis_index(self.axis_name) * length

    def dropout_origin(self, query: Any = 0, key: Any = 0) -> tuple[Any, ...] | None:
        """As `banded_attention` takes it, for queries and keys from these positions on."""
        return None if self.is_whole else (self.batch, self.head, query, key)


def over_devices(function: Callable[..., Any], *operands: tuple[Any, Any], results: Any) -> Any:
    """function(part, *arrays) on each device of the mesh in use, or once where there is none.

    Args:
      function: of a `Part`, and of this device's parts of the arrays.
      operands: pairs of an array and a text that names its axes: B batch, T sequence, H heads, which are split if they
        can be, and other letters, which are not. Trees of arrays go with trees of texts, those without any with
        anything.
      results: the texts of what it returns, by which the parts are put together again.

    Raises:
      InputError: the sequence cannot be split evenly.
    """
    sizes = axis_sizes()
    if not sizes:
        return function(Part(), *(array for array, _ in operands))
    texts = [axes if jax.tree.leaves(array) else None for array, axes in operands]
    lengths: dict[str, int] = {}
    for (array, _), axes in zip(operands, texts, strict=True):
        for leaf, text in zip(jax.tree.leaves(array), jax.tree.leaves(axes), strict=True):
            lengths |= dict(zip(text, leaf.shape, strict=True))
    split = {axis: names for axis in "BTH" if (names := _names(axis, lengths.get(axis, 1), sizes))}

    def spec(text: str) -> P:
        return P(*(split.get(axis) for axis in text))

    def start(axis: str) -> Any:
        if axis not in split:
            return 0
        return lax.axis_index(split[axis]) * (lengths[axis] // math.prod(sizes[name] for name in split[axis]))

    def each(*arrays: Any) -> Any:
        axis_name = SEQUENCE_AXIS if "T" in split else None
        return function(Part(False, axis_name, batch=start("B"), head=start("H")), *arrays)

    return jax.shard_map(
        each,
        in_specs=tuple(P() if axes is None else jax.tree.map(spec, axes) for axes in texts),
        out_specs=jax.tree.map(spec, results),
        check_vma=False,
    )(*(array for array, _ in operands))


def _names(axis: str, length: int, sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh's axes that split B, T or H of this length."""
    of = {"B": BATCH_AXES, "T": (SEQUENCE_AXIS,), "H": (TENSOR_AXIS,)}
    names = tuple(name for name in of[axis] if name in sizes)
    if not length % math.prod(sizes[name] for name in names):
        return names
    if axis == "T" and length > 1:  # a single token is what models are initialised with
        raise InputError(
            f"the sequence has {length:,} positions; expected a multiple of {sizes[SEQUENCE_AXIS]}, the size of the "
            f"mesh's axis {SEQUENCE_AXIS!r}"
        )
    return ()
