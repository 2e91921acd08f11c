"""The masks of masked-language-model training, drawn anew at every step."""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer, check_integer, check_number

# Of the tokens to predict, BERT hides this share behind <mask>, replaces half of the rest, and leaves the other half.
_HIDDEN = 0.8
_HIDDEN_OR_REPLACED = 0.9


def mask_tokens(
    key: jax.Array,
    tokens: jax.Array,
    *,
    vocab_size: int,
    mask_token_id: int,
    special_token_ids: Collection[int],
    mask_probability: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
    """Chooses the tokens that a model has to predict and hides them in its inputs (Devlin et al. 2019, section 3.1).

    Each token that is not special is chosen with `mask_probability`, independently of all others. A chosen token
    becomes <mask> with probability 0.8, a token drawn uniformly from those that are not special with 0.1 (which may be
    the token itself), and stays as it is with 0.1. A new key for each step gives RoBERTa's dynamic masking (Liu et al.
    2019, section 4.1). Draws depend on the key and the position in the array alone, not on how `tokens` is sharded.

    Args:
      key: a key of jax.random.
      tokens: integers `[B, T]`, the targets.
      vocab_size: the number of token ids. This argument and those below are static: Python values under `jax.jit`.
      mask_token_id: the id of <mask>, which counts as special.
      special_token_ids: ids that are never chosen and never drawn, such as those of <s>, </s> and <pad>.
      mask_probability: in (0, 1].

    Returns:
      The inputs, int32 `[B, T]`, and where the chosen tokens are, bool `[B, T]`.

    Raises:
      InputError: `tokens` is not `[B, T]` of integers; an id is outside [0, vocab_size); every id is special; or
        `mask_probability` is outside (0, 1].
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise InputError(f"tokens is {tokens.dtype} of shape {tokens.shape}; expected integers [B, T]")
    if not 0 < check_number("mask_probability", mask_probability, "a number in (0, 1]") <= 1:
        raise InputError(f"mask_probability is {mask_probability}; expected a number in (0, 1]")
    vocab_size = check_integer("vocab_size", vocab_size)
    for field, ids in (("mask_token_id", [mask_token_id]), ("special_token_ids", special_token_ids)):
        for token in ids:
            if (id := as_integer(token)) is None or not 0 <= id < vocab_size:
                raise InputError(f"{field} has {token!r}; expected ids from 0 to {vocab_size - 1}, as {vocab_size=}")
    special = sorted({int(token) for token in (mask_token_id, *special_token_ids)})
    if len(special) == vocab_size:
        raise InputError(
            f"special_token_ids leaves no ordinary token ({vocab_size=}); expected ids that are not special"
        )

    tokens = tokens.astype(jnp.int32)
    choice_key, action_key, token_key = jax.random.split(key, 3)
    chosen = jax.random.uniform(choice_key, tokens.shape, jnp.float32) < mask_probability
    action = jax.random.uniform(action_key, tokens.shape, jnp.float32)
    ordinary = jax.random.randint(token_key, tokens.shape, 0, vocab_size - len(special), jnp.int32)
    for token in special:  # in ascending order, each shifts the numbers from it on: n becomes the n-th ordinary id
        chosen &= tokens != token
        ordinary += ordinary >= token
    inputs = jnp.where(action < _HIDDEN, mask_token_id, jnp.where(action < _HIDDEN_OR_REPLACED, ordinary, tokens))
    return jnp.where(chosen, inputs, tokens), chosen
