"""Reading a text piece by piece against reading it at once."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax.errors import InputError
from longformer_jax.models import CharLMConfig, decode_step, extend, init_cache, prefill
from tests.models.small import SMALL, error, logits_of, random_params, random_tokens

# Windows reach 3, 10 and 10 positions back, 23 together: the text is several times longer.
TEXT = random_tokens(2, 107)
CONFIGS = {
    "transformer_xl": SMALL,
    "rotary": dataclasses.replace(SMALL, positions="rotary", dilated_heads=1),
}

jit_extend = jax.jit(extend, static_argnums=0)
jit_decode_step = jax.jit(decode_step, static_argnums=0)


@functools.cache
def truth(name: str) -> tuple[Any, np.ndarray]:
    """Parameters, and the logits of one forward pass over the text."""
    params = random_params(CONFIGS[name])
    return params, np.asarray(logits_of(CONFIGS[name], params, TEXT))


def shapes(cache: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), cache)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_one_by_one_equals_the_forward_pass(name: str) -> None:
    config, (params, expected) = CONFIGS[name], truth(name)
    cache = init_cache(config, 2)
    logits = []
    for token in TEXT.T:
        new, cache = jit_decode_step(config, params, cache, token)
        logits.append(new)
    assert int(cache["position"]) == TEXT.shape[1]
    assert logits[0].shape == (2, config.vocab_size) and logits[0].dtype == jnp.float32
    assert error(np.stack(logits, axis=1), expected) < 3e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_ragged_chunks_equal_the_forward_pass(name: str) -> None:
    """Chunks shorter and longer than any window, and than all of them together."""
    config, (params, expected) = CONFIGS[name], truth(name)
    cache, start, logits = init_cache(config, 2), 0, []
    for size in (1, 7, 1, 50, 7, 7, 7, 7, 7, 7, 1, 1, 1, 1, 1, 1):
        new, cache = jit_extend(config, params, cache, TEXT[:, start : start + size])
        logits.append(new)
        start += size
    assert start == TEXT.shape[1]
    assert error(np.concatenate(logits, axis=1), expected) < 3e-6


def test_cache_holds_the_windows_whatever_has_been_read() -> None:
    config = CharLMConfig(num_layers=3, windows=(8, 16, 16), dilations=(1, 4, 4), dilated_heads=2)
    cache = jax.eval_shape(lambda: init_cache(config, 5))
    keys = [layer[0].shape for layer in cache["layers"]]
    assert keys == [(1, 5, 8, 8, 64), (2, 5, 64, 8, 64)]
    assert all(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(cache["layers"]))

    params, empty = random_params(SMALL), init_cache(SMALL, 2)
    for length in (1, 50):
        _, cache = jit_extend(SMALL, params, empty, TEXT[:, :length])
        assert shapes(cache) == shapes(empty)


@pytest.mark.parametrize("chunk", [50, 106, 512])
def test_prefill_gives_the_logits_of_the_last_character(chunk: int) -> None:
    """Also where the last chunk is shorter (107 = 2 * 50 + 7) or a single character."""
    params, expected = truth("transformer_xl")
    logits, cache = prefill(SMALL, params, jnp.asarray(TEXT), chunk=chunk)
    assert error(logits, expected[:, -1]) < 3e-6
    assert int(cache["position"]) == TEXT.shape[1]


def test_prefill_continues_a_stream() -> None:
    params, expected = truth("transformer_xl")
    _, cache = prefill(SMALL, params, jnp.asarray(TEXT[:, :57]), chunk=50)
    logits, cache = prefill(SMALL, params, jnp.asarray(TEXT[:, 57:100]), cache=cache, chunk=7)
    assert error(logits, expected[:, 99]) < 3e-6
    logits, cache = jit_decode_step(SMALL, params, cache, TEXT[:, 100])
    assert error(logits, expected[:, 100]) < 3e-6
    assert int(cache["position"]) == 101


@pytest.mark.parametrize("position", [1_000_000, 2**31 - 60])
def test_a_stream_is_as_exact_after_a_million_characters(position: int) -> None:
    """A cache without positions in it (Transformer-XL) can be moved once its start is forgotten."""
    params, expected = truth("transformer_xl")
    _, cache = prefill(SMALL, params, jnp.asarray(TEXT[:, :57]), chunk=50)
    cache = cache | {"position": jnp.int32(position)}
    logits, _ = jit_extend(SMALL, params, cache, TEXT[:, 57:])
    assert error(logits, expected[:, 57:]) < 3e-6


def test_bfloat16_streams() -> None:
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    params, expected = truth("transformer_xl")
    whole = np.asarray(logits_of(config, params, TEXT[:, :100]))
    first, cache = jit_extend(config, params, init_cache(config, 2), TEXT[:, :50])
    second, _ = jit_extend(config, params, cache, TEXT[:, 50:100])
    pieces = np.concatenate([first, second], axis=1)

    def root_mean_square(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(x**2)))

    # Both are rounded, each in its own order; neither is further from float32.
    rounding = root_mean_square(whole - expected[:, :100])
    assert root_mean_square(pieces - expected[:, :100]) < 1.5 * rounding
    assert root_mean_square(pieces - whole) < 2 * rounding


@pytest.mark.parametrize("tokens", [np.zeros((2, 0), np.int32), np.zeros(3, np.int32)])
def test_prefill_wants_a_prompt(tokens: np.ndarray) -> None:
    message = re.escape(f"prompt is {list(tokens.shape)}; expected at least one token, [batch, length >= 1]")
    with pytest.raises(InputError, match=message):
        prefill(SMALL, {}, jnp.asarray(tokens))


def test_prefill_wants_a_chunk() -> None:
    with pytest.raises(InputError, match="chunk is 0; expected at least 1"):
        prefill(SMALL, {}, jnp.asarray(TEXT), chunk=0)
