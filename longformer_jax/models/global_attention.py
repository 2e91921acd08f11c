"""Global tokens: which they are, and one softmax over the band and them (Longformer, section 3.1).

Their number differs from row to row, but arrays have static shapes: a row has room for `capacity` of them.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.errors import InputError


@flax.struct.dataclass
class GlobalTokens:
    """Where the global tokens of each row are.

    Attributes:
      mask: booleans [B, T], True for global tokens.
      index: int32 [B, G], their positions in ascending order; T where a row has fewer than G.
    """

    mask: jax.Array
    index: jax.Array

    @property
    def valid(self) -> jax.Array:
        """Booleans [B, G]: whether there is a token behind `index`."""
        return self.index < self.mask.shape[1]

    def gather(self, x: jax.Array) -> jax.Array:
        """The rows [B, G, ...] of the global tokens in x [B, T, ...]; zeros where there is none."""
        return jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(x, self.index)

    def scatter(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        """x [B, T, ...] with the rows [B, G, ...] in place of the global tokens'."""
        return jax.vmap(lambda x, index, rows: x.at[index].set(rows, mode="drop"))(x, self.index, rows)


def global_capacity(global_attention_mask: Any, attention_mask: Any = None) -> int:
    """The largest number of global tokens in a row, on the host: what `max_global_tokens` has to be at least.

    Args:
      global_attention_mask: [B, T] (or with more leading axes), not zero for global tokens.
      attention_mask: as the first; where it is 0, a token does not count.
    """
    mask = np.asarray(global_attention_mask) != 0
    if attention_mask is not None:
        mask &= np.asarray(attention_mask) != 0
    return int(mask.sum(-1).max(initial=0))


def is_known(x: Any) -> bool:
    """Whether an array's values can be looked at, as they cannot while jit traces it."""
    return not isinstance(x, jax.core.Tracer)


def find_global_tokens(
    global_attention_mask: Any, attention_mask: Any, max_global_tokens: int | None
) -> tuple[GlobalTokens | None, jax.Array | None]:
    """Where the global tokens are.

    Args:
      global_attention_mask, attention_mask: [B, T], as of a `Longformer`; the second may be None.
      max_global_tokens: G; None takes the largest number in a row, which has to be known when the call is traced.

    Returns:
      The tokens, None where G is 0, and booleans [B], True where a row has more than G tokens; None where it is known
      that there is no such row.

    Raises:
      InputError: the number is neither given nor known, or it is known that a row has more than G.
    """
    all_known = is_known(global_attention_mask) and is_known(attention_mask)
    if max_global_tokens is None:
        if not is_known(global_attention_mask):
            raise InputError(
                "max_global_tokens is None while global_attention_mask is traced; expected a number of global tokens "
                "that no row exceeds, such as global_capacity(global_attention_mask) outside of jit"
            )
        max_global_tokens = global_capacity(global_attention_mask, attention_mask if all_known else None)
    elif type(max_global_tokens) is not int or max_global_tokens < 0:
        raise InputError(f"max_global_tokens is {max_global_tokens!r}; expected an integer >= 0")
    elif all_known and (most := global_capacity(global_attention_mask, attention_mask)) > max_global_tokens:
        raise InputError(f"max_global_tokens is {max_global_tokens}; expected at least {most}, as many as a row has")
    mask = jnp.asarray(global_attention_mask) != 0
    if attention_mask is not None:
        mask &= jnp.asarray(attention_mask) != 0
    length = mask.shape[1]
    capacity = min(max_global_tokens, length)
    overflow = None if all_known else mask.sum(-1) > capacity
    if capacity == 0:
        return None, overflow
    index = jax.vmap(lambda row: jnp.nonzero(row, size=capacity, fill_value=length)[0])(mask)
    return GlobalTokens(mask, index.astype(jnp.int32)), overflow
