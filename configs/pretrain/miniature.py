"""From RoBERTa to Longformer in small, on two CPU cores: a short model from scratch, then a long one made of it.

  python train.py --config=configs/pretrain/miniature.py:short --workdir=runs/miniature_short
  python train.py --config=configs/pretrain/miniature.py:copied_positions --workdir=runs/miniature_copied
  python eval.py --workdir=runs/miniature_copied --split=validation

The text is the embedded one, or --config.data.path=FILE in both commands; the tokenizer is learnt from it in the first
and found beside the model in the second. --config.init=DIRECTORY is the first one's WORKDIR/model, unless that is
runs/miniature_short/model.

Variants:
  short             a RoBERTa, with full attention over 32 tokens, from random weights.
  copied_positions  the short model as a Longformer for 256 tokens, its position embeddings repeated, trained on.
  random_positions  the same, but with random embeddings of the new positions.
  positions_only    as copied_positions, but only the position embeddings are trained.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.pretrain import paper
from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.training import MaskedLMExperiment, OptimizerConfig, Phase, TokenDataConfig

SHORT, LONG = 32, 256
VARIANTS = ("short", *paper.VARIANTS)


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of a variant."""
    if variant == "short":
        return short().to_config_dict()
    if variant in VARIANTS:
        return paper.variant(long(), variant).to_config_dict()
    raise InputError(f"config variant is {variant!r}; expected one of {', '.join(VARIANTS)}")


def short() -> MaskedLMExperiment:
    """A small RoBERTa."""
    return MaskedLMExperiment(
        model=LongformerConfig(
            vocab_size=300,  # hardly more than bytes, of which a small model learns most
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=SHORT + 2,
            attention_mode="full",
            global_projections=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.08,  # narrower than RoBERTa, so larger
        ),
        phases=(Phase(sequence_length=SHORT, learning_rate=2e-3, batch_size=64, steps=1500),),
        data=TokenDataConfig(validation_fraction=0.05),
        # The first ids that a tokenizer of one's own has: <s>, <pad>, </s>, <unk>, <mask>.
        mask_token_id=4,
        special_token_ids=(0, 1, 2, 3, 4),
        optimizer=OptimizerConfig(
            b2=0.98, eps=1e-6, clip_norm=1.0, warmup_steps=100, decay="linear", final_fraction=0.1
        ),
        log_interval=50,
        eval_interval=200,
        checkpoint_interval=200,
    )


def long() -> MaskedLMExperiment:
    """The Longformer that is made of it; the window is as wide as the short model's sequences, as in the paper."""
    config = short()
    return dataclasses.replace(
        config,
        init="runs/miniature_short/model",
        model=dataclasses.replace(
            config.model,
            max_position_embeddings=LONG + 2,
            attention_mode="sliding_window",
            attention_window=SHORT,
            global_projections=True,
        ),
        phases=(Phase(sequence_length=LONG, learning_rate=5e-4, batch_size=8, steps=100),),
        optimizer=dataclasses.replace(
            config.optimizer, warmup_steps=20, decay="polynomial", power=3.0, final_fraction=0.0
        ),
        log_interval=20,
        eval_interval=50,
        checkpoint_interval=50,
    )
