"""Which layers of a forward pass are finite: marks that a model leaves where they are asked for."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

_NAME = "finite"


def finite_tokens(x: jax.Array) -> jax.Array:
    """Booleans [B, T]: whether all numbers of a token are finite, x being [B, T, E].

    They are brought together once, behind the last layer: no layer of a model that is spread over devices has to wait.
    """
    return jnp.isfinite(x).all(-1)


def wants_marks(module: nn.Module) -> bool:
    """Whether a model is called by `apply_marked`."""
    return module.is_mutable_collection("intermediates")


def leave_marks(module: nn.Module, tokens: list[jax.Array]) -> None:
    """Leaves a mark for the embeddings and for each layer, of booleans [n, B, T] that together are of all these."""
    marks = jnp.concatenate(tokens).all((1, 2))
    module.sow("intermediates", _NAME, marks, init_fn=lambda: True, reduce_fn=jnp.logical_and)


def apply_marked(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> tuple[Any, jax.Array]:
    """What a call of a model gives, and its marks.

    Returns:
      The output, and booleans [L + 1], False where the embeddings, or the output of a layer, are not finite. All are
      True for a model that leaves no marks.
    """
    output, variables = module.apply({"params": params}, *args, mutable=["intermediates"], **kwargs)
    left: Any = flatten_dict(variables.get("intermediates", {}))
    found = [marks for path, marks in left.items() if path[-1] == _NAME]
    return output, jnp.stack(found).all(0) if found else jnp.ones(1 + count_layers(params), bool)


def is_of_layers(path: tuple[str, ...]) -> bool:
    """Whether a parameter, by the keys of its path, is one of all layers, stacked on a leading axis."""
    return path[: 1 + (path[0] == "longformer")][-1] == "layers"


def count_layers(params: Any) -> int:
    """L, the number of a model's layers; 0 where it has no stack of them."""
    flat: Any = flatten_dict(params)
    return next((len(x) for path, x in flat.items() if is_of_layers(path)), 0)
