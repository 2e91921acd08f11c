"""The paper's autoregressive character language model (section 4)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from longformer_jax.attention import banded_attention, merge_attention
from longformer_jax.attention.halo import with_halo
from longformer_jax.attention.split import Part, flat_rows, over_devices, spread
from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer
from longformer_jax.models.activations import ACTIVATIONS
from longformer_jax.models.checks import (
    check_bool,
    check_choice,
    check_implementation,
    check_number,
    check_rate,
    check_size,
    check_tokens,
    describe,
    per_layer,
)
from longformer_jax.models.embedding import look_up
from longformer_jax.models.finite import finite_tokens, leave_marks, wants_marks
from longformer_jax.models.gpu import filled_up_rows
from longformer_jax.models.layers import LayerGroup, dropout_keys, group_layers, run_layers
from longformer_jax.models.parameters import names_wrong_params, stacked_layers
from longformer_jax.models.positions import further, relative_key, relative_query, rotate
from longformer_jax.models.sub_bands import Heads, cut_window

_POSITIONS = ("transformer_xl", "rotary")
_DTYPES = ("float32", "bfloat16")
_KEEP_ATTENTION = jax.checkpoint_policies.save_only_these_names("attention")
_SMALLEST_SOFTCAP, _LARGEST_SOFTCAP = 1e-3, 1e6  # which float32 can divide by
_SOFTCAPS = "a number from 0.001 to 1,000,000, or None"


@dataclasses.dataclass(frozen=True)
class CharLMConfig:
    """Shape and settings of a `CharLM`; raises InputError where they do not fit together.

    Attributes:
      vocab_size: number of token ids; 256 for bytes.
      embed_dim, num_layers, num_heads, mlp_dim: sizes.
      windows: for each layer, bottom first, how many steps back a character sees, besides itself. An int means every
        layer.
      dilations: for each layer, the distance between those steps, in the first `dilated_heads` heads; the other heads
        have 1. An int means every layer.
      dilated_heads: number of heads with the layer's dilation (the paper: 2).
      positions: "transformer_xl" (relative, sinusoidal, with the biases u and v) or "rotary".
      position_dim: width of Transformer-XL's sinusoid; None means embed_dim, as in the paper. A narrower one has fewer
        parameters and gives other logits. A layer computes only with the frequencies that its window can tell apart.
      activation: of the feed-forward layer, one of ACTIVATIONS. "gelu_new" is GELU by the tanh formula.
      qk_norm: whether queries and keys go through an RMSNorm of each head (Henry et al. 2020, Dehghani et al. 2023).
      logit_softcap: c, where logits are c * tanh(logits / c) (Gemma 2); None: as they are.
      tie_embeddings: whether the output projection is the transposed embedding.
      dropout_rate: after the embedding, the attention's projection and the feed-forward layer.
      attention_dropout_rate: on attention probabilities.
      dtype: of the computation, "float32" or "bfloat16". Parameters, softmax and logits are float32 in any case.
      remat: whether the backward pass recomputes each layer from its input; only the attention's output is kept.
      implementation: of `banded_attention`.
    """

    vocab_size: int = 256
    embed_dim: int = 512
    num_layers: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    windows: int | tuple[int, ...] = 512
    dilations: int | tuple[int, ...] = 1
    dilated_heads: int = 2
    positions: str = "transformer_xl"
    position_dim: int | None = None
    activation: str = "gelu_new"
    qk_norm: bool = False
    logit_softcap: float | None = None
    tie_embeddings: bool = True
    dropout_rate: float = 0.2
    attention_dropout_rate: float = 0.0
    dtype: str = "bfloat16"
    remat: bool = False
    implementation: str | None = None

    def __post_init__(self):
        for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "mlp_dim"):
            object.__setattr__(self, name, check_size(name, getattr(self, name)))
        for name in ("windows", "dilations"):
            object.__setattr__(self, name, per_layer(name, getattr(self, name), self.num_layers))
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim is {self.embed_dim}; expected a multiple of num_heads, {self.num_heads}")
        dilated_heads = as_integer(self.dilated_heads)
        if dilated_heads is None or not 0 <= dilated_heads <= self.num_heads:
            raise InputError(f"dilated_heads is {self.dilated_heads!r}; expected 0 to num_heads, {self.num_heads}")
        object.__setattr__(self, "dilated_heads", dilated_heads)
        check_choice("positions", self.positions, _POSITIONS)
        sinusoid_dim = check_size("position_dim", self.sinusoid_dim)
        object.__setattr__(self, "position_dim", None if self.position_dim is None else sinusoid_dim)
        if self.positions == "transformer_xl" and self.sinusoid_dim % 2:
            raise InputError(f"position_dim is {self.sinusoid_dim}; expected an even integer >= 2")
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(f"embed_dim / num_heads is {self.head_dim}; expected an even number for rotary positions")
        for name in ("dropout_rate", "attention_dropout_rate"):
            object.__setattr__(self, name, check_rate(name, getattr(self, name)))
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        for name in ("qk_norm", "tie_embeddings", "remat"):
            check_bool(name, getattr(self, name))
        if self.logit_softcap is not None:
            cap = check_number("logit_softcap", self.logit_softcap, _SOFTCAPS)
            if not _SMALLEST_SOFTCAP <= cap <= _LARGEST_SOFTCAP:
                raise InputError(f"logit_softcap is {cap}; expected {_SOFTCAPS}")
            object.__setattr__(self, "logit_softcap", cap)
        check_choice("dtype", self.dtype, _DTYPES)
        check_implementation(self.implementation)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def sinusoid_dim(self) -> int:
        return self.embed_dim if self.position_dim is None else self.position_dim

    @property
    def layer_groups(self) -> tuple[LayerGroup[int], ...]:
        """Runs of neighbouring layers that share window and dilation."""
        assert isinstance(self.windows, tuple) and isinstance(self.dilations, tuple)  # as __post_init__ has made them
        groups = group_layers(self.windows, self.dilations)
        return groups if self.dilated_heads else tuple(dataclasses.replace(group, dilation=1) for group in groups)

    def cache_spec(self, batch_size: int) -> dict[str, Any]:
        """Shapes and dtypes of a cache: the keys and values [layers, B, window * dilation, H, D] of each group."""

        def spec(group: LayerGroup[int]) -> jax.ShapeDtypeStruct:
            shape = (group.stop - group.start, batch_size, group.reach, self.num_heads, self.head_dim)
            return jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))

        layers = tuple((spec(group), spec(group)) for group in self.layer_groups)
        return {"position": jax.ShapeDtypeStruct((), jnp.dtype("int32")), "layers": layers}


class Block(nn.Module):
    """One pre-LayerNorm layer: x + attention, then x + feed-forward."""

    config: CharLMConfig
    window: int
    dilation: int
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, position: jax.Array, past: tuple[jax.Array, jax.Array] | None = None):
        """Runs the layer on positions `position`, `position + 1`, ….

        Args:
          x: [B, T, E].
          position: integer scalar, of the first row of x.
          past: keys and values [B, P, H, D] of the P positions before x, as many as the layer sees; those before
            position 0 are not seen.

        Returns:
          x [B, T, E] and, where there is a past, the last P keys and values [B, P, H, D], else None.
        """
        cfg = self.config
        B, T, E = x.shape
        H, D, dtype = cfg.num_heads, cfg.head_dim, jnp.dtype(cfg.dtype)
        dense = functools.partial(nn.Dense, dtype=dtype, kernel_init=nn.initializers.lecun_normal())
        residual_init = nn.initializers.variance_scaling(0.5 / cfg.num_layers, "fan_in", "truncated_normal")
        dropout = nn.Dropout(cfg.dropout_rate, deterministic=self.deterministic)

        x = flat_rows(x)
        y = nn.LayerNorm(dtype=dtype, name="attention_norm")(x)
        qkv = dense(3 * E, use_bias=False, name="qkv")(y).reshape(B, T, 3, H, D)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if cfg.qk_norm:
            query = nn.RMSNorm(dtype=dtype, name="query_norm")(query)
            key = nn.RMSNorm(dtype=dtype, name="key_norm")(key)
        if cfg.positions == "rotary":
            positions = position + jnp.arange(T)
            query, key = rotate(query, positions), rotate(key, positions)
        kept = None
        if past is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in zip(past, (key, value), strict=True))
            kept = key[:, T:], value[:, T:]
        y = self._attend(query, key, value, position)
        y = dense(E, use_bias=False, kernel_init=residual_init, name="attention_out")(flat_rows(y.reshape(B, T, E)))
        x += dropout(y)

        y = nn.LayerNorm(dtype=dtype, name="mlp_norm")(x)
        y = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_in")(y))
        y = dense(E, kernel_init=residual_init, name="mlp_out")(y)
        x += dropout(y)
        return x.reshape(B, T, E), kept

    def _attend(self, query, key, value, position) -> Any:
        """The attention's output [B, T, H, D] of queries from `position` on; queries and keys end with the same one."""
        cfg = self.config
        _, T, H, D = query.shape
        S = key.shape[1]
        dilations = (self.dilation,) * cfg.dilated_heads + (1,) * (H - cfg.dilated_heads)
        dropout_rate = 0.0 if self.deterministic else cfg.attention_dropout_rate
        options = {"scale": D**-0.5, "dropout_rate": dropout_rate, "implementation": cfg.implementation}

        def draw_seeds(count):
            return jax.random.bits(self.make_rng("dropout"), (count,), jnp.uint32) if dropout_rate else [None] * count

        def on_devices(attend, heads, queries, keys, *others, seed):
            """attend(part, …) for heads of these dilations; what goes on with a cache is not split along the sequence,
            as neither the cache is."""
            h = "H" if len(set(heads)) == 1 else "h"
            query_axes, key_axes = (f"BT{h}D",) * 2 if T == S else (f"Bt{h}D", f"Bs{h}D")
            operands = [(x, query_axes) for x in queries] + [(x, key_axes) for x in keys]
            operands += [(x, axes.replace("H", h)) for x, axes in others]
            return over_devices(attend, *operands, (position, ""), (seed, ""), results=query_axes)

        if cfg.positions == "rotary":
            (seed,) = draw_seeds(1)
            attend = functools.partial(_rotary_attention, window=self.window, dilations=dilations, options=options)
            return on_devices(attend, dilations, [query], [key, value], seed=seed)

        width = cfg.sinusoid_dim
        relative = self.param("relative", nn.initializers.lecun_normal(), (width, H * D), jnp.float32)
        relative = relative.reshape(width, H, D)
        content_bias, position_bias = (
            self.param(name, nn.initializers.zeros, (H, D), jnp.float32).astype(query.dtype)[None, None]
            for name in ("u", "v")
        )
        by_content, by_position = query + content_bias, query + position_bias
        cut = cut_window(width, D, self.window, dilations, S - 1)
        outs = []
        for heads, seed in zip(cut, draw_seeds(len(cut)), strict=True):
            own = (slice(None), slice(None), slice(heads.start, heads.stop))
            attend = functools.partial(_relative_attention, heads=heads, options=options)
            queries, keys = (by_content[own], by_position[own]), (key[own], value[own])
            outs.append(on_devices(attend, heads.dilations, queries, keys, (relative[:, own[2]], "WHD"), seed=seed))
        return jnp.concatenate(outs, axis=2)


