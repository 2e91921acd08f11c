"""The model once more, dense and slow, from the papers alone: the truth that CharLM is compared with.

Transformer-XL (Dai et al. 2019, section 3.3) with the position term in its unfactorised form, an array of all pairs of
positions; rotary positions as complex numbers (Su et al. 2021). Every operation is in the dtype of the parameters.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from longformer_jax.models import CharLMConfig


def frequencies(width: int) -> np.ndarray:
    """Radians a position, float64 [width / 2]."""
    return 10_000.0 ** (-np.arange(0, width, 2) / width)


def sinusoid(distance: np.ndarray, width: int) -> np.ndarray:
    """R(m) = [sin(m w), cos(m w)] in float64, [..., width]."""
    angle = distance[..., None] * frequencies(width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def visible(config: Any, layer: int, length: int) -> np.ndarray:
    """Which key each query sees in a layer of a CharLMConfig, booleans [H, T, T]."""
    distance = np.arange(length)[:, None] - np.arange(length)
    heads = []
    for head in range(config.num_heads):
        dilation = config.dilations[layer] if head < config.dilated_heads else 1
        seen = [step * dilation for step in range(config.windows[layer] + 1)]
        heads.append(np.isin(distance, seen))
    return np.stack(heads)


def forward(
    config: CharLMConfig,
    params: Any,
    tokens: np.ndarray,
    xp: Any = np,
    wrap: Callable[[Callable], Callable] = lambda layer: layer,
) -> Any:
    """Logits [B, T, V] of parameters of one dtype, with arrays of `xp`: numpy or jax.numpy. `wrap` is what the function
    of each layer goes through, such as jax.checkpoint."""

    def norm(x: Any, p: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / xp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attention(x: Any, p: Any, layer: int) -> Any:
        B, T, E = x.shape
        H, D = config.num_heads, config.head_dim
        q, k, v = (y.reshape(B, T, H, D) for y in xp.split(x @ p["qkv"]["kernel"], 3, axis=-1))
        if config.qk_norm:
            q, k = (
                y / xp.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]
                for y, name in ((q, "query_norm"), (k, "key_norm"))
            )
        if config.positions == "transformer_xl":
            table = xp.asarray(sinusoid(np.arange(T), config.sinusoid_dim), x.dtype)
            relative = (table @ p["relative"]).reshape(T, H, D)
            by_distance = xp.einsum("bihd,mhd->bhim", q + p["v"], relative)
            distance = np.maximum(np.arange(T)[:, None] - np.arange(T), 0)  # keys to the right are not visible
            scores = xp.einsum("bihd,bjhd->bhij", q + p["u"], k)
            scores = scores + xp.take_along_axis(by_distance, distance[None, None], axis=-1)
        else:
            turn = np.exp(1j * np.arange(T)[:, None, None] * frequencies(D))
            q, k = ((y[..., : D // 2] + 1j * y[..., D // 2 :]) * turn for y in (q, k))
            scores = xp.einsum("bihd,bjhd->bhij", q, k.conj()).real
        scores = xp.where(visible(config, layer, T), scores / math.sqrt(D), -math.inf)
        p_attend = xp.exp(scores - scores.max(-1, keepdims=True))
        p_attend = p_attend / p_attend.sum(-1, keepdims=True)
        out = xp.einsum("bhij,bjhd->bihd", p_attend, v).reshape(B, T, E)
        return out @ p["attention_out"]["kernel"]

    def feed_forward(x: Any, p: Any) -> Any:
        x = x @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
        if config.activation == "relu2":
            x = xp.maximum(x, 0) ** 2
        else:
            x = 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]

    def apply(layer: int, x: Any, p: Any) -> Any:
        x = x + attention(norm(x, p["attention_norm"]), p, layer)
        return x + feed_forward(norm(x, p["mlp_norm"]), p)

    embedding = params["embed"]["embedding"]
    x = embedding[tokens]
    for layer in range(config.num_layers):
        x = wrap(functools.partial(apply, layer))(x, layer_params(params["layers"], layer))
    logits = norm(x, params["final_norm"]) @ (embedding.T if config.tie_embeddings else params["head"])
    return logits if config.logit_softcap is None else config.logit_softcap * xp.tanh(logits / config.logit_softcap)


def layer_params(layers: Any, layer: int) -> Any:
    """The parameters of one layer out of the stack."""
    if isinstance(layers, dict):
        return {name: layer_params(value, layer) for name, value in layers.items()}
    return layers[layer]
