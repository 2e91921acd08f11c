"""The Longformer encoder (sections 3 and 5), number for number that of Hugging Face's PyTorch code."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention import banded_attention, merge_attention
from longformer_jax.attention.merge import merge_over
from longformer_jax.attention.split import Part, flat_rows, over_devices, spread
from longformer_jax.errors import InputError
from longformer_jax.models.activations import ACTIVATIONS
from longformer_jax.models.attention_probabilities import attention_probabilities
from longformer_jax.models.checks import check_integers, check_tokens, check_within, is_known
from longformer_jax.models.embedding import look_up, outside
from longformer_jax.models.finite import finite_tokens, leave_marks, wants_marks
from longformer_jax.models.global_attention import GlobalTokens, check_masks, find_global_tokens, invalid_rows
from longformer_jax.models.layers import dropout_keys, run_layers
from longformer_jax.models.longformer_config import LongformerConfig
from longformer_jax.models.parameters import names_wrong_params, stacked_layers

Array = jax.Array | np.ndarray


@flax.struct.dataclass
class EncoderOutput:
    """What a `Longformer` computes; the optional parts are None unless asked for.

    Attributes:
      last_hidden_state: [B, T, E], of the compute dtype.
      pooler_output: [B, E], of the first token.
      hidden_states: [L + 1, B, T, E]: the embeddings, then the output of each layer.
      attentions: for each layer, float32 [B, H, T, G + window + 1]: a token's attention to the G global tokens, then to
        its neighbours from left to right. Zeros for global tokens, whose attention is in `global_attentions`, and for
        padding. In "full" mode [B, H, T, T].
      global_attentions: for each layer, float32 [B, H, T, G]: the attention of global token g to token t.
    """

    last_hidden_state: jax.Array
    pooler_output: jax.Array | None = None
    hidden_states: jax.Array | None = None
    attentions: tuple[jax.Array, ...] | None = None
    global_attentions: tuple[jax.Array, ...] | None = None


def dense(config: LongformerConfig, features: int, name: str) -> nn.Dense:
    """A dense layer as this model initialises it."""
    return nn.Dense(
        features, dtype=config.dtype, kernel_init=nn.initializers.normal(config.initializer_range), name=name
    )


def to_logits(config: LongformerConfig, features: int, name: str) -> nn.Dense:
    """A dense layer whose products and sums are float32, whatever the model computes in."""
    return dense(dataclasses.replace(config, dtype="float32"), features, name)


def layer_norm(config: LongformerConfig, name: str) -> nn.LayerNorm:
    """LayerNorm over the last axis, with statistics as exact as PyTorch's."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


