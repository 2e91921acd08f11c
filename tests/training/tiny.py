"""A configuration like those of configs/, of a model small enough to compile in seconds."""

from ml_collections import ConfigDict

from longformer_jax.models import CharLMConfig
from longformer_jax.training import CharLMExperiment, CharLMPhase

# Two phases, so that length, windows, rate and accumulation change on the way; dropout, so that randomness matters.
CONFIG = CharLMExperiment(
    model=CharLMConfig(
        embed_dim=16,
        num_layers=2,
        num_heads=2,
        mlp_dim=32,
        windows=(4, 8),
        dilations=(1, 2),
        dilated_heads=1,
        dropout_rate=0.1,
        dtype="float32",
        remat=False,
    ),
    phases=(
        CharLMPhase(
            sequence_length=32, windows=(4, 8), learning_rate=3e-3, batch_size=8, steps=12, sequences_per_device=4
        ),
        CharLMPhase(sequence_length=48, windows=(8, 16), learning_rate=1e-3, batch_size=8, steps=8),
    ),
    log_interval=4,
    eval_interval=10,
    eval_sequences=6,
    checkpoint_interval=5,
)


def get_config() -> ConfigDict:
    """What train.py asks for."""
    return CONFIG.to_config_dict()
