"""Looking up rows of a table, without silence about ids that it does not have."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.models.checks import equals


def outside(ids: Any, rows: int) -> jax.Array:
    """Booleans like integers of any width, True where they are no row of a table."""
    ids = jnp.asarray(ids)
    if ids.dtype.itemsize < 4:  # too narrow, perhaps, for the number of rows
        ids = ids.astype(jnp.int32)
    return (ids < 0) | (ids >= rows)


def look_up(table: nn.Embed, ids: Any, padding_id: int | None = None) -> jax.Array:
    """The rows [..., E] of a table for integers [...]; NaN for those that are outside of it.

    Args:
      table: of `num_embeddings` rows.
      ids: integers of any width.
      padding_id: the row that gets no gradient from here, as in PyTorch's `Embedding(padding_idx=…)`.
    """
    ids, rows = jnp.asarray(ids), table.num_embeddings
    wrong = outside(ids, rows)
    # Negative ids would wrap. Rounded after it is looked up: the gradients of a row are summed in the table's dtype.
    x = jnp.take(table.embedding, jnp.where(wrong, rows, ids.astype(jnp.int32)), axis=0, mode="fill")
    x = x.astype(table.dtype)
    if padding_id is not None:
        x = jnp.where(equals(ids, padding_id)[..., None], lax.stop_gradient(x), x)
    return x
