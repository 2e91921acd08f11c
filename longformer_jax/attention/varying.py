"""Arrays inside of a `jax.shard_map` that knows over which axes each of them varies, as it does by default.

There a loop's state must vary over the same axes from its beginning, and a gradient over those of what it is of.
"""

from typing import Any

import jax
from jax import lax


def varying_alike(arrays: Any) -> Any:
    """A tree of arrays, each varying over all axes that some of them vary over; gradients are summed over these."""
    return vary_as(arrays, *jax.tree.leaves(arrays))


def vary_as(arrays: Any, *others: jax.Array) -> Any:
    """A tree of arrays, varying over all axes that some others vary over."""
    axes = frozenset().union(*map(_axes_of, others))

    def cast(x: jax.Array) -> jax.Array:
        missing = axes - _axes_of(x)
        return lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(cast, arrays) if axes else arrays


def _axes_of(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying
