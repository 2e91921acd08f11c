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
from tests.models.small import RECIPE, SMALL, error, logits_of, random_params, random_tokens

# Windows reach 3, 10 and 10 positions back, 23 together: the text is several times longer.
TEXT = random_tokens(2, 107)
CONFIGS = {
    "transformer_xl": SMALL,
    "rotary": dataclasses.replace(SMALL, positions="rotary", dilated_heads=1),
    "recipe": dataclasses.replace(SMALL, **RECIPE),
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


@pytest.mark.parametrize("position", [1_000_000, 2**31 - 25, 2**31 + 1, 2**32 - 60])
def test_a_stream_is_as_exact_after_a_million_characters(position: int) -> None:
    """A cache without positions in it (Transformer-XL) can be moved once its start is forgotten."""
    params, expected = truth("transformer_xl")
    _, cache = prefill(SMALL, params, jnp.asarray(TEXT[:, :57]), chunk=50)
    cache = cache | {"position": jnp.uint32(position).astype(jnp.int32)}
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


CACHE = init_cache(SMALL, 2)
OTHER_WINDOWS = init_cache(dataclasses.replace(SMALL, windows=(3, 4, 4)), 2)
OF_THE_CACHE = "of init_cache(config, 2)"


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (extend, (CACHE, TEXT - 1), "tokens holds -1; expected integers from 0 to 28"),
        (extend, (CACHE, TEXT + 1), "tokens holds 29; expected integers from 0 to 28"),
        (extend, (CACHE, TEXT.tolist()), "tokens is list; expected an array of integers [batch, length]"),
        (extend, (CACHE, TEXT * 1.0), "tokens is float64 [2, 107]; expected an array of integers [batch, length]"),
        (extend, (CACHE, TEXT[0]), "tokens is int32 [107]; expected an array of integers [batch, length]"),
        (extend, (CACHE, TEXT[:, :0]), "tokens has the shape [2, 0]; expected at least one row and one token"),
        (
            *(extend, (CACHE, TEXT[:1])),
            "cache['layers'][0][0] is float32 [1, 2, 3, 4, 8]; expected float32 [1, 1, 3, 4, 8], as of init_cache(",
        ),
        (
            *(extend, (OTHER_WINDOWS, TEXT)),
            f"cache['layers'][1][0] is float32 [2, 2, 8, 4, 8]; expected float32 [2, 2, 10, 4, 8], as {OF_THE_CACHE}",
        ),
        (extend, ({"layers": CACHE["layers"]}, TEXT), "cache['position'] is missing; expected int32 [], as of init_"),
        (extend, ([1], TEXT), "cache['layers'][0][0] is missing; expected float32 [1, 2, 3, 4, 8], as of"),
        (extend, (CACHE | {"more": 1}, TEXT), f"cache['more'] is int; expected none, as {OF_THE_CACHE}"),
        (decode_step, (CACHE, TEXT[:, 0].tolist()), "token is list; expected an array of integers [batch]"),
        (decode_step, (CACHE, TEXT[:, :1]), "token is int32 [2, 1]; expected an array of integers [batch]"),
        (decode_step, (CACHE, np.array([-1, 3])), "token holds -1; expected integers from 0 to 28"),
        (decode_step, (CACHE, TEXT[:1, 0]), "cache['layers'][0][0] is float32 [1, 2, 3, 4, 8]; expected float32 [1, 1"),
        (prefill, (TEXT.tolist(),), "tokens is list; expected an array of integers [batch, length]"),
        (prefill, (TEXT[:, :0],), "tokens has the shape [2, 0]; expected at least one row and one token"),
        (prefill, (TEXT[0],), "tokens is int32 [107]; expected an array of integers [batch, length]"),
        (functools.partial(prefill, chunk=0), (TEXT,), "chunk is 0; expected an integer >= 1"),
        (functools.partial(prefill, cache=OTHER_WINDOWS), (TEXT,), "cache['layers'][1][0] is float32 [2, 2, 8, 4, 8]"),
        (functools.partial(prefill, cache="none"), (TEXT,), "cache['layers'][0][0] is missing; expected float32"),
    ],
)
def test_bad_input(function: Any, arguments: Any, sentence: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        function(SMALL, {}, *arguments)


@pytest.mark.parametrize("batch_size", [0, "2", 1.0, True])
def test_a_cache_is_for_some_rows(batch_size: Any) -> None:
    with pytest.raises(InputError, match=f"^batch_size is {batch_size!r}; expected an integer >= 1"):
        init_cache(SMALL, batch_size)


@pytest.mark.parametrize("token", [-1, 29])
def test_unknown_tokens_under_jit_give_nan_never_another_token(token: int) -> None:
    params, _ = truth("transformer_xl")
    logits, cache = jit_decode_step(SMALL, params, CACHE, np.array([3, token], np.int32))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()
    logits, _ = jit_decode_step(SMALL, params, cache, np.array([3, 3], np.int32))
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()
    with pytest.raises(InputError, match=re.escape("cache['layers'][1][0] is float32 [2, 2, 8, 4, 8]; expected")):
        jit_decode_step(SMALL, params, OTHER_WINDOWS, np.array([3, token], np.int32))


def test_there_is_no_streaming_without_a_cache() -> None:
    with pytest.raises(InputError, match="^cache is None; expected what init_cache gave, or an earlier call$"):
        extend(SMALL, {}, None, random_tokens(1, 3))  # type: ignore
