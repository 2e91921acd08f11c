"""The best spans against all spans, one by one."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, answer_mask, best_spans

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((4, 23, 2)).astype(np.float32)
MASK = RNG.random((4, 23)) < [[0.8], [0.3], [1.0], [0.0]]

jit_spans = jax.jit(best_spans, static_argnames=("max_answer_length", "top_n"))


def all_spans(logits: np.ndarray, mask: np.ndarray, max_answer_length: int) -> list[tuple[float, int, int]]:
    """(score, start, end) of every span, best first, then by start and end."""
    tokens = np.flatnonzero(mask)
    spans = [(s, e) for s in tokens for e in tokens if s <= e < s + max_answer_length]
    scored = [(float(logits[s, 0] + logits[e, 1]), int(s), int(e)) for s, e in spans]
    return sorted(scored, key=lambda span: (-span[0], *span[1:]))


@pytest.mark.parametrize(("max_answer_length", "top_n"), [(1, 1), (5, 3), (30, 7), (23, 600)])
@pytest.mark.parametrize("logits", [LOGITS, np.round(LOGITS)], ids=["distinct", "ties"])
def test_best_of_all(logits: np.ndarray, max_answer_length: int, top_n: int) -> None:
    found = jit_spans(logits, MASK, max_answer_length=max_answer_length, top_n=top_n)
    assert found.start.shape == found.end.shape == found.score.shape == (4, top_n)
    assert (found.start.dtype, found.end.dtype, found.score.dtype) == (jnp.int32, jnp.int32, jnp.float32)
    for row in range(4):
        expected = all_spans(logits[row], MASK[row], max_answer_length)[:top_n]
        expected += [(-np.inf, 0, 0)] * (top_n - len(expected))
        spans = zip(found.score[row].tolist(), found.start[row].tolist(), found.end[row].tolist(), strict=True)
        assert list(spans) == expected
        assert found.valid[row].tolist() == [score > -np.inf for score, _, _ in expected]
    np.testing.assert_array_equal(found.null_score, logits[:, 0, 0] + logits[:, 0, 1])


def test_scores_are_float32_whatever_the_logits() -> None:
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    found = jit_spans(logits, MASK, max_answer_length=5, top_n=3)
    expected = jit_spans(logits.astype(jnp.float32), MASK, max_answer_length=5, top_n=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected)) and found.score.dtype == jnp.float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_gives_no_answer(value: float) -> None:
    logits, token = LOGITS.copy(), int(np.flatnonzero(MASK[1])[1])
    logits[1, token, 1] = value
    with pytest.raises(InputError, match=f"^logits holds {value} for token {token} of row 1; expected numbers$"):
        best_spans(logits, MASK)
    found = jit_spans(logits, MASK, max_answer_length=5, top_n=3)
    assert np.isnan(found.score[1]).all() and not found.valid[1].any() and not found.start[1].any()
    expected = jit_spans(LOGITS, MASK, max_answer_length=5, top_n=3)
    for name in ("start", "end", "score"):
        others = (np.delete(getattr(x, name), 1, axis=0) for x in (found, expected))
        np.testing.assert_array_equal(*others)
    logits[1] = LOGITS[1]
    logits[1, np.flatnonzero(~MASK[1])[1]] = value  # no answer may be there
    best_spans(logits, MASK)


def test_memory_is_that_of_the_band() -> None:
    """No array of T² numbers in the program."""
    shapes = (jax.ShapeDtypeStruct((1, 4096, 2), "float32"), jax.ShapeDtypeStruct((1, 4096), "bool"))
    program = jax.make_jaxpr(functools.partial(best_spans, max_answer_length=30, top_n=20))(*shapes)
    sizes = [x.aval.size for equation in program.eqns for x in equation.outvars]
    assert max(sizes) == 4096 * 30


def test_answers_are_in_the_text() -> None:
    ids = np.array([[0, 7, 8, 2, 2, 9, 7, 2, 1], [0, 7, 2, 2, 9, 8, 7, 7, 2], [0, 5, 5, 5, 5, 5, 5, 5, 5]])
    expected = [[0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 0], [0] * 9]
    attention_mask = np.where(ids == 1, 0, 1 + (ids == 0))  # global tokens are tokens, too
    np.testing.assert_array_equal(answer_mask(ids, 2, attention_mask), expected)
    np.testing.assert_array_equal(jax.jit(answer_mask, static_argnums=1)(ids, 2, attention_mask), expected)
    np.testing.assert_array_equal(answer_mask(ids[1:], 2), expected[1:])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"logits": LOGITS[0]}, "logits is float32 [23, 2]; expected an array of floats [batch, length, 2]"),
        ({"logits": LOGITS.tolist()}, "logits is list; expected an array of floats [batch, length, 2]"),
        ({"logits": LOGITS[:, :0]}, "logits has the shape [4, 0, 2]; expected at least one row and one token"),
        ({"answer_mask": MASK * 1}, "answer_mask is int64 [4, 23]; expected an array of booleans [4, 23]"),
        ({"answer_mask": MASK[0]}, "answer_mask is bool [23]; expected an array of booleans [4, 23]"),
        ({"max_answer_length": 0}, "max_answer_length is 0; expected an integer >= 1"),
        ({"top_n": 1.0}, "top_n is 1.0; expected an integer >= 1"),
    ],
)
def test_bad_input(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        best_spans(**{"logits": LOGITS, "answer_mask": MASK} | changes)


def test_a_float_mask_is_no_mask_of_answers() -> None:
    ids = np.array([[0, 5, 2, 2, 6, 1]])
    with pytest.raises(InputError, match="^attention_mask is of float64 and holds -10000.0; expected booleans"):
        answer_mask(ids, 2, np.where(ids == 1, -1e4, 0.0))


def test_a_batch_of_any_size() -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.ShapeDtypeStruct((batch, 23, 2), "float32"), jax.ShapeDtypeStruct((batch, 23), "bool")
    spans = jax.jit(lambda logits, mask: best_spans(logits, mask, max_answer_length=5, top_n=3).start)
    found = jax.export.export(spans)(*shapes).call(LOGITS, MASK)
    np.testing.assert_array_equal(found, best_spans(LOGITS, MASK, max_answer_length=5, top_n=3).start)
