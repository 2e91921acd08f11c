"""Room for more tokens in a model's tables."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.models.checks import check_config, check_seed, check_size
from longformer_jax.models.parameters import check_tree
from longformer_jax.settings import pinned_random

# What has an entry for each token, without the "longformer/" of models with heads.
_TABLES = ("word_embeddings/embedding", "lm_head/decoder/embedding")
_BIAS = "lm_head/bias"


@pinned_random()
def resize_vocab(
    config: LongformerConfig, params: Any, vocab_size: int, *, seed: int = 0
) -> tuple[LongformerConfig, Any]:
    """Adds rows for new tokens to the word embeddings, and to the output projection and its bias where there are any.

    New rows are drawn from N(0, initializer_range²), as for training from scratch; new biases are 0. Existing rows stay
    as they are, and so do the logits of existing tokens.

    Args:
      config, params: of any model, as `load_pretrained` returns them; both stay as they are.
      vocab_size: the new number of ids, such as `tokenizer.get_vocab_size()` after `tokenizer.add_tokens`.
      seed: of the new rows.

    Returns:
      The configuration and the parameters. No array is in them twice, but unchanged arrays are those of `params`, so
      donating them deletes them there, too.

    Raises:
      InputError: `vocab_size` is less than it was (tokens cannot be dropped), or `params` are not those of `config`.
    """
    check_config(config, LongformerConfig)
    check_tree(params)
    vocab_size = check_size("vocab_size", vocab_size)
    seed = check_seed(seed)
    if vocab_size < config.vocab_size:
        raise InputError(f"vocab_size is {vocab_size}; expected at least {config.vocab_size}, the tokens there are")
    added = vocab_size - config.vocab_size
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    tables = {path: x for path, x in flat.items() if path.removeprefix("longformer/") in (*_TABLES, _BIAS)}
    if not any(path.endswith(_TABLES[0]) for path in tables):
        raise InputError(f"params have no {_TABLES[0]}; expected the parameters of an encoder")
    for path, x in tables.items():
        if jnp.shape(x)[:1] != (config.vocab_size,):
            raise InputError(f"params have {path} {jnp.shape(x)}; expected vocab_size rows, {config.vocab_size}")
        x = jnp.asarray(x)
        shape = (added, *x.shape[1:])
        if path == _BIAS:
            new = jnp.zeros(shape, x.dtype)
        else:
            key = jax.random.fold_in(jax.random.key(seed), _TABLES.index(path.removeprefix("longformer/")))
            new = config.initializer_range * jax.random.normal(key, shape, jnp.float32)
        flat[path] = jnp.concatenate([x, new.astype(x.dtype)])
    return dataclasses.replace(config, vocab_size=vocab_size), unflatten_dict(flat, sep="/")