class EncoderLayer(nn.Module):
    """One post-LayerNorm layer: attention, then feed-forward."""

    config: LongformerConfig
    window: int | None
    dilation: int
    deterministic: bool = True
    output_attentions: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, attention_mask: jax.Array | None, global_tokens: GlobalTokens | None):
        """Runs the layer.

        Args:
          x: [B, T, E].
          attention_mask: booleans [B, T], False for padding; None where there is none.
          global_tokens: None where there are none.

        Returns:
          x [B, T, E] and (attentions, global_attentions), as in `EncoderOutput`, or None.
        """
        cfg = self.config
        B, T, E = x.shape
        dropout = nn.Dropout(cfg.hidden_dropout_prob, deterministic=self.deterministic)
        y, probabilities = self._self_attention(x, attention_mask, global_tokens)

        x = flat_rows(x)
        y = dense(cfg, E, "attention_out")(flat_rows(y.reshape(B, T, E)))
        x = layer_norm(cfg, "attention_norm")(x + dropout(y))
        y = ACTIVATIONS[cfg.hidden_act](dense(cfg, cfg.intermediate_size, "mlp_in")(x))
        y = dense(cfg, E, "mlp_out")(y)
        x = layer_norm(cfg, "mlp_norm")(x + dropout(y))
        return x.reshape(B, T, E), probabilities

    def _self_attention(self, x, attention_mask, global_tokens):
        cfg = self.config
        query, key, value = (self._project(name, x) for name in ("query", "key", "value"))
        has_global = self.window is not None and global_tokens is not None
        of_global = [None] * 3
        if has_global:
            rows = _rows_of_global(global_tokens, x)
            if cfg.global_projections:
                of_global = [self._project("query_global", rows)]
                of_global += [self._project(name, x) for name in ("key_global", "value_global")]
            else:
                of_global = [_rows_of_global(global_tokens, query), key, value]
        rate = 0.0 if self.deterministic else cfg.attention_probs_dropout_prob
        calls = 3 if has_global else 1
        seeds = [jax.random.bits(self.make_rng("dropout"), dtype=jnp.uint32) if rate else None for _ in range(calls)]

        out = over_devices(
            functools.partial(
                _attend,
                window=x.shape[1] if self.window is None else self.window,
                dilation=1 if self.window is None else self.dilation,
                options={"dropout_rate": rate, "implementation": cfg.implementation},
            ),
            *((array, "BTHD") for array in (query, key, value)),
            (attention_mask, "BT"),
            (global_tokens if has_global else None, _AXES_OF_GLOBAL),
            *zip(of_global, ("BGHD", "BTHD", "BTHD"), strict=True),
            (seeds, [""] * calls),
            results="BTHD",
        )
        if attention_mask is not None and self.window is not None:
            out *= attention_mask[:, :, None, None]  # as in the original: padding attends to nothing
        if not self.output_attentions:
            return out, None
        return out, attention_probabilities(
            query,
            key,
            *of_global[:2],
            window=self.window,
            dilation=self.dilation,
            attention_mask=attention_mask,
            global_tokens=global_tokens,
        )

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        """[B, n, E] -> [B, n, H, D]"""
        cfg = self.config
        y = dense(cfg, cfg.hidden_size, name)(flat_rows(x))
        return y.reshape(*x.shape[:2], cfg.num_attention_heads, cfg.head_dim)


_AXES_OF_GLOBAL = GlobalTokens("BT", "BG")  # type: ignore


def _rows_of_global(global_tokens: GlobalTokens, x: jax.Array) -> jax.Array:
    """[B, T, …] -> [B, G, …], on every device that has a part of the sequence."""
    axes = "BTHD" if x.ndim == 4 else "BTE"
    return over_devices(
        lambda part, tokens, x: dataclasses.replace(tokens, part=part).gather(x),
        (global_tokens, _AXES_OF_GLOBAL),
        (x, axes),
        results=axes.replace("T", "G"),
    )


def _attend(
    part: Part,
    query,
    key,
    value,
    attention_mask,
    global_tokens: GlobalTokens | None,
    query_of_global,
    key_for_global,
    value_for_global,
    seeds,
    *,
    window: int,
    dilation: int,
    options: dict[str, Any],
) -> Any:
    """The attention [B, T, H, D] of the tokens that a device has: to their neighbours, and from and to global ones."""
    T = query.shape[1]
    band = {
        "window": window,
        "dilation": dilation,
        "axis_name": part.axis_name,
        "dropout_origin": part.dropout_origin(),
    }
    if global_tokens is None:
        return banded_attention(query, key, value, key_mask=attention_mask, dropout_seed=seeds[0], **band, **options)
    global_tokens = dataclasses.replace(global_tokens, part=part)
    # Every key is counted once: the band leaves out the global ones.
    band_mask = ~global_tokens.mask if attention_mask is None else attention_mask & ~global_tokens.mask
    to_neighbours = banded_attention(
        query, key, value, key_mask=band_mask, dropout_seed=seeds[0], return_lse=True, **band, **options
    )
    to_global = banded_attention(
        query,
        global_tokens.gather(key),
        global_tokens.gather(value),
        window=T * part.count,
        key_mask=global_tokens.valid,
        dropout_seed=seeds[1],
        dropout_origin=part.dropout_origin(query=part.first(T)),
        return_lse=True,
        **options,
    )
    out, _ = merge_attention(*to_neighbours, *to_global)
    rows, lse = banded_attention(
        query_of_global,
        key_for_global,
        value_for_global,
        window=T * part.count,
        key_mask=attention_mask,
        dropout_seed=seeds[2],
        dropout_origin=part.dropout_origin(key=part.first(T)),
        return_lse=True,
        **options,
    )
    if part.axis_name is not None:
        rows, _ = merge_over(part.axis_name, rows, lse)
    return global_tokens.scatter(out, rows)


