"""A masked-LM experiment small enough to compile in seconds, and the text that it learns."""

import dataclasses
from pathlib import Path

from longformer_jax import LongformerConfig
from longformer_jax.data import load_corpus
from longformer_jax.training import MaskedLMExperiment, OptimizerConfig, Phase, TokenDataConfig

# Dropout, so that randomness matters; two phases, so that the length and the accumulation change on the way.
CONFIG = MaskedLMExperiment(
    model=LongformerConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        attention_window=8,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    ),
    phases=(
        Phase(sequence_length=32, learning_rate=1e-2, batch_size=8, steps=12, sequences_per_device=4),
        Phase(sequence_length=64, learning_rate=1e-2, batch_size=8, steps=8),
    ),
    data=TokenDataConfig(validation_fraction=0.2),
    mask_token_id=4,
    special_token_ids=(0, 1, 2, 3, 4),
    optimizer=OptimizerConfig(eps=1e-6, clip_norm=1.0),
    log_interval=4,
    eval_interval=10,
    eval_sequences=6,
    checkpoint_interval=5,
)


def with_text(folder: Path, config: MaskedLMExperiment = CONFIG) -> MaskedLMExperiment:
    """The experiment on the beginning of a play, which is written to `folder` unless it is there."""
    text = folder / "text"
    if not text.exists():
        text.write_bytes(bytes(load_corpus("tiny_shakespeare").split("train")[:12_000]))
    data = dataclasses.replace(config.data, path=str(text), cache_dir=str(folder / "cache"))
    return dataclasses.replace(config, data=data)
