"""Task heads on the encoder, those of Hugging Face's PyTorch code."""

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention.split import flat_rows
from longformer_jax.errors import InputError
from longformer_jax.models.checks import check_integers, check_rows_of_ids, check_within, equals, is_known, why_unknown
from longformer_jax.models.longformer import EncoderOutput, Longformer, check_shapes, dense, layer_norm, to_logits
from longformer_jax.models.longformer_config import LongformerConfig
from longformer_jax.models.parameters import names_wrong_params


@flax.struct.dataclass
class HeadOutput:
    """What a model with a head computes.

    Attributes:
      logits: float32, of the shape that the head names.
      encoder: of the encoder, with the optional parts that were asked for.
    """

    logits: jax.Array
    encoder: EncoderOutput


class ForMaskedLM(nn.Module):
    """Predicts the tokens behind masks; the output projection is the transposed embedding, unless config unties it."""

    config: LongformerConfig

    @nn.compact
    @names_wrong_params
    def __call__(
        self, input_ids: jax.Array, *args: Any, positions: jax.Array | None = None, **kwargs: Any
    ) -> HeadOutput:
        """Arguments as `Longformer`'s.

        Args:
          input_ids: integers [B, T].
          positions: integers [B, M], in [0, T): where to predict, since logits of all positions take much memory. None
            means everywhere.

        Returns:
          logits [B, T, vocab_size], or [B, M, vocab_size].

        Raises:
          InputError: as `Longformer`, or `positions` are not such integers. Under jit their values are not known, and
            those outside give NaN.
        """
        cfg = self.config
        if positions is not None:
            check_integers("input_ids", input_ids, "batch, length")
            _check_positions(positions, jnp.shape(input_ids))
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, *args, **kwargs)
        x = output.last_hidden_state
        if positions is not None:
            x = jax.vmap(_rows)(x, positions)
        table = encoder.variables["params"]["word_embeddings"]["embedding"]
        return HeadOutput(_LMHead(cfg, name="lm_head")(x, table), output)


class _LMHead(nn.Module):
    config: LongformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """x [B, n, E] and table [V, E] -> float32 [B, n, V]"""
        cfg = self.config
        y = dense(cfg, cfg.hidden_size, "dense")(flat_rows(x))
        y = layer_norm(cfg, "norm")(nn.gelu(y, approximate=False))
        if not cfg.tie_word_embeddings:
            init = nn.initializers.normal(cfg.initializer_range)
            table = nn.Embed(cfg.vocab_size, cfg.hidden_size, embedding_init=init, name="decoder").embedding
        logits = jnp.einsum("...e,ve->...v", y, table.astype(y.dtype), preferred_element_type=jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (cfg.vocab_size,), jnp.float32)
        return logits.reshape(*x.shape[:2], cfg.vocab_size) + bias[None, None]


class ForSequenceClassification(nn.Module):
    """Classifies a text by its first token, which is the only global one unless told otherwise."""

    config: LongformerConfig

    @nn.compact
    @names_wrong_params
    def __call__(
        self, input_ids: jax.Array, attention_mask=None, global_attention_mask=None, *args: Any, **kwargs: Any
    ) -> HeadOutput:
        """Arguments as `Longformer`'s, except that a `global_attention_mask` of None means the first token.

        Returns:
          logits [B, num_labels].
        """
        cfg = self.config
        if global_attention_mask is None:
            check_integers("input_ids", input_ids, "batch, length")
            global_attention_mask = _first_token(input_ids)
            if not is_known(global_attention_mask):
                kwargs.setdefault("max_global_tokens", 1)
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, attention_mask, global_attention_mask, *args, **kwargs)
        deterministic = kwargs.get("deterministic", True)
        logits = _ClassificationHead(cfg, deterministic, name="classifier")(output.last_hidden_state[:, 0])
        return HeadOutput(logits, output)


def _first_token(input_ids: Any) -> Any:
    """A mask like `input_ids`, whose sizes may be symbols."""
    shape = np.shape(input_ids)
    if not all(isinstance(size, int) for size in shape):
        return jnp.broadcast_to(jnp.arange(shape[-1]) == 0, shape)
    mask = np.zeros(shape, bool)
    mask[..., :1] = True
    return mask


