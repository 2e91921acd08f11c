"""Makes a Longformer of RoBERTa (section 5 of the paper)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer
from longformer_jax.models import LongformerConfig
from longformer_jax.models.checks import check_seed
from longformer_jax.settings import pinned_random

POSITIONS = ("copied", "random")
_DEFAULT_WINDOW = 512


@pinned_random()
def roberta_to_longformer(
    config: LongformerConfig,
    params: Any,
    *,
    max_length: int = 4096,
    attention_window: int | tuple[int, ...] | None = None,
    positions: str = "copied",
    seed: int = 0,
) -> tuple[LongformerConfig, Any]:
    """Lengthens the position table and gives global tokens projections of their own, copies of the ordinary ones.

    The new table keeps the `pad_token_id + 1` reserved rows, and then repeats the other rows until it is full. So a
    text that fitted before, and that fits the window, gets the same output. A Longformer may be lengthened too; it
    keeps its global projections.

    Args:
      config, params: of any model, as `load_pretrained` returns them; both stay as they are.
      max_length: the longest sequence, in tokens, that the new table serves.
      attention_window: of all layers, or of each, bottom first: both sides together. None is 512 for RoBERTa and no
        change for a Longformer.
      positions: "copied", or "random" for the paper's ablation (table 5): rows that RoBERTa did not have are drawn from
        N(0, initializer_range²), the others kept.
      seed: of the random rows.

    Returns:
      The configuration and the parameters of the Longformer. No array is in them twice, but unchanged arrays are those
      of `params`, so donating them deletes them there, too.

    Raises:
      InputError: `max_length` is less than the table serves already, or another argument is not valid.
    """
    length = as_integer(max_length)
    if length is None or length < config.max_length:
        raise InputError(
            f"max_length is {max_length!r}; expected at least {config.max_length}, which the position table serves "
            "already"
        )
    seed = check_seed(seed)
    if positions not in POSITIONS:
        raise InputError(f"positions is {positions!r}; expected one of {', '.join(POSITIONS)}")
    if attention_window is None:
        attention_window = _DEFAULT_WINDOW if config.attention_mode == "full" else config.attention_window
    reserved = config.pad_token_id + 1
    new_config = dataclasses.replace(
        config,
        max_position_embeddings=length + reserved,
        attention_window=attention_window,
        attention_mode="sliding_window",
        global_projections=True,
    )

    encoder = params.get("longformer", params)
    layers = dict(encoder["layers"])
    for name in ("query", "key", "value"):
        if f"{name}_global" not in layers:  # an array twice in one tree cannot be donated
            layers[f"{name}_global"] = jax.tree.map(jnp.array, layers[name])
    table = jnp.asarray(encoder["position_embeddings"]["embedding"])
    if positions == "copied":
        rows = jnp.arange(length) % config.max_length + reserved
        table = jnp.concatenate([table[:reserved], table[rows]])
    else:
        shape = (length - config.max_length, config.hidden_size)
        new_rows = config.initializer_range * jax.random.normal(jax.random.key(seed), shape, jnp.float32)
        table = jnp.concatenate([table, new_rows])
    encoder = {**encoder, "layers": layers, "position_embeddings": {"embedding": table}}
    return new_config, {**params, "longformer": encoder} if "longformer" in params else encoder
