"""Task heads on the encoder, those of Hugging Face's PyTorch code."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.models.global_attention import is_known
from longformer_jax.models.longformer import EncoderOutput, Longformer, check_shapes, dense, layer_norm
from longformer_jax.models.longformer_config import LongformerConfig


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
    """Predicts the tokens behind masks; the output projection is the transposed embedding."""

    config: LongformerConfig

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, *args: Any, positions: jax.Array | None = None, **kwargs: Any
    ) -> HeadOutput:
        """Arguments as `Longformer`'s.

        Args:
          input_ids: integers [B, T].
          positions: integers [B, M], in [0, T): where to predict, since logits of all positions take much memory. None
            is everywhere.

        Returns:
          logits [B, T, vocab_size], or [B, M, vocab_size].

        Raises:
          InputError: as `Longformer`, or `positions` are no such integers. Under jit their values are not known: those
            outside come out as NaN.
        """
        cfg = self.config
        if positions is not None:
            _check_positions(positions, jnp.shape(input_ids))
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, *args, **kwargs)
        x = output.last_hidden_state
        if positions is not None:
            x = jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=jnp.nan))(x, positions)
        table = encoder.variables["params"]["word_embeddings"]["embedding"]
        return HeadOutput(_LMHead(cfg, name="lm_head")(x, table), output)


class _LMHead(nn.Module):
    config: LongformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """x [B, n, E] and table [V, E] -> float32 [B, n, V]"""
        cfg = self.config
        y = dense(cfg, cfg.hidden_size, "dense")(x.reshape(-1, cfg.hidden_size))
        y = layer_norm(cfg, "norm")(nn.gelu(y, approximate=False))
        logits = jnp.einsum("ne,ve->nv", y, table.astype(y.dtype), preferred_element_type=jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (cfg.vocab_size,))
        return (logits + bias).reshape(*x.shape[:2], cfg.vocab_size)


class ForSequenceClassification(nn.Module):
    """Classifies a text by its first token, which is the only global one unless told otherwise."""

    config: LongformerConfig

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask=None, global_attention_mask=None, *args: Any, **kwargs: Any
    ) -> HeadOutput:
        """Arguments as `Longformer`'s, but that a `global_attention_mask` of None is the first token.

        Returns:
          logits [B, num_labels].
        """
        cfg = self.config
        if global_attention_mask is None:
            global_attention_mask = np.zeros(np.shape(input_ids), bool)
            global_attention_mask[..., :1] = True
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, attention_mask, global_attention_mask, *args, **kwargs)
        deterministic = kwargs.get("deterministic", True)
        logits = _ClassificationHead(cfg, deterministic, name="classifier")(output.last_hidden_state[:, 0])
        return HeadOutput(logits, output)


class _ClassificationHead(nn.Module):
    config: LongformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, E] -> float32 [B, num_labels]"""
        cfg = self.config
        dropout = nn.Dropout(cfg.hidden_dropout_prob, deterministic=self.deterministic)
        x = dropout(jnp.tanh(dense(cfg, cfg.hidden_size, "dense")(dropout(x))))
        return dense(cfg, cfg.num_labels, "out_proj")(x).astype(jnp.float32)


class ForTokenClassification(nn.Module):
    """Classifies every token."""

    config: LongformerConfig

    @nn.compact
    def __call__(self, input_ids: jax.Array, *args: Any, **kwargs: Any) -> HeadOutput:
        """Arguments as `Longformer`'s.

        Returns:
          logits [B, T, num_labels].
        """
        cfg = self.config
        output = Longformer(cfg, add_pooling_layer=False, name="longformer")(input_ids, *args, **kwargs)
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=kwargs.get("deterministic", True))(
            output.last_hidden_state
        )
        return HeadOutput(_per_token(cfg, cfg.num_labels, "classifier", x), output)


class ForQuestionAnswering(nn.Module):
    """Finds the span that answers a question; the question's tokens are global unless told otherwise."""

    config: LongformerConfig

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask=None, global_attention_mask=None, *args: Any, **kwargs: Any
    ) -> HeadOutput:
        """Arguments as `Longformer`'s, but that a `global_attention_mask` of None is the tokens before the first </s>.

        Returns:
          logits [B, T, 2]: of a token as the first and as the last one of the answer.
        """
        cfg = self.config
        if global_attention_mask is None:
            global_attention_mask = question_mask(input_ids, cfg.sep_token_id)
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        output = encoder(input_ids, attention_mask, global_attention_mask, *args, **kwargs)
        return HeadOutput(_per_token(cfg, 2, "qa_outputs", output.last_hidden_state), output)


class ForMultipleChoice(nn.Module):
    """Scores each of several texts by its first token; what follows the first </s> is global unless told otherwise."""

    config: LongformerConfig

    @nn.compact
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
        tokens after the first </s> and its successor, as in the original.

        Returns:
          logits [B, choices]. The encoder's output has B * choices rows.

        Raises:
          InputError: as `Longformer`, or an array is not [B, choices, T].
        """
        cfg = self.config
        if getattr(input_ids, "ndim", None) != 3:
            raise InputError(f"input_ids has the shape {list(np.shape(input_ids))}; expected [batch, choices, length]")
        check_shapes(
            input_ids.shape,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
        )
        if global_attention_mask is None:
            global_attention_mask = _choice_mask(input_ids, cfg.sep_token_id)
        arrays = (input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids)
        flat: Any = (None if x is None else x.reshape(-1, x.shape[-1]) for x in arrays)
        output = Longformer(cfg, name="longformer")(*flat, **kwargs)
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=kwargs.get("deterministic", True))(output.pooler_output)
        logits = dense(cfg, 1, "classifier")(x).astype(jnp.float32)
        return HeadOutput(logits.reshape(input_ids.shape[:2]), output)


def question_mask(input_ids: Any, sep_token_id: int) -> Any:
    """Booleans like `input_ids` [..., T]: the tokens before the first </s>; none where there is no </s>."""
    xp = np if is_known(input_ids) else jnp
    separators = xp.cumsum(xp.asarray(input_ids) == sep_token_id, axis=-1)
    return (separators == 0) & (separators[..., -1:] > 0)


def _check_positions(positions: Any, shape: tuple[int, ...]) -> None:
    found = f"{positions.dtype} {list(positions.shape)}" if hasattr(positions, "dtype") else type(positions).__name__
    if getattr(positions, "ndim", None) != 2 or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise InputError(f"positions is {found}; expected an array of integers [batch, number]")
    if positions.shape[0] != shape[0]:
        raise InputError(f"positions is {found}; expected {shape[0]} rows, as input_ids has")
    if is_known(positions) and positions.size:
        low, high = int(np.min(positions)), int(np.max(positions))
        if low < 0 or high >= shape[1]:
            raise InputError(f"positions holds {low if low < 0 else high}; expected integers from 0 to {shape[1] - 1}")


def _choice_mask(input_ids: Any, sep_token_id: int) -> Any:
    """The tokens after the first </s> and the token that follows it."""
    xp = np if is_known(input_ids) else jnp
    past_first = xp.cumsum(xp.asarray(input_ids) == sep_token_id, axis=-1) > 0
    return xp.cumsum(past_first, axis=-1) > 2


def _per_token(config: LongformerConfig, features: int, name: str, x: jax.Array) -> jax.Array:
    """float32 [B, T, features]"""
    logits = dense(config, features, name)(x.reshape(-1, config.hidden_size))
    return logits.astype(jnp.float32).reshape(*x.shape[:2], features)