class Longformer(nn.Module):
    """The encoder, with a pooler over the first token unless told otherwise.

    The parameters of all layers are stacked on a leading axis under "layers", for any windows.
    """

    config: LongformerConfig
    add_pooling_layer: bool = True

    @nn.compact
    @names_wrong_params
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        global_attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        *,
        max_global_tokens: int | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encodes tokens.

        Args:
          input_ids: integers [B, T], of any length up to `config.max_length`; no padding is needed.
          attention_mask: booleans or integers [B, T]: 0 for padding, 1 for tokens, and 2, as in the original, for
            tokens that are global (below) even if `global_attention_mask` does not say so. None means no padding.
          global_attention_mask: booleans or integers [B, T]: 1 for tokens that attend to all and that all attend to
            (section 3.1). Each row may have its own. None means no such token. Ignored in "full" mode.
          token_type_ids: integers [B, T]; None is 0.
          position_ids: integers [B, T], rows of the position table; None counts the ids other than `pad_token_id`,
            whatever `attention_mask` says, from `pad_token_id + 1` on, RoBERTa's rule.
          max_global_tokens: for how many global tokens a row has room, a Python int. None counts them, where the masks'
            values are known when the call is traced; under jit the number is needed for a `global_attention_mask`
            and for an `attention_mask` with 2s.
          deterministic: whether dropout is off; otherwise an rng named "dropout" is needed.
          output_hidden_states: whether to return the output of each layer.
          output_attentions: whether to return attention probabilities, which takes T² memory.

        Raises:
          InputError: an argument or a parameter does not fit, a mask holds something else (as additive masks do), a row
            has more global tokens than there is room for, or an id is outside its table. Under jit the values are not
            known: such a row comes out as NaN, never wrong.
        """
        cfg = self.config
        _check_arguments(cfg, input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids)
        shape = input_ids.shape
        input_ids = jnp.asarray(input_ids)
        global_tokens = overflow = None
        # No parameter depends on which tokens are global, so that init needs no number of them where it is traced.
        masks = [mask for mask in (attention_mask, global_attention_mask) if mask is not None]
        can_count = max_global_tokens is not None or all(map(is_known, masks))
        if cfg.attention_mode != "full" and (can_count or not self.is_initializing()):
            global_tokens, overflow = find_global_tokens(global_attention_mask, attention_mask, max_global_tokens)
        invalid = invalid_rows(attention_mask, global_attention_mask)
        tables = (
            (input_ids, cfg.vocab_size),
            (position_ids, cfg.max_position_embeddings),
            (token_type_ids, cfg.type_vocab_size),
        )
        unknown = [outside(ids, rows).any(-1) for ids, rows in tables if ids is not None and not is_known(ids)]
        if attention_mask is not None:
            attention_mask = jnp.asarray(attention_mask) != 0
        if position_ids is None:
            counted = (input_ids.astype(jnp.int32) != cfg.pad_token_id).astype(jnp.int32)
            position_ids = jnp.cumsum(counted, axis=1) * counted + cfg.pad_token_id
        if token_type_ids is None:
            token_type_ids = jnp.zeros(shape, jnp.int32)

        embed = nn.remat(Longformer._embed) if cfg.remat else Longformer._embed
        x = spread(embed(self, input_ids, position_ids, token_type_ids))
        x = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)(x)
        for rows in (overflow, invalid, *unknown):
            if rows is not None:
                x = jnp.where(rows[:, None, None], jnp.nan, x)

        layers = stacked_layers(self, _init_layers)  # global projections that are not wanted are passed over
        hidden_states, probabilities = [x[None]], []
        marked = wants_marks(self)
        finite: list[Any] = [finite_tokens(x)[None]] if marked else []
        for group in cfg.layer_groups:
            layer = EncoderLayer(cfg, group.window, group.dilation, deterministic, output_attentions, parent=None)
            keys = dropout_keys(self, group, deterministic)
            x, (states, group_probabilities, is_finite) = run_layers(
                layer,
                group,
                layers,
                keys,
                x,
                attention_mask,
                global_tokens,
                with_states=output_hidden_states,
                with_marks=marked,
            )
            hidden_states.append(states)
            finite.append(is_finite)
            if output_attentions:
                count = group.stop - group.start
                probabilities += [jax.tree.map(lambda p, i=i: p[i], group_probabilities) for i in range(count)]
        if marked:
            leave_marks(self, finite)

        pooled = None
        if self.add_pooling_layer:
            pooled = jnp.tanh(dense(cfg, cfg.hidden_size, "pooler")(x[:, 0]))
        attentions, global_attentions = zip(*probabilities, strict=True) if output_attentions else (None, None)
        return EncoderOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=jnp.concatenate(hidden_states) if output_hidden_states else None,
            attentions=attentions,
            global_attentions=global_attentions if global_tokens is not None else None,
        )

    def _embed(self, input_ids: Array, position_ids: Array, token_type_ids: Array) -> jax.Array:
        cfg = self.config
        # As in the original, padding is looked up without a gradient; that of a tied output projection is not lost.
        x = self._look_up("word_embeddings", cfg.vocab_size, input_ids, cfg.pad_token_id)
        x += self._look_up("position_embeddings", cfg.max_position_embeddings, position_ids, cfg.pad_token_id)
        x += self._look_up("token_type_embeddings", cfg.type_vocab_size, token_type_ids)
        return layer_norm(cfg, "embeddings_norm")(x)

    def _look_up(self, name: str, rows: int, ids: Array, padding_id: int | None = None) -> jax.Array:
        cfg = self.config
        init = nn.initializers.normal(cfg.initializer_range)
        table = nn.Embed(rows, cfg.hidden_size, dtype=cfg.dtype, embedding_init=init, name=name)
        return look_up(table, ids, padding_id)


def _init_layers(rng: jax.Array, config: LongformerConfig):
    def init(key):
        x = jnp.zeros((1, 1, config.hidden_size), config.dtype)
        # With a global token, so that its projections are made.
        token = (
            GlobalTokens(jnp.ones((1, 1), bool), jnp.zeros((1, 1), jnp.int32)) if config.global_projections else None
        )
        return EncoderLayer(config, window=1, dilation=1, parent=None).init(key, x, None, token)["params"]

    return jax.vmap(init)(jax.random.split(rng, config.num_hidden_layers))


def check_shapes(shape: tuple[int, ...], **arrays: Any) -> None:
    """Raises InputError unless the arrays that are given have the shape of `input_ids`."""
    for name, x in arrays.items():
        if x is not None and getattr(x, "shape", None) != shape:
            found = list(x.shape) if hasattr(x, "shape") else type(x).__name__
            raise InputError(f"{name} is {found}; expected an array {list(shape)}, as input_ids is")


def _check_arguments(config, input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids) -> None:
    check_tokens("input_ids", input_ids, config.vocab_size)
    shape = input_ids.shape
    if position_ids is None and shape[1] > config.max_length:
        raise InputError(
            f"input_ids has {shape[1]:,} tokens in a row; expected at most {config.max_length:,}, as the position "
            f"table has {config.max_position_embeddings:,} rows"
        )
    check_shapes(
        shape,
        attention_mask=attention_mask,
        global_attention_mask=global_attention_mask,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
    )
    check_masks(attention_mask, global_attention_mask)
    for name, ids, rows in (
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    ):
        if ids is not None:
            check_integers(name, ids, "batch, length")
            check_within(name, ids, rows)