class _ClassificationHead(nn.Module):
    config: LongformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, E] -> float32 [B, num_labels]"""
        cfg = self.config
        dropout = nn.Dropout(_classifier_dropout(cfg), deterministic=self.deterministic)
        x = dropout(jnp.tanh(dense(cfg, cfg.hidden_size, "dense")(dropout(x))))
        return to_logits(cfg, cfg.num_labels, "out_proj")(x)


class ForTokenClassification(nn.Module):
    """Classifies every token."""

    config: LongformerConfig

    @nn.compact
    @names_wrong_params
    def __call__(self, input_ids: jax.Array, *args: Any, **kwargs: Any) -> HeadOutput:
        """Arguments as `Longformer`'s.

        Returns:
          logits [B, T, num_labels].
        """
        cfg = self.config
        output = Longformer(cfg, add_pooling_layer=False, name="longformer")(input_ids, *args, **kwargs)
        x = nn.Dropout(_classifier_dropout(cfg), deterministic=kwargs.get("deterministic", True))(
            output.last_hidden_state
        )
        return HeadOutput(_per_token(cfg, cfg.num_labels, "classifier", x), output)


class ForQuestionAnswering(nn.Module):
    """Finds the span that answers a question; the question's tokens are global unless told otherwise."""

    config: LongformerConfig

    @nn.compact
    @names_wrong_params
    def __call__(
        self, input_ids: jax.Array, attention_mask=None, global_attention_mask=None, *args: Any, **kwargs: Any
    ) -> HeadOutput:
        """As `Longformer`, except that a `global_attention_mask` of None means the tokens before the first </s>.

        Under jit this needs `max_global_tokens`, a number of tokens that no question exceeds.

        Returns:
          logits [B, T, 2]: of a token as the first and as the last one of the answer; `best_spans` reads them.
        """
        cfg = self.config
        if global_attention_mask is None:
            check_integers("input_ids", input_ids, "batch, length")
            _check_room(
                self, input_ids, kwargs, "that no question exceeds, such as global_capacity(question_mask(input_ids, "
                f"{cfg.sep_token_id})) outside of jit",
            )  # fmt: skip
            global_attention_mask = question_mask(input_ids, cfg.sep_token_id)
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, attention_mask, global_attention_mask, *args, **kwargs)
        return HeadOutput(_per_token(cfg, 2, "qa_outputs", output.last_hidden_state), output)


class ForMultipleChoice(nn.Module):
    """Scores each of several texts by its first token; what follows the first </s> is global unless told otherwise."""

    config: LongformerConfig

    input_axes: ClassVar[int] = 3

    @nn.compact
    @names_wrong_params
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask=None,
        global_attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        **kwargs: Any,
    ) -> HeadOutput:
        """Arguments as `Longformer`'s, but all arrays are [B, choices, T], and a `global_attention_mask` of None is the
        tokens after the first </s> and its successor, as in the original. Under jit this needs `max_global_tokens`, a
        number of tokens that no text has after its question.

        Returns:
          logits [B, choices]. The encoder's output has B * choices rows.

        Raises:
          InputError: as `Longformer`, or an array is not [B, choices, T].
        """
        cfg = self.config
        check_integers("input_ids", input_ids, "batch, choices, length")
        if any(size < 1 for size in input_ids.shape):  # one by one, as the batch may be a symbol
            raise InputError(
                f"input_ids has the shape {list(input_ids.shape)}; expected at least one row, one choice and one token"
            )
        check_shapes(
            input_ids.shape,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        if global_attention_mask is None:
            expected = f"that no text has after its question, such as {input_ids.shape[-1]}, the length"
            _check_room(self, input_ids, kwargs, expected)
            global_attention_mask = _choice_mask(input_ids, cfg.sep_token_id)
        arrays = (input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids)
        flat: Any = (None if x is None else x.reshape(-1, x.shape[-1]) for x in arrays)
        output = Longformer(cfg, name="longformer")(*flat, **kwargs)
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=kwargs.get("deterministic", True))(output.pooler_output)
        logits = to_logits(cfg, 1, "classifier")(x)
        return HeadOutput(logits.reshape(input_ids.shape[:2]), output)


def question_mask(input_ids: Any, sep_token_id: int) -> Any:
    """Booleans like `input_ids` [..., T]: the tokens before the first </s>; none where there is no </s>.

    Raises:
      InputError: `input_ids` is no array of integers, or `sep_token_id` no id.
    """
    check_rows_of_ids(input_ids, sep_token_id)
    xp = np if is_known(input_ids) else jnp
    separators = xp.cumsum(equals(xp.asarray(input_ids), sep_token_id), axis=-1)
    return (separators == 0) & (separators[..., -1:] > 0)


def _check_room(module: nn.Module, input_ids: Any, kwargs: dict[str, Any], expected: str) -> None:
    """Raises InputError where a head takes its global tokens from ids that jit traces, and has no number for them."""
    needed = module.config.attention_mode != "full" and not module.is_initializing()  # type: ignore
    if needed and not is_known(input_ids) and kwargs.get("max_global_tokens") is None:
        raise InputError(
            f"max_global_tokens is None while input_ids {why_unknown(input_ids)}; expected a number of global tokens "
            f"{expected}"
        )


def _check_positions(positions: Any, shape: tuple[int, ...]) -> None:
    check_integers("positions", positions, "batch, number")
    if positions.shape[0] != shape[0]:
        raise InputError(f"positions has {positions.shape[0]} rows; expected {shape[0]}, as input_ids has")
    check_within("positions", positions, shape[1])


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """The rows `index` of x [T, E]; NaN for those outside, the negative ones among them."""
    return x.at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _choice_mask(input_ids: Any, sep_token_id: int) -> Any:
    """The tokens after the first </s> and the token that follows it."""
    xp = np if is_known(input_ids) else jnp
    past_first = xp.cumsum(equals(xp.asarray(input_ids), sep_token_id), axis=-1) > 0
    return xp.cumsum(past_first, axis=-1) > 2


def _classifier_dropout(config: LongformerConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _per_token(config: LongformerConfig, features: int, name: str, x: jax.Array) -> jax.Array:
    """float32 [B, T, features]"""
    return to_logits(config, features, name)(flat_rows(x)).reshape(*x.shape[:2], features)
