"""Streaming: a CharLM that reads and writes text of any length with the memory of its windows.

Each layer keeps the keys and values of the last window * dilation positions, so a chunk costs O(chunk) however far the
stream has come, and its logits are those of one forward pass over the whole stream.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longformer_jax.errors import InputError
from longformer_jax.models.char_lm import CharLM, CharLMConfig
from longformer_jax.models.checks import check_seed

Cache = dict


def init_cache(config: CharLMConfig, batch_size: int) -> Cache:
    """An empty cache: {"position": int32 scalar, "layers": keys and values [layers, B, window * dilation, H, D]}."""
    layers = []
    for group in config.layer_groups:
        shape = (group.stop - group.start, batch_size, group.reach, config.num_heads, config.head_dim)
        layers.append((jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)))
    return {"position": jnp.int32(0), "layers": tuple(layers)}


def extend(config: CharLMConfig, params, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads a chunk of any length: tokens [B, C] -> (logits float32 [B, C, V], cache)."""
    logits_and_cache: Any = CharLM(config).apply({"params": params}, tokens, cache=cache)
    return logits_and_cache


def decode_step(config: CharLMConfig, params, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads one character: token [B] -> (logits float32 [B, V] of the next one, cache)."""
    logits, cache = extend(config, params, cache, token[:, None])
    return logits[:, 0], cache


def prefill(
    config: CharLMConfig, params, tokens: jax.Array, *, cache: Cache | None = None, chunk: int = 512
) -> tuple[jax.Array, Cache]:
    """Reads tokens [B, P] chunk by chunk, in memory that does not grow with P.

    Returns:
      logits float32 [B, V] of the character after the last, and the cache.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise InputError(f"prompt is {list(tokens.shape)}; expected at least one token, [batch, length >= 1]")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; expected at least 1")
    cache = init_cache(config, tokens.shape[0]) if cache is None else cache
    logits, cache = _extend(config, params, cache, tokens[:, :chunk])
    for start in range(chunk, tokens.shape[1], chunk):
        logits, cache = _extend(config, params, cache, tokens[:, start : start + chunk])
    return logits[:, -1], cache


_extend = jax.jit(extend, static_argnums=0)


def generate(
    config: CharLMConfig,
    params,
    prompt: jax.Array,
    length: int,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Writes on from a prompt.

    Args:
      prompt: integers [B, P], P >= 1.
      length: number of characters to write.
      seed: of the sampling; the same seed gives the same text.
      temperature: divides the logits; 0 takes the most likely character.
      top_k: sample among the k most likely characters only.
      top_p: sample among the most likely characters that together hold this probability (nucleus sampling).

    Returns:
      int32 [B, length].

    Raises:
      InputError: a setting is out of range.
    """
    if not isinstance(length, int | np.integer) or not 1 <= length < 2**31:
        raise InputError(f"length is {length!r}; expected an integer from 1 to 2**31 - 1")
    check_seed(seed)
    if temperature != 0 and not 1e-6 <= temperature < math.inf:  # smaller ones would overflow the logits
        raise InputError(f"temperature is {temperature}; expected 0, or a number >= 1e-6")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and 1 <= top_k <= config.vocab_size):
        raise InputError(f"top_k is {top_k!r}; expected 1 to vocab_size, {config.vocab_size}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected a number in (0, 1]")
    low, high = (int(prompt.min()), int(prompt.max())) if prompt.size else (0, 0)
    if low < 0 or high >= config.vocab_size:
        raise InputError(f"prompt has ids from {low} to {high}; expected 0 to vocab_size - 1, {config.vocab_size - 1}")
    logits, cache = prefill(config, params, prompt)
    return _write(config, length, temperature, top_k, top_p, params, cache, logits, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _write(config, length, temperature, top_k, top_p, params, cache, logits, key):
    def step(carry, index):
        logits, cache = carry
        key_now = jax.random.fold_in(key, index)
        token = sample(key_now, logits, temperature=temperature, top_k=top_k, top_p=top_p)
        return decode_step(config, params, cache, token), token

    return lax.scan(step, (logits, cache), jnp.arange(length))[1].T


def sample(
    key: jax.Array, logits: jax.Array, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> jax.Array:
    """Draws tokens int32 [B] from logits [B, V]; the options are those of `generate`."""
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    # Ranked first, so that exactly k characters are left also where the k-th is as likely as the next.
    ranked, tokens = lax.top_k(logits / temperature, top_k or logits.shape[-1])
    if top_p is not None:
        probability = jax.nn.softmax(ranked, axis=-1)
        # Kept: every character before whose rank less than top_p is held; always the first.
        kept = jnp.cumsum(probability, axis=-1) - probability < top_p
        ranked = jnp.where(kept, ranked, -jnp.inf)
    rank = jax.random.categorical(key, ranked)
    return jnp.take_along_axis(tokens, rank[:, None], axis=-1)[:, 0].astype(jnp.int32)