def _reached(part: Part, reach: int, T: int, key, value, position) -> tuple[Any, ...]:
    """What T queries of a device see: keys, values, the positions of the keys, and what the op is told of them.

    The keys are those of a cache before those of the queries' own positions, or what has come from the devices before.
    """
    first, before = part.first(T), 0
    if part.axis_name is not None:
        before = min(reach, (lax.axis_size(part.axis_name) - 1) * T)
        key, value = (with_halo(x, before, 0, part.axis_name) for x in (key, value))
    B, S = key.shape[:2]
    past = S - T
    positions = position + first - past + jnp.arange(S)  # wraps in a long stream, as the angles do
    before_queries = jnp.asarray(position).astype(jnp.uint32) + jnp.asarray(first).astype(jnp.uint32)
    missing = past - jnp.minimum(before_queries, jnp.uint32(past)).astype(jnp.int32)
    return key, value, positions, {
        "key_mask": jnp.broadcast_to(jnp.arange(S) >= missing, (B, S)) if past else None,
        "dropout_origin": part.dropout_origin(first, first - before),
    }  # fmt: skip


def _rotary_attention(part, query, key, value, position, seed, *, window, dilations, options):
    T = query.shape[1]
    key, value, _, limits = _reached(part, window * max(dilations), T, key, value, position)
    band = {"window": (window, 0), "dilation": dilations[: query.shape[2]], "key_offset": key.shape[1] - T}
    return banded_attention(query, key, value, dropout_seed=seed, **band, **limits, **options)


