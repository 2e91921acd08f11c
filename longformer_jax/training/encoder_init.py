"""What an encoder's training begins with: the weights of `init`, made to be the experiment's model; the tokenizer."""

from typing import Any

from longformer_jax.data import TokenCorpus
from longformer_jax.data.packing import Packer
from longformer_jax.models import LongformerConfig
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.serialization import check
from longformer_jax.weights import load_pretrained, roberta_to_longformer
from longformer_jax.weights.architectures import ModelFactory

# What a model keeps when it becomes another experiment's; all else is settings or follows from the shapes.
KEPT = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("type_vocab_size", "pad_token_id", "bos_token_id", "sep_token_id", "hidden_act", "layer_norm_eps"),
)


def check_tokenizer(model: LongformerConfig, tokens: Packer | TokenCorpus, *, added: int = 0) -> None:
    """Raises InputError unless a model has a tokenizer's ids, but for `added` tokens that it gets room for later."""
    needed = tokens.vocab_size - added
    expected = f"at least {needed}, the number of the tokenizer's tokens"
    check(needed <= model.vocab_size, "model.vocab_size", model.vocab_size, expected)
    for field in ("pad_token_id", "bos_token_id", "sep_token_id"):
        found, wanted = getattr(model, field), getattr(tokens, field)
        check(found == wanted, f"model.{field}", found, f"{wanted}, that of the tokenizer")


def load_init(config: ExperimentConfig, model: ModelFactory, positions: str) -> Any:
    """The parameters of `config.init`, converted to `config.model`.

    Args:
      config: with an `init`.
      model: the class to load; a head that `init` lacks is drawn from the seed.
      positions: how rows of the position table are made where `init` has fewer, "copied" or "random".

    Raises:
      InputError: the weights cannot be loaded, or are not those of such a model.
    """
    assert config.init is not None
    found, params = load_pretrained(config.init, model, seed=config.seed)
    config.check_init_fields(found, *KEPT)
    # A Longformer of its own length stays what it is.
    if config.model.attention_mode == "sliding_window" and found.max_length <= config.model.max_length:
        found, params = roberta_to_longformer(
            found,
            params,
            max_length=config.model.max_length,
            attention_window=config.model.attention_window,
            positions=positions,
            seed=config.seed,
        )
    # Full attention reads a Longformer as well: the projections of global tokens are left over.
    mode = ("attention_mode",) if config.model.attention_mode == "sliding_window" else ()
    config.check_init_fields(found, *mode, "max_position_embeddings")
    return params
