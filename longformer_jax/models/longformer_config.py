"""Shape and settings of the Longformer encoder."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from longformer_jax.errors import InputError
from longformer_jax.models.activations import ACTIVATIONS
from longformer_jax.models.checks import (
    check_bool,
    check_choice,
    check_implementation,
    check_number,
    check_rate,
    check_size,
    per_layer,
)
from longformer_jax.models.layers import LayerGroup, group_layers

ATTENTION_MODES = ("sliding_window", "full")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LongformerConfig:
    """Shape and settings of a `Longformer`; raises InputError where they do not fit together.

    Names and meanings are those of Hugging Face's config.json, so that checkpoints need no translation; the defaults
    are allenai/longformer-base-4096.

    Attributes:
      vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, type_vocab_size: sizes.
      max_position_embeddings: rows of the position table. The first `pad_token_id + 1` are reserved (RoBERTa's rule),
        so that a table of 4098 serves 4096 tokens.
      pad_token_id, bos_token_id, sep_token_id: ids of <pad>, <s> and </s>. A model without <s> has None.
      attention_window: for each layer, bottom first, the keys a token sees on both sides together, an even number: 512
        is 256 on the left, 256 on the right. An int means every layer.
      attention_dilation: for each layer, the distance between those keys. An int means every layer.
      attention_mode: "sliding_window", or "full": every token sees all others (RoBERTa; the paper's n² baseline), and
        global tokens are nothing special.
      global_projections: whether global tokens have query, key and value projections of their own, as the paper's
        models have; otherwise they use the ordinary ones (its ablation).
      hidden_act: of the feed-forward layers, by transformers' name, aliases included.
      hidden_dropout_prob: after embeddings, the attention's projection and the feed-forward layers, and in heads.
      attention_probs_dropout_prob: on attention probabilities.
      layer_norm_eps, initializer_range: as named.
      classifier_dropout: before and within the heads for sequence and token classification; None is
        `hidden_dropout_prob`. transformers' own Longformer passes over it.
      num_labels: classes of the classification heads.
      id2label: their names; a list or a mapping from 0, 1, … becomes a tuple. None is LABEL_0, LABEL_1, …
      tie_word_embeddings: whether the masked language model's output projection is the transposed word embedding;
        otherwise it is a table of its own, lm_head/decoder.
      dtype: of the computation: "float32", "bfloat16" or "float16". Parameters, softmax and logits are float32 in any
        case.
      remat: whether the backward pass recomputes each layer from its input, so that a layer keeps one
        [B, T, hidden_size] array.
      implementation: of `banded_attention`.
    """

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 4098
    type_vocab_size: int = 1
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    sep_token_id: int = 2
    attention_window: int | tuple[int, ...] = 512
    attention_dilation: int | tuple[int, ...] = 1
    attention_mode: str = "sliding_window"
    global_projections: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    classifier_dropout: float | None = None
    num_labels: int = 2
    id2label: tuple[str, ...] | None = None
    tie_word_embeddings: bool = True
    dtype: str = "float32"
    remat: bool = False
    implementation: str | None = None

    def __post_init__(self):
        for name, minimum in (
            ("vocab_size", 1),
            ("hidden_size", 1),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 1),
            ("intermediate_size", 1),
            ("max_position_embeddings", 1),
            ("type_vocab_size", 1),
            ("pad_token_id", 0),
            ("sep_token_id", 0),
            ("num_labels", 1),
        ):
            object.__setattr__(self, name, check_size(name, getattr(self, name), minimum))
        if self.bos_token_id is not None:
            object.__setattr__(self, "bos_token_id", check_size("bos_token_id", self.bos_token_id, 0))
        object.__setattr__(self, "id2label", _label_names(self.id2label, self.num_labels))
        windows = per_layer("attention_window", self.attention_window, self.num_hidden_layers)
        dilations = per_layer("attention_dilation", self.attention_dilation, self.num_hidden_layers)
        if any(window % 2 for window in windows):
            raise InputError(
                f"attention_window is {self.attention_window!r}; expected even numbers, the keys of both sides "
                "together (512: 256 a side)"
            )
        object.__setattr__(self, "attention_window", windows)
        object.__setattr__(self, "attention_dilation", dilations)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size is {self.hidden_size}; expected a multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        if self.max_length < 1:
            raise InputError(
                f"max_position_embeddings is {self.max_position_embeddings}; expected at least "
                f"{self.pad_token_id + 2}, as positions begin at pad_token_id + 1"
            )
        for name, allowed in (
            ("attention_mode", ATTENTION_MODES),
            ("hidden_act", tuple(ACTIVATIONS)),
            ("dtype", _DTYPES),
        ):
            check_choice(name, getattr(self, name), allowed)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            object.__setattr__(self, name, check_rate(name, getattr(self, name)))
        if self.classifier_dropout is not None:
            object.__setattr__(self, "classifier_dropout", check_rate("classifier_dropout", self.classifier_dropout))
        for name in ("global_projections", "tie_word_embeddings", "remat"):
            check_bool(name, getattr(self, name))
        check_implementation(self.implementation)
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            number = check_number(name, value, "a number in (0, 1)")
            if not 0 < number < 1:
                raise InputError(f"{name} is {value!r}; expected a number in (0, 1)")
            object.__setattr__(self, name, number)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_length(self) -> int:
        """The most tokens of a sequence that the position table serves."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def layer_groups(self) -> tuple[LayerGroup[int] | LayerGroup[None], ...]:
        """Runs of neighbouring layers that share window and dilation."""
        assert isinstance(self.attention_window, tuple) and isinstance(self.attention_dilation, tuple)
        if self.attention_mode == "full":
            return (LayerGroup(0, self.num_hidden_layers, None, 1),)
        return group_layers([window // 2 for window in self.attention_window], self.attention_dilation)


def _label_names(names: Any, num_labels: int) -> tuple[str, ...] | None:
    """The names in the order of their ids; None where they are the usual ones."""
    if names is None:
        return None
    if isinstance(names, Mapping) and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"id2label is {names!r}; expected the names of classes 0, 1, …")
    if len(names) != num_labels:
        raise InputError(f"id2label has {len(names)} names; expected {num_labels}, one for each of num_labels")
    return None if list(names) == default_labels(num_labels) else tuple(names)


def default_labels(num_labels: int) -> list[str]:
    """What transformers calls classes without names."""
    return [f"LABEL_{i}" for i in range(num_labels)]
