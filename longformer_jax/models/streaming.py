"""Streaming: a CharLM that reads and writes text of any length with the memory of its windows.

Each layer keeps the keys and values of the last window * dilation positions, so a chunk costs O(chunk) however far the
stream has come, and its logits are those of one forward pass over the whole stream.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer
from longformer_jax.models.char_lm import CharLM, CharLMConfig, check_cache
from longformer_jax.models.checks import (
    check_config,
    check_integers,
    check_number,
    check_seed,
    check_size,
    check_tokens,
    check_within,
)
from longformer_jax.models.parameters import check_tree
from longformer_jax.settings import pinned_random

Cache = dict

_TEMPERATURES = "0, or a number >= 1e-6"


def init_cache(config: CharLMConfig, batch_size: int) -> Cache:
    """An empty cache: {"position": int32 scalar, "layers": keys and values [layers, B, window * dilation, H, D]}.

    The position wraps at 2**31, up to 2**32 characters in all.

    Raises:
      InputError: `config` or `batch_size` is none.
    """
    check_config(config, CharLMConfig)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), config.cache_spec(check_size("batch_size", batch_size)))


def extend(config: CharLMConfig, params, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads a chunk of any length: tokens [B, C] -> (logits float32 [B, C, V], cache).

    Raises:
      InputError: as `CharLM`; also if `cache` belongs to another model or batch size, `config` is none, or `params` is
        no tree of parameters.
    """
    check_config(config, CharLMConfig)
    if cache is None:
        raise InputError("cache is None; expected what init_cache gave, or an earlier call")
    check_tree(params)
    logits_and_cache: Any = CharLM(config).apply({"params": params}, tokens, cache=cache)
    return logits_and_cache


def decode_step(config: CharLMConfig, params, cache: Cache, token: jax.Array) -> tuple[jax.Array, Cache]:
    """Reads one character: token [B] -> (logits float32 [B, V] of the next one, cache); raises as `extend`."""
    check_config(config, CharLMConfig)
    check_integers("token", token, "batch")
    check_within("token", token, config.vocab_size)
    logits, cache = extend(config, params, cache, token[:, None])
    return logits[:, 0], cache


def prefill(
    config: CharLMConfig, params, tokens: jax.Array, *, cache: Cache | None = None, chunk: int = 512
) -> tuple[jax.Array, Cache]:
    """Reads tokens [B, P] chunk by chunk, in memory that does not grow with P.

    Returns:
      logits float32 [B, V] of the character after the last, and the cache.

    Raises:
      InputError: as `extend`; also if `chunk` is less than 1.
    """
    check_config(config, CharLMConfig)
    check_tree(params)
    check_tokens("tokens", tokens, config.vocab_size)
    chunk = check_size("chunk", chunk)
    if cache is None:
        cache = init_cache(config, tokens.shape[0])
    check_cache(config, cache, tokens.shape[0])
    logits, cache = _extend(config, params, cache, tokens[:, :chunk])
    for start in range(chunk, tokens.shape[1], chunk):
        logits, cache = _extend(config, params, cache, tokens[:, start : start + chunk])
    return logits[:, -1], cache


_extend = jax.jit(extend, static_argnums=0)


@pinned_random()
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
    """Continues a prompt.

    Args:
      prompt: integers [B, P], P >= 1.
      length: number of characters to generate.
      seed: for sampling; the same seed gives the same text.
      temperature: divides the logits; 0 takes the most likely character.
      top_k: sample among the k most likely characters only.
      top_p: sample among the most likely characters that together hold this probability (nucleus sampling).

    Returns:
      int32 [B, length].

    Raises:
      InputError: the prompt is empty or has a character outside the vocabulary, or a setting is out of range; or as
        `extend`.
    """
    check_config(config, CharLMConfig)
    check_tree(params)
    check_tokens("prompt", prompt, config.vocab_size)
    characters = as_integer(length)
    if characters is None or not 1 <= characters < 2**31:
        raise InputError(f"length is {length!r}; expected an integer from 1 to 2**31 - 1")
    seed = check_seed(seed)
    temperature = check_number("temperature", temperature, _TEMPERATURES)
    if temperature and temperature < 1e-6:  # smaller ones would overflow the logits
        raise InputError(f"temperature is {temperature}; expected {_TEMPERATURES}")
    if top_k is not None:
        k = as_integer(top_k)
        if k is None or not 1 <= k <= config.vocab_size:
            raise InputError(f"top_k is {top_k!r}; expected 1 to vocab_size, {config.vocab_size}")
        top_k = k
    if top_p is not None:
        top_p = check_number("top_p", top_p, "a number in (0, 1]")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}; expected a number in (0, 1]")
    logits, cache = prefill(config, params, prompt)
    settings = temperature or None, top_p  # numbers, for all of which one program will do
    return _write(config, characters, top_k, *settings, params, cache, logits, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _write(config, length, top_k, temperature, top_p, params, cache, logits, key):
    def step(carry, index):
        logits, cache = carry
        key_now = jax.random.fold_in(key, index)
        token = sample(key_now, logits, temperature=temperature, top_k=top_k, top_p=top_p)
        return decode_step(config, params, cache, token), token

    return lax.scan(step, (logits, cache), jnp.arange(length))[1].T


def sample(
    key: jax.Array, logits: jax.Array, *, temperature: Any = 1.0, top_k: int | None = None, top_p: Any = None
) -> jax.Array:
    """Draws tokens int32 [B] from logits [B, V]; the options are those of `generate`, temperature 0 being None."""
    if temperature is None:
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
