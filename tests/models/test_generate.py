"""Sampling against the distribution it should follow, and generation against the forward pass."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from longformer_jax.errors import InputError
from longformer_jax.models import CharLMConfig, generate
from longformer_jax.models.streaming import sample
from tests.models.small import SMALL, logits_of, random_params, random_tokens

# Untied: a random model that writes the embedding which it reads repeats one character.
CONFIG = dataclasses.replace(SMALL, num_layers=2, windows=6, dilations=2, tie_embeddings=False)
PROMPT = jnp.asarray(random_tokens(8, 20))
PARAMS = random_params(CONFIG)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def assert_follows(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Nothing outside the support, and inside it a chi-square test at one in ten thousand."""
    inside = probabilities > 0
    assert counts[~inside].sum() == 0
    expected = probabilities[inside] * counts.sum()
    assert expected.min() > 5
    statistic = ((counts[inside] - expected) ** 2 / expected).sum()
    assert statistic < stats.chi2.ppf(1 - 1e-4, inside.sum() - 1)


# ---- One draw --------------------------------------------------------------------------------------------------------

LOGITS = np.array([0.3, -1.0, 2.0, 1.1, 0.0, 1.9, -0.4, 1.0], np.float32)


def restricted(temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The distribution, by going down the ranks one at a time."""
    p = softmax(LOGITS.astype(np.float64) / temperature)
    ranks = np.argsort(-p)[:top_k]
    p_left = p[ranks] / p[ranks].sum()
    kept, held = [], 0.0
    for token, mass in zip(ranks, p_left, strict=True):
        if top_p is not None and held >= top_p:
            break
        kept.append(token)
        held += mass
    result = np.zeros_like(p)
    result[kept] = p[kept] / p[kept].sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "support"),
    [
        (1.0, None, None, 8),
        (0.7, None, None, 8),
        (2.5, None, None, 8),
        (1.0, 3, None, 3),
        (1.0, 8, 1.0, 8),
        (1.0, None, 0.8, 4),
        (0.5, None, 0.8, 2),
        (1.5, 5, 0.9, 4),
    ],
)
def test_samples_follow_the_distribution(
    temperature: float, top_k: int | None, top_p: float | None, support: int
) -> None:
    logits = jnp.broadcast_to(LOGITS, (50_000, 8))
    tokens = sample(jax.random.key(0), logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert tokens.shape == (50_000,) and tokens.dtype == jnp.int32
    expected = restricted(temperature, top_k, top_p)
    assert (expected > 0).sum() == support
    assert_follows(np.bincount(tokens, minlength=8), expected)


def test_each_row_has_its_own_distribution() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32) * 2
    logits = jnp.repeat(jnp.asarray(rows), 20_000, axis=0)
    tokens = np.asarray(sample(jax.random.key(1), logits, top_k=3)).reshape(3, -1)
    for row, drawn in zip(rows, tokens, strict=True):
        p = softmax(row.astype(np.float64)) * (row >= np.sort(row)[-3])
        assert_follows(np.bincount(drawn, minlength=6), p / p.sum())


@pytest.mark.parametrize("options", [{"temperature": None}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_extremes_take_the_likeliest(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).standard_normal((500, 30)).astype(np.float32)
    logits[:, 7] = logits.max(-1) + 0.1
    tokens = sample(jax.random.key(0), jnp.asarray(logits), **options)
    assert np.all(tokens == 7) and tokens.dtype == jnp.int32


def test_equal_logits_do_not_widen_the_support() -> None:
    logits = jnp.zeros((5_000, 6)).at[:, 4].set(1.0)
    assert set(np.asarray(sample(jax.random.key(0), logits, top_k=1)).tolist()) == {4}
    assert len(set(np.asarray(sample(jax.random.key(0), logits, top_k=3)).tolist())) == 3
    # Of e : 1 : 1 : 1 : 1 : 1 the first holds 0.352 and the first three 0.611.
    assert len(set(np.asarray(sample(jax.random.key(0), logits, top_p=0.6)).tolist())) == 3


# ---- Generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_text_is_the_likeliest_by_the_forward_pass(options: dict[str, Any]) -> None:
    text = generate(CONFIG, PARAMS, PROMPT, 30, **options)
    assert text.shape == (8, 30) and text.dtype == jnp.int32
    whole = jnp.concatenate([PROMPT, text], axis=1)
    best = logits_of(CONFIG, PARAMS, whole).argmax(-1)
    np.testing.assert_array_equal(text, best[:, PROMPT.shape[1] - 1 : -1])
    assert len(np.unique(text)) > 1  # no single character for ever, which any model could agree on


def test_the_seed_decides_the_text() -> None:
    first, again, other = (np.asarray(generate(CONFIG, PARAMS, PROMPT, 30, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.5
    assert np.all((first >= 0) & (first < CONFIG.vocab_size))


def test_settings_may_be_numbers_of_numpy() -> None:
    plain = generate(CONFIG, PARAMS, PROMPT, 30, seed=3, temperature=0.5, top_k=5, top_p=0.5)
    settings = {"seed": np.int64(3), "temperature": np.float32(0.5), "top_k": np.int32(5), "top_p": np.float64(0.5)}
    np.testing.assert_array_equal(generate(CONFIG, PARAMS, np.asarray(PROMPT), np.int64(30), **settings), plain)


def test_generated_characters_follow_the_model() -> None:
    """The first character after the prompt, in many rows with one prompt."""
    rows, temperature = 4_000, 2.0
    prompt = PROMPT[:1, :4]
    text = generate(CONFIG, PARAMS, jnp.repeat(prompt, rows, axis=0), 1, temperature=temperature, top_k=6)
    p = softmax(np.asarray(logits_of(CONFIG, PARAMS, prompt), np.float64)[0, -1] / temperature)
    p[np.argsort(-p)[6:]] = 0
    assert_follows(np.bincount(text[:, 0], minlength=CONFIG.vocab_size), p / p.sum())


def test_draws_are_independent_of_each_other() -> None:
    """A model that knows nothing writes noise: all pairs of neighbours, and of rows, are equally frequent."""
    config = CharLMConfig(
        vocab_size=4,
        embed_dim=4,
        num_layers=1,
        num_heads=1,
        mlp_dim=1,
        windows=1,
        dilated_heads=0,
        tie_embeddings=False,
        dtype="float32",
    )
    params = jax.tree.map(jnp.zeros_like, random_params(config))
    text = np.asarray(generate(config, params, jnp.zeros((2, 1), jnp.int32), 2_000))
    for first, second in ((text[:, :-1], text[:, 1:]), (text[:, :-2], text[:, 2:]), (text[0], text[1])):
        assert_follows(np.bincount((4 * first + second).ravel(), minlength=16), np.full(16, 1 / 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length is 0; expected an integer from 1 to 2**31 - 1"),
        ({"length": 2.5}, "length is 2.5; expected an integer from 1 to"),
        ({"seed": "1"}, "seed is '1'; expected an integer from 0 to 2**32 - 1"),
        ({"top_k": 2.5}, "top_k is 2.5; expected 1 to vocab_size, 29"),
        ({"temperature": -0.5}, "temperature is -0.5; expected 0, or a number >= 1e-6"),
        ({"temperature": 1e-40}, "temperature is 1e-40; expected 0, or a number >= 1e-6"),
        ({"temperature": float("nan")}, "temperature is nan; expected 0, or a number >= 1e-6"),
        ({"top_k": 0}, "top_k is 0; expected 1 to vocab_size, 29"),
        ({"top_k": 30}, "top_k is 30; expected 1 to vocab_size, 29"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a number in (0, 1]"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a number in (0, 1]"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected 0, or a number >= 1e-6"),
        ({"top_p": "0.9"}, "top_p is '0.9'; expected a number in (0, 1]"),
        ({"prompt": jnp.array([[3, 29]])}, "prompt holds 29; expected integers from 0 to 28"),
        ({"prompt": jnp.array([[-1, 3]])}, "prompt holds -1; expected integers from 0 to 28"),
        ({"prompt": [[3]]}, "prompt is list; expected an array of integers [batch, length]"),
        ({"prompt": jnp.zeros((2, 0), jnp.int32)}, "prompt has the shape [2, 0]; expected at least one row and one"),
        ({"prompt": jnp.zeros(3, jnp.int32)}, "prompt is int32 [3]; expected an array of integers [batch, length]"),
        ({"prompt": jnp.zeros((1, 3))}, "prompt is float32 [1, 3]; expected an array of integers [batch, length]"),
    ],
)
def test_errors_name_the_field_and_the_value(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt": PROMPT, "length": 5} | options
    with pytest.raises(InputError, match="^" + re.escape(message)):
        generate(CONFIG, PARAMS, **arguments)