def _relative_attention(part, by_content, by_position, key, value, relative, position, seed, *, heads: Heads, options):
    """One call of the op for each sub-band, merged: queries [B, T, H, D], keys and values [B, S, H, D],
    relative [W, H, D] -> [B, T, H, D]."""
    T, H = by_content.shape[1:3]
    key, value, key_positions, limits = _reached(part, heads.reach, T, key, value, position)
    past = key.shape[1] - T
    kept = heads.basis.frequencies
    sinusoid = relative_key(key_positions, kept).astype(key.dtype)

    parts: list[Any] = []  # out and lse of each sub-band
    for sub_band in heads.sub_bands:
        away = heads.distance(sub_band)
        coefficients = further(heads.basis.coefficients, away, len(relative))
        by_sinusoid = _seen_from(coefficients, relative, by_position)
        rotated = relative_query(by_sinusoid, key_positions[past:] - away, kept)
        parts += banded_attention(
            jnp.concatenate([by_content, rotated], axis=-1),
            key,
            value,
            window=(sub_band.window, 0),
            dilation=heads.dilations[:H],
            shared_key=sinusoid,
            key_offset=past - away,
            dropout_seed=seed,
            return_lse=True,
            **limits,
            **options,
        )
    return merge_attention(*parts)[0] if len(heads.sub_bands) > 1 else parts[0]


