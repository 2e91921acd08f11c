"""Where the numbers of a step stop being finite: from the embeddings up to the loss, and down again with gradients."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from longformer_jax.models.finite import count_layers, is_of_layers


def places(params: Any) -> list[str]:
    """The places that `first_fault` counts, in words, for parameters or their shapes."""
    layers = count_layers(params)
    above, below = _not_of_layers(params)
    return [
        "the embeddings",
        *(f"the output of layer {i} of {layers}" for i in range(1, layers + 1)),
        "what follows the last layer",
        *(f"the gradient of {path}" for path in above),
        *(f"the gradient of layer {i} of {layers}" for i in range(layers, 0, -1)),
        *(f"the gradient of {path}" for path in below),
        "the sum of all squared gradients",
    ]


def first_fault(marks: jax.Array, loss: jax.Array, grads: Any) -> jax.Array:
    """The number of the first of `places` that is not finite, an int32 scalar; that of the last where all are.

    Args:
      marks: booleans [L + 1] of the forward pass, as of `apply_marked`.
      loss: a scalar.
      grads: a tree like the parameters; what counts is whether their squares can be summed.
    """
    flat: Any = flatten_dict(grads)
    stacked = [jnp.square(x).sum(tuple(range(1, x.ndim))) for path, x in flat.items() if is_of_layers(path)]
    single = {"/".join(path): jnp.square(x).sum()[None] for path, x in flat.items() if not is_of_layers(path)}
    above, below = _not_of_layers(grads)
    layers = sum(stacked, jnp.zeros(count_layers(grads)))
    down = [*(single[path] for path in above), layers[::-1], *(single[path] for path in below)]
    finite = [marks, jnp.isfinite(loss)[None], *map(jnp.isfinite, down), jnp.zeros(1, bool)]
    return jnp.argmin(jnp.concatenate(finite)).astype(jnp.int32)


def _not_of_layers(params: Any) -> tuple[list[str], list[str]]:
    """The paths of parameters above the layers, such as a head's, and of those below, of the embeddings."""
    paths = ["/".join(path) for path in flatten_dict(params) if not is_of_layers(path)]
    return [path for path in paths if "embed" not in path], [path for path in paths if "embed" in path]
