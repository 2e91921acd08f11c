"""Answers that are spans of a document: their tokens, the loss, the best of them, and the sentence around it."""

import itertools
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longformer_jax.tasks.base import check_diverged
from longformer_jax.tasks.words import TITLES

_DOTS = ".!?…"
# A full stop behind an initial or a title, which a name follows.
_NO_END = r"(?<!\b[A-HJ-Z]\.)" + "".join(rf"(?<!\b(?:{'|'.join(titles)})\.)" for titles in TITLES)
# The end of a line, or of a sentence before what does not begin with a small letter. A long row of dots is read once:
# from its beginning alone, and as a whole.
_STOPS = rf"(?<![.!?…])[.!?…](?:(?=[.!?…])|{_NO_END})[.!?…]*+" r"[\"'”’)\]]*+(?=\s++[^\sa-z])|[。！？]"
_SENTENCE_END, _STOP = re.compile(rf"\n|{_STOPS}"), re.compile(_STOPS)


def token_spans(spans: Iterable[tuple[int, int]], begins: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """The first and the last token of each span of characters; without those that reach beyond the tokens.

    Args:
      spans: start and end, of characters.
      begins, ends: `[tokens]`, the characters that each token stands for, ascending. A span may begin within a token,
        which is then its first.
    """
    tokens = []
    for start, end in spans:
        first, last = int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, end, "left")) - 1
        if first <= last and begins[first] <= start and ends[last] >= end:
            tokens.append((first, last))
    return tokens


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the sentence begins and ends in which the characters from `start` to `end` stand, by a simple rule.

    A sentence ends with its line, or with . ! ? or … before what does not begin with a small letter, but not with the
    full stop of an initial or a title, as in "Dr. J. Smith".
    """
    before = itertools.takewhile(lambda match: match.end() <= start, _SENTENCE_END.finditer(text))
    begin = max((match.end() for match in before), default=0)
    # What ends a sentence may be the end of the span itself, or begin within it.
    last = max(start, end - 1)
    while 0 < last < len(text) and text[last] in _DOTS and text[last - 1] in _DOTS:
        last -= 1
    after = _SENTENCE_END.search(text, last)
    close = len(text) if after is None else max(end, after.end())
    sentence = text[begin:close]
    return begin + len(sentence) - len(sentence.lstrip()), close - (len(sentence) - len(sentence.rstrip()))


def sentence_spans(text: str, *, wrapped: bool = False) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, by the same rule; without those of nothing but spaces.

    Of a text whose lines are wrapped, the end of a line is none of a sentence.
    """
    ends = [match.end() for match in (_STOP if wrapped else _SENTENCE_END).finditer(text)]
    spans = zip([0, *ends], [*ends, len(text)], strict=True)
    return [(start, end) for start, end in spans if text[start:end].strip()]


def is_span(score: float, name: str) -> bool:
    """Whether candidates have made a span of this score; raises InputError for NaN."""
    check_diverged(np.isnan(score), f"question {name!r}")
    return bool(np.isfinite(score))


def any_of_loss(logits: jax.Array, targets: jax.Array, valid: jax.Array) -> jax.Array:
    """Minus the log-probability that a softmax gives to all targets together (Clark and Gardner 2018, section 2.2).

    Args:
      logits: float32 [B, T].
      targets: integers [B, N], positions; negative where there is none. One that is named twice counts once.
      valid: booleans [B, T], the positions that the softmax is over; those of the targets are among them.

    Returns:
      float32 [B], in nats; 0 for a row without a target.
    """
    B, T = logits.shape
    rows = jnp.arange(B)[:, None]
    is_target = jnp.zeros((B, T), bool).at[rows, jnp.where(targets < 0, T, targets)].set(True, mode="drop")
    has_target = is_target.any(-1, keepdims=True)
    total, wanted = (
        jax.nn.logsumexp(jnp.where(mask, logits, -jnp.inf), axis=-1)
        for mask in (valid, jnp.where(has_target, is_target, valid))
    )
    return total - wanted


def best_pair(
    logits: jax.Array, allowed: jax.Array, *, candidates: int, longest: int, part: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best span of each row that begins with one of the likeliest first tokens and ends with one of the last.

    Unlike `best_spans`, which looks at all spans, this is the decoding of the paper's TriviaQA.

    Args:
      logits: float32 [B, T, 2], of tokens as the first and as the last one.
      allowed: booleans [B, T], the tokens that may be.
      candidates: how many first and how many last tokens are looked at.
      longest: the most tokens of a span.
      part: integers [B, T], of which a span has one: it begins and ends in the same. None is all tokens.

    Returns:
      The first and the last token, int32 [B], and the sum of their logits, float32 [B]; -inf where no candidates make
      a span.
    """
    masked = jnp.where(allowed[..., None], logits, -jnp.inf)
    (first_scores, firsts), (last_scores, lasts) = (
        lax.top_k(masked[..., i], min(candidates, logits.shape[1])) for i in (0, 1)
    )
    lengths = lasts[:, None, :] - firsts[:, :, None] + 1
    scores = first_scores[:, :, None] + last_scores[:, None, :]
    fits = (lengths >= 1) & (lengths <= longest)
    if part is not None:
        of_first, of_last = (jnp.take_along_axis(part, tokens, axis=1) for tokens in (firsts, lasts))
        fits &= of_first[:, :, None] == of_last[:, None, :]
    scores = jnp.where(fits, scores, -jnp.inf).reshape(logits.shape[0], -1)
    best = jnp.argmax(scores, axis=-1)  # of equal ones that of the likelier first token
    count = lasts.shape[1]
    first, last, score = (
        jnp.take_along_axis(array, index[:, None], axis=1)[:, 0]
        for array, index in ((firsts, best // count), (lasts, best % count), (scores, best))
    )
    return first, last, score