def _seen_from(coefficients: np.ndarray | None, relative: jax.Array, query: jax.Array) -> jax.Array:
    """The query from the side of a few sinusoids: coefficients [R, W], relative [W, H, D], query [B, T, H, D] ->
    [B, T, H, R] of query's dtype.

    What the parameters make of the coefficients is computed once for all queries, in float32, and rounded as the
    parameters would be; where there are few queries, as in generating, it is they that go through the parameters.
    """
    B, T, H, D = query.shape
    if coefficients is not None:
        R, W = coefficients.shape
        exact = functools.partial(jnp.einsum, precision="highest")
        queries = B * T if isinstance(B, int) else T  # of a batch whose size is a symbol, as of one row
        if queries * (D + R) * W < R * W * D + queries * D * R:  # multiplications of a head
            full = exact("bthd,whd->bthw", query.astype(jnp.float32), relative)
            return exact("bthw,rw->bthr", full, coefficients).astype(query.dtype)
        relative = exact("rw,whd->rhd", coefficients, relative)
    product = jnp.einsum("bthd,rhd->bthr", query, filled_up_rows(relative.astype(query.dtype)))
    return product[..., : len(relative)]


class CharLM(nn.Module):
    """Predicts the next character at every position.

    The parameters of all layers are stacked on a leading axis under "layers" and do not depend on the windows, so
    windows and dilations can change between training phases while the parameters stay.
    """

    config: CharLMConfig

    @nn.compact
    @names_wrong_params
    def __call__(self, tokens: jax.Array, *, deterministic: bool = True, cache: dict | None = None):
        """Computes logits.

        Args:
          tokens: integers [B, T], in [0, vocab_size).
          deterministic: whether dropout is off; otherwise an rng named "dropout" is needed.
          cache: what `init_cache` gave, or an earlier call: the tokens continue that stream.

        Returns:
          logits float32 [B, T, vocab_size]; with a cache, (logits, cache).

        Raises:
          InputError: tokens are no such integers, the cache is of another model or number of rows, or a parameter is
            missing or has another shape. Under jit the values of tokens are not known: one outside of the vocabulary
            gives NaN wherever it is seen, in later calls with the cache, too, and perhaps elsewhere in its row.
        """
        cfg = self.config
        check_tokens("tokens", tokens, cfg.vocab_size)
        if cache is not None:
            check_cache(cfg, cache, tokens.shape[0])
        T = tokens.shape[1]
        embed = nn.Embed(
            cfg.vocab_size, cfg.embed_dim, dtype=cfg.dtype, embedding_init=nn.initializers.normal(0.02), name="embed"
        )
        layers = stacked_layers(self, _init_layers)
        position = jnp.int32(0) if cache is None else cache["position"]

        x = look_up(embed, tokens)
        x = nn.Dropout(cfg.dropout_rate, deterministic=deterministic)(spread(x) if cache is None else x)
        marked = wants_marks(self)
        finite: list[Any] = [finite_tokens(x)[None]] if marked else []
        new_layers = []
        for index, group in enumerate(cfg.layer_groups):
            block = Block(cfg, group.window, group.dilation, deterministic, parent=None)
            keys = dropout_keys(self, group, deterministic)
            past = None if cache is None else cache["layers"][index]
            x, (_, kept, is_finite) = run_layers(
                block, group, layers, keys, x, position, own=past, policy=_KEEP_ATTENTION, with_marks=marked
            )
            new_layers.append(kept)
            finite.append(is_finite)
        if marked:
            leave_marks(self, finite)

        x = nn.LayerNorm(dtype=cfg.dtype, name="final_norm")(x)
        if cfg.tie_embeddings:
            kernel = embed.embedding.T
        else:
            kernel = self.param("head", nn.initializers.lecun_normal(), (cfg.embed_dim, cfg.vocab_size), jnp.float32)
        logits = jnp.dot(flat_rows(x), kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        if cfg.logit_softcap is not None:
            logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
        logits = logits.reshape(*tokens.shape, cfg.vocab_size)
        return logits if cache is None else (logits, {"position": position + T, "layers": tuple(new_layers)})


def _init_layers(rng: jax.Array, config: CharLMConfig):
    def init(key):
        x = jnp.zeros((1, 1, config.embed_dim), config.dtype)
        return Block(config, window=1, dilation=1, parent=None).init(key, x, jnp.int32(0))["params"]

    return jax.vmap(init)(jax.random.split(rng, config.num_layers))


def check_cache(config: CharLMConfig, cache: Any, batch_size: int) -> None:
    """Raises InputError unless a cache is one for this model and number of rows, by its shapes and dtypes."""
    found, expected = (
        {jax.tree_util.keystr(path): describe(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (cache, config.cache_spec(batch_size))
    )
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise InputError(
                f"cache{name} is {found.get(name, 'missing')}; expected {expected.get(name, 'none')}, as of "
                f"init_cache(config, {batch_size})"
            )
