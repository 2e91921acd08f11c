"""A first look: a small character model of Shakespeare on two CPU cores, within five minutes.

  python train.py --config=configs/char_lm/quickstart.py --workdir=runs/quickstart
  python eval.py --workdir=runs/quickstart --split=validation --protocol=stream
  python eval.py --workdir=runs/quickstart --sample=500

The text ships with the package; nothing is downloaded.
"""

from ml_collections import ConfigDict

from longformer_jax.errors import InputError
from longformer_jax.models import CharLMConfig
from longformer_jax.training import ExperimentConfig, OptimizerConfig, Phase


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; there are no variants."""
    if variant:
        raise InputError(f"config variant is {variant!r}; expected none")
    windows = (32, 64, 128, 128)
    return ExperimentConfig(
        model=CharLMConfig(
            embed_dim=128,
            num_layers=4,
            num_heads=4,
            mlp_dim=512,
            windows=windows,
            dilations=(1, 1, 1, 2),
            dilated_heads=1,
            position_dim=32,
            dropout_rate=0.0,
            dtype="float32",
        ),
        phases=(Phase(sequence_length=256, windows=windows, learning_rate=2e-3, batch_size=12, steps=1500),),
        optimizer=OptimizerConfig(b2=0.99, weight_decay=0.1, clip_norm=1.0, decay="cosine", final_fraction=0.05),
        log_interval=50,
        eval_interval=250,
        eval_sequences=64,
        checkpoint_interval=500,
    ).to_config_dict()
