"""Global tokens: which they are, and one softmax over the band and them (Longformer, section 3.1).

Their number differs from row to row, but arrays have static shapes: a row has room for `capacity` of them.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longformer_jax.attention.split import Part
from longformer_jax.errors import InputError
from longformer_jax.models.checks import check_size, dtype_kind, is_known, why_unknown


@flax.struct.dataclass
class GlobalTokens:
    """Where the global tokens of each row are.

    Attributes:
      mask: booleans [B, T], True for global tokens.
      index: int32 [B, G], their positions in ascending order; T where a row has fewer than G.
      part: what the arrays are of longer ones.
    """

    mask: jax.Array
    index: jax.Array
    part: Part = flax.struct.field(pytree_node=False, default=Part())

    @property
    def valid(self) -> jax.Array:
        """Booleans [B, G]: whether there is a token behind `index`."""
        return self.index < self.mask.shape[1] * self.part.count

    def gather(self, x: jax.Array) -> jax.Array:
        """The rows [B, G, ...] of the global tokens in x [B, T, ...]; zeros where there is none."""
        rows = jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(x, self._own_index())
        return rows if self.part.axis_name is None else lax.psum(rows, self.part.axis_name)

    def scatter(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        """x [B, T, ...] with the rows [B, G, ...] in place of the global tokens'."""
        return jax.vmap(lambda x, index, rows: x.at[index].set(rows, mode="drop"))(x, self._own_index(), rows)

    def _own_index(self) -> jax.Array:
        """`index` counted from the part's first row; the part's length where a token is elsewhere."""
        length = self.mask.shape[1]
        own = self.index - self.part.first(length)
        return jnp.where((own >= 0) & (own < length), own, length)


def check_masks(attention_mask: Any, global_attention_mask: Any) -> None:
    """Raises InputError unless the masks of a `Longformer` that are given are masks; by value where that is known."""
    for field, mask, meanings in (
        ("attention_mask", attention_mask, ("padding", "a token", "a global token")),
        ("global_attention_mask", global_attention_mask, ("an ordinary token", "a global token")),
    ):
        if mask is None:
            continue
        kind, other = dtype_kind(mask), []
        if is_known(mask) and kind in ("integer", "floating"):
            values = np.asarray(mask)
            other = values[~np.isin(values, range(len(meanings)))][:1].tolist()
        if kind in ("bool", "integer") and not other:
            continue
        found = [f"is of {mask.dtype}"] * (kind != "integer") + [f"holds {value}" for value in other]
        raise InputError(
            f"{field} {' and '.join(found)}; expected booleans, or the integers "
            + ", ".join(f"{value} ({meaning})" for value, meaning in enumerate(meanings))
            + ("; an additive mask becomes one by mask == 0" if (field, kind) == ("attention_mask", "floating") else "")
        )


def invalid_rows(attention_mask: Any, global_attention_mask: Any) -> jax.Array | None:
    """Booleans [B], True where values that `check_masks` could not see are others; None where it has seen all."""
    rows = None
    for mask, largest in ((attention_mask, 2), (global_attention_mask, 1)):
        if mask is not None and not is_known(mask) and mask.dtype != bool:
            invalid = ((mask < 0) | (mask > largest)).any(-1)
            rows = invalid if rows is None else rows | invalid
    return rows


def global_capacity(global_attention_mask: Any, attention_mask: Any = None) -> int:
    """The largest number of global tokens in a row, counted on the host: the least value for `max_global_tokens`.

    Args:
      global_attention_mask: as of a `Longformer`, [B, T] or with more leading axes; may be None.
      attention_mask: the same; where it is 0, a token does not count, and where it is 2, it does in any case.

    Raises:
      InputError: a mask is not valid, or its values are not known here.
    """
    for field, mask in (("global_attention_mask", global_attention_mask), ("attention_mask", attention_mask)):
        if not is_known(mask):
            raise InputError(f"{field} {why_unknown(mask)}; expected an array whose values can be counted")
    masks = [None if mask is None else np.asarray(mask) for mask in (global_attention_mask, attention_mask)]
    check_masks(*reversed(masks))
    shapes = [mask.shape for mask in masks if mask is not None]
    if len({*shapes}) > 1:
        found, expected = reversed(shapes)
        raise InputError(f"attention_mask has the shape {list(found)}; expected {list(expected)}, as the other mask")
    is_global = _is_global(*masks)
    return 0 if is_global is None else int(is_global.sum(-1).max(initial=0))


def _is_global(global_attention_mask: Any, attention_mask: Any) -> Any:
    """Booleans like the masks; None where none of them can make a token global."""
    is_global = None if global_attention_mask is None else global_attention_mask != 0
    if attention_mask is None:
        return is_global
    if is_global is not None:
        is_global &= attention_mask != 0
    if attention_mask.dtype != bool:
        marked = attention_mask == 2
        is_global = marked if is_global is None else is_global | marked
    return is_global


def find_global_tokens(
    global_attention_mask: Any, attention_mask: Any, max_global_tokens: int | None
) -> tuple[GlobalTokens | None, jax.Array | None]:
    """Where the global tokens are.

    Args:
      global_attention_mask, attention_mask: [B, T], as of a `Longformer`, checked; each may be None.
      max_global_tokens: G; None takes the largest number in a row, which has to be known when the call is traced. Of
        an `attention_mask` that is traced, None means that it has no 2.

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
                f"max_global_tokens is None while global_attention_mask {why_unknown(global_attention_mask)}; expected "
                "a number of global tokens that no row exceeds, such as global_capacity(global_attention_mask) on the "
                "host"
            )
        max_global_tokens = global_capacity(global_attention_mask, attention_mask if all_known else None)
    else:
        max_global_tokens = check_size("max_global_tokens", max_global_tokens, minimum=0)
        if all_known and (most := global_capacity(global_attention_mask, attention_mask)) > max_global_tokens:
            raise InputError(
                f"max_global_tokens is {max_global_tokens}; expected at least {most}, as many as a row has"
            )
    mask = _is_global(*(None if x is None else jnp.asarray(x) for x in (global_attention_mask, attention_mask)))
    if mask is None:
        return None, None
    length = mask.shape[1]
    capacity = min(max_global_tokens, length)
    overflow = None if all_known else mask.sum(-1) > capacity
    if capacity == 0:
        return None, overflow
    index = jax.vmap(lambda row: jnp.nonzero(row, size=capacity, fill_value=length)[0])(mask)
    return GlobalTokens(mask, index.astype(jnp.int32)), overflow
