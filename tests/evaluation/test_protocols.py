"""Both protocols against plain forward passes, and against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax.errors import InputError
from longformer_jax.evaluation.protocols import (
    BitsPerCharacter,
    overlapping_count,
    score_overlapping,
    score_stream,
)
from longformer_jax.models import CharLM, CharLMConfig

CONFIG = CharLMConfig(
    vocab_size=64,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    windows=(5, 7),
    dilations=(1, 2),
    dilated_heads=1,
    dropout_rate=0.0,
    dtype="float32",
)
# Two layers reach 5 + 7 * 2 positions back: with that much context more makes no difference.
REACH = 19


@pytest.fixture(scope="module")
def params():
    zeros = CharLM(CONFIG).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(zeros)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def text():
    return np.random.default_rng(2).integers(0, 64, 203, dtype=np.uint8)


forward = jax.jit(CharLM(CONFIG).apply)


def forward_nats(params, text):
    """-ln p of text[1:], one forward pass over all of it."""
    logits = forward({"params": params}, jnp.asarray(text[None, :-1]))[0]
    log_p = np.asarray(logits, np.float64)
    log_p -= np.log(np.exp(log_p - log_p.max(-1, keepdims=True)).sum(-1, keepdims=True)) + log_p.max(-1, keepdims=True)
    return -log_p[np.arange(len(text) - 1), text[1:]]


def by_position(pieces):
    """{position: nats}, checking that no character is scored twice."""
    scores = {}
    for piece in pieces:
        for offset, nats in enumerate(np.asarray(piece.nats)):
            assert piece.start + offset not in scores
            scores[piece.start + offset] = float(nats)
    return scores


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 16, 64, 1000])
def test_stream_equals_the_full_forward(params, text, chunk):
    scores = by_position(score_stream(CONFIG, params, text, chunk=chunk))
    assert sorted(scores) == list(range(1, len(text)))
    np.testing.assert_allclose([scores[i] for i in sorted(scores)], forward_nats(params, text), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("length", "step", "batch_size"), [(40, 8, 3), (40, 40, 8), (202, 5, 4), (30, 1, 64)])
def test_overlapping_equals_a_forward_of_each_sequence(params, text, length, step, batch_size):
    pieces = score_overlapping(CONFIG, params, text, sequence_length=length, stride=step, batch_size=batch_size)
    scores = by_position(pieces)
    assert len(scores) == overlapping_count(len(text), length, step)
    assert min(scores) == length - step + 1
    for start in range(0, len(text) - length, step):
        expected = forward_nats(params, text[start : start + length + 1])[-step:]
        found = [scores[start + length - step + 1 + i] for i in range(step)]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_protocols_agree_where_the_context_is_the_same(params, text):
    overlapping = by_position(score_overlapping(CONFIG, params, text, sequence_length=REACH + 11, stride=11))
    stream = by_position(score_stream(CONFIG, params, text, chunk=32))
    np.testing.assert_allclose(list(overlapping.values()), [stream[i] for i in overlapping], rtol=2e-5, atol=2e-6)


def test_protocols_differ_where_the_context_does(params, text):
    """The check above means something: with less context than the model's reach the scores move."""
    short = by_position(score_overlapping(CONFIG, params, text, sequence_length=11, stride=11))
    stream = by_position(score_stream(CONFIG, params, text))
    assert max(abs(short[i] - stream[i]) for i in short) > 1e-3


def test_scores_are_a_distribution(params):
    """Summed over every possible last character the probabilities are one."""
    prefix = np.array([3, 1, 4, 1, 5], np.uint8)
    last = [
        list(by_position(score_stream(CONFIG, params, np.append(prefix, c).astype(np.uint8))).values())[-1]
        for c in range(CONFIG.vocab_size)
    ]
    assert np.exp(-np.array(last)).sum() == pytest.approx(1, rel=1e-5)


def test_bits_per_character():
    score = BitsPerCharacter()
    score.add(np.full(3, np.log(2), np.float32))
    score.add(np.full(1, np.log(32), np.float32))
    assert (score.value, score.characters) == (pytest.approx(2.0), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 40, "stride": 0}, r"stride is 0; expected an integer >= 1"),
        ({"sequence_length": 40, "stride": 41}, r"stride is 41; expected at most sequence_length, 40"),
        ({"sequence_length": "40"}, r"sequence_length is '40'; expected an integer >= 1"),
        ({"sequence_length": 40, "stride": True}, r"stride is True; expected an integer >= 1"),
        ({"sequence_length": 40, "stride": 8, "batch_size": 2.0}, r"batch_size is 2.0; expected an integer >= 1"),
        ({"sequence_length": 40, "batch_size": 0}, r"batch_size is 0; expected an integer >= 1"),
        ({"sequence_length": 203, "stride": 8}, r"sequence_length is 203; expected less than the 203 characters"),
    ],
)
def test_overlapping_refuses(params, text, arguments, message):
    with pytest.raises(InputError, match=message):
        next(score_overlapping(CONFIG, params, text, **arguments))


@pytest.mark.parametrize("score", [score_overlapping, score_stream])
def test_a_text_that_is_none(params, text, score):
    expected = r"; expected an array of uint8 \[N\]$"
    for wrong in (text.tobytes(), "text", list(text), text.astype(np.int32), text[None], text[0]):
        with pytest.raises(InputError, match=r"^text is .*" + expected):
            next(score(CONFIG, params, wrong))
    few = dataclasses.replace(CONFIG, vocab_size=9)
    with pytest.raises(InputError, match=r"^vocab_size is 9, but the token id at position 3 of data is 9; "):
        next(score(few, params, np.array([0, 1, 8, 9], np.uint8)))


def test_stream_refuses(params, text):
    with pytest.raises(InputError, match=r"text has 1 characters; expected at least 2"):
        next(score_stream(CONFIG, params, text[:1]))
    with pytest.raises(InputError, match=r"text has 4294967296 characters; expected fewer than 2\*\*32$"):
        next(score_stream(CONFIG, params, np.broadcast_to(text[0], (2**32,))))
    for chunk in (0, "5", True):
        with pytest.raises(InputError, match=f"chunk is {chunk!r}; expected an integer >= 1"):
            next(score_stream(CONFIG, params, text, chunk=chunk))


def test_compute_dtype_does_not_change_the_protocol(params, text):
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    stream = by_position(score_stream(half, params, text, chunk=32))
    overlapping = by_position(score_overlapping(half, params, text, sequence_length=202, stride=150))
    exact = forward_nats(params, text)
    error = max(abs(stream[i] - exact[i - 1]) for i in overlapping)
    plain = max(abs(overlapping[i] - exact[i - 1]) for i in overlapping)
    assert 0 < error <= 2 * plain
