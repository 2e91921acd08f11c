"""The answers that a `ForQuestionAnswering` finds: the best spans by its logits."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longformer_jax.errors import InputError
from longformer_jax.models.checks import check_rows_of_ids, check_size, describe, dtype_kind, equals, is_known
from longformer_jax.models.global_attention import check_masks


@flax.struct.dataclass
class Spans:
    """The best spans of each row, best first; of equal ones the earlier comes first, then the shorter.

    Attributes:
      start, end: int32 [B, n], of the first and of the last token of a span; (0, 0) where `valid` is False.
      score: float32 [B, n], the logit of `start` as the first token plus that of `end` as the last. -inf where a row
        has fewer than n spans, and NaN in all of a row whose logits are no numbers.
      null_score: float32 [B], of the span (0, 0), by which models trained on questions without an answer say that there
        is none.
    """

    start: jax.Array
    end: jax.Array
    score: jax.Array
    null_score: jax.Array

    @property
    def valid(self) -> jax.Array:
        """Booleans [B, n]: whether there is a span."""
        return self.score > -jnp.inf


def best_spans(logits: Any, answer_mask: Any, *, max_answer_length: int = 30, top_n: int = 1) -> Spans:
    """The `top_n` best answers of at most `max_answer_length` tokens in each row; under jit, both numbers are static.

    Scores all allowed spans, which takes memory for B * T * `max_answer_length` numbers.

    Args:
      logits: [B, T, 2], as from `ForQuestionAnswering`.
      answer_mask: booleans [B, T], True for tokens at which an answer may begin or end, as from `answer_mask`.
      max_answer_length: tokens of an answer, start and end included.
      top_n: n, how many spans to return; where a row has fewer, `Spans.valid` tells which they are.

    Raises:
      InputError: an argument does not fit, or `logits` holds a NaN or +infinity for an allowed token or the first
        one; -infinity is a logit as any other. Under jit their values are not known: such a row has no valid span, and
        NaN for all of its scores.
    """
    if getattr(logits, "ndim", None) != 3 or logits.shape[-1] != 2 or dtype_kind(logits) != "floating":
        raise InputError(f"logits is {describe(logits)}; expected an array of floats [batch, length, 2]")
    B, T, _ = logits.shape
    if any(size < 1 for size in (B, T)):  # one by one, as the batch may be a symbol
        raise InputError(f"logits has the shape {list(logits.shape)}; expected at least one row and one token")
    if dtype_kind(answer_mask) != "bool" or answer_mask.shape != (B, T):
        raise InputError(f"answer_mask is {describe(answer_mask)}; expected an array of booleans {[B, T]}")
    longest = min(check_size("max_answer_length", max_answer_length), T)
    top_n = check_size("top_n", top_n)
    logits = jnp.asarray(logits, jnp.float32)
    # [B, T]; where no answer may be, it does not matter.
    wrong = ~(logits < jnp.inf).all(-1) & (jnp.asarray(answer_mask) | (jnp.arange(T) == 0)[None])
    if is_known(wrong) and wrong.any():
        row, token = np.argwhere(np.asarray(wrong))[0]
        raise InputError(f"logits holds {logits[row, token].max()} for token {token} of row {row}; expected numbers")
    start, end = (jnp.where(answer_mask, x, -jnp.inf) for x in (logits[..., 0], logits[..., 1]))
    # [B, T, longest]: the span from a token to the one m further on.
    end = jnp.pad(end, ((0, 0), (0, longest - 1)), constant_values=-jnp.inf)
    scores = start[..., None] + jnp.stack([end[:, m : m + T] for m in range(longest)], axis=-1)
    scores = jnp.where(scores == 0, 0.0, scores)  # -0 is less than 0 to top_k
    found = min(top_n, T * longest)
    score, index = lax.top_k(scores.reshape(B, T * longest), found)  # of equal ones, the lower index is first
    rest = ((0, 0), (0, top_n - found))
    score = jnp.where(wrong.any(-1)[:, None], jnp.nan, jnp.pad(score, rest, constant_values=-jnp.inf))
    first, length = (jnp.pad(x.astype(jnp.int32), rest) for x in (index // longest, index % longest))
    start, end = (jnp.where(score > -jnp.inf, x, 0) for x in (first, first + length))
    return Spans(start, end, score, logits[:, 0].sum(-1))


def answer_mask(input_ids: Any, sep_token_id: int, attention_mask: Any = None) -> Any:
    """Booleans like `input_ids` [..., T], True for the tokens of the text that a question is about.

    These are the tokens after the first </s> that are neither </s> themselves nor padding; none where there is no </s>.

    Args:
      input_ids: integers [..., T]: <s> question </s></s> text </s>, as RoBERTa's tokenizer writes a pair.
      sep_token_id: of </s>, as `config.sep_token_id`.
      attention_mask: as of a `Longformer`; None where there is no padding.

    Raises:
      InputError: an argument is not of this kind or shape.
    """
    check_rows_of_ids(input_ids, sep_token_id)
    if attention_mask is not None and getattr(attention_mask, "shape", None) != input_ids.shape:
        found = describe(attention_mask)
        raise InputError(f"attention_mask is {found}; expected the shape of input_ids, {list(input_ids.shape)}")
    check_masks(attention_mask, None)
    xp = np if is_known(input_ids) and is_known(attention_mask) else jnp
    is_separator = equals(xp.asarray(input_ids), sep_token_id)
    mask = (xp.cumsum(is_separator, axis=-1) > 0) & ~is_separator
    return mask if attention_mask is None else mask & (xp.asarray(attention_mask) != 0)
