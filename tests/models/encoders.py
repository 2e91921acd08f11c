"""An encoder small enough for tests, with parameters none of which is zero or like another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax import Longformer, LongformerConfig

SMALL = LongformerConfig(
    vocab_size=40,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=130,
    type_vocab_size=2,
    attention_window=(6, 10, 10),
    attention_dilation=(1, 2, 2),
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def random_params(config: LongformerConfig = SMALL, model: type = Longformer, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    ids = np.zeros((1, 1, 1) if model.__name__ == "ForMultipleChoice" else (1, 1), np.int32)
    shapes = jax.eval_shape(model(config).init, jax.random.key(0), ids)["params"]

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        x = 0.3 * rng.standard_normal(shape.shape).astype(np.float32)
        return jnp.asarray(1 + x if path[-1].key == "scale" else x)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_ids(lengths: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ids and attention_mask, int32 [len(lengths), max(lengths)]."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(3, SMALL.vocab_size, mask.shape), SMALL.pad_token_id)
    return ids.astype(np.int32), mask.astype(np.int32)
