"""A model small enough to be compared with dense.py, and what the tests do with it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.models import CharLM, CharLMConfig

# A layer alone and a scan of two, and two sorts of heads in these. The fewer groups, the less there is to compile.
SMALL = CharLMConfig(
    vocab_size=29,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    mlp_dim=48,
    windows=(3, 5, 5),
    dilations=(1, 2, 2),
    dilated_heads=2,
    dropout_rate=0.0,
    dtype="float32",
)
# What the paper's models do not have.
RECIPE: dict[str, Any] = {"activation": "relu2", "qk_norm": True, "logit_softcap": 5.0}


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(SMALL.vocab_size, size=shape).astype(np.int32)


def abstract_params(config: CharLMConfig) -> Any:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(CharLM(config).init, jax.random.key(0), tokens)["params"]


def random_params(config: CharLMConfig, seed: int = 0) -> Any:
    """Parameters float32, none of them zero or one and none of them alike: nothing drops out of a comparison."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        x = rng.standard_normal(shape.shape).astype(np.float32)
        match path[-1].key:
            case "kernel" | "relative" | "head":
                x /= np.sqrt(shape.shape[-2])
            case "scale":
                x = 1 + 0.2 * x
            case "bias" | "u" | "v":
                x *= 0.5
        return jnp.asarray(x)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config: CharLMConfig, params: Any, tokens: Any) -> jax.Array:
    logits = CharLM(config).apply({"params": params}, tokens)
    assert isinstance(logits, jax.Array)
    return logits


@functools.partial(jax.jit, static_argnums=0, static_argnames="deterministic")
def logits_and_grads(
    config: CharLMConfig, params: Any, tokens: Any, cotangent: Any, key: Any = None, *, deterministic: bool = True
) -> tuple[jax.Array, Any]:
    """Logits, and the gradients of their product with a cotangent."""
    rngs = {} if key is None else {"dropout": key}

    def apply(params: Any) -> Any:
        return CharLM(config).apply({"params": params}, tokens, deterministic=deterministic, rngs=rngs)

    logits, pull_back = jax.vjp(apply, params)
    return logits, pull_back(cotangent)[0]


def random_cotangent(config: CharLMConfig, tokens: np.ndarray, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*tokens.shape, config.vocab_size)).astype(np.float32)


def error(x: Any, truth: Any) -> float:
    """The largest deviation of any leaf, relative to that leaf's largest value in truth."""

    def of_leaf(x: Any, truth: Any) -> float:
        x, truth = np.asarray(x, np.float64), np.asarray(truth, np.float64)
        assert x.shape == truth.shape
        return float(np.abs(x - truth).max() / np.abs(truth).max())

    return max(jax.tree.leaves(jax.tree.map(of_leaf, x, truth)))
