"""A first look: a small character model of Shakespeare on two CPU cores, within minutes.

  python train.py --config=configs/char_lm/quickstart.py --workdir=runs/quickstart
  python eval.py --workdir=runs/quickstart --split=validation --protocol=stream
  python eval.py --workdir=runs/quickstart --sample=500

What the paper's models have, in small: windows that grow from layer to layer and from phase to phase, a dilated head,
relative positions. Unlike them, because it pays here: Muon, ReLU², more weight decay, a rate that falls to zero. The
text ships with the package; nothing is downloaded.

Variants:
  minute  4 layers, one phase of shorter sequences, about a minute in all: --config=configs/char_lm/quickstart.py:minute
"""

import dataclasses

from ml_collections import ConfigDict

from longformer_jax.errors import InputError
from longformer_jax.models import CharLMConfig
from longformer_jax.training import CharLMExperiment, CharLMPhase, OptimizerConfig

VARIANTS = ("minute",)
WINDOWS = (16, 16, 32, 32, 64, 64)
MODEL = CharLMConfig(
    embed_dim=128,
    num_layers=6,
    num_heads=2,
    mlp_dim=512,
    windows=WINDOWS,
    dilations=(1, 1, 1, 1, 1, 2),
    dilated_heads=1,
    position_dim=32,
    activation="relu2",
    dropout_rate=0.0,
    dtype="float32",
)
OPTIMIZER = OptimizerConfig(name="muon", b2=0.99, weight_decay=0.3, clip_norm=1.0, decay="linear", final_fraction=0.0)


def get_config(variant: str = "") -> ConfigDict:
    """The configuration, or that of a variant."""
    if variant not in ("", *VARIANTS):
        raise InputError(f"config variant is {variant!r}; expected none, or {' or '.join(VARIANTS)}")
    windows = WINDOWS
    config = CharLMExperiment(
        model=MODEL,
        phases=(
            CharLMPhase(sequence_length=128, windows=windows, learning_rate=4e-3, batch_size=16, steps=1850),
            CharLMPhase(
                sequence_length=256,
                windows=tuple(2 * window for window in windows),
                learning_rate=1.5e-3,
                batch_size=8,
                steps=1050,
            ),
        ),
        optimizer=OPTIMIZER,
        log_interval=100,
        eval_interval=250,
        eval_sequences=64,
        checkpoint_interval=500,
    )
    if variant == "minute":
        windows = (16, 32, 64, 64)
        model = dataclasses.replace(config.model, num_layers=4, windows=windows, dilations=(1, 1, 1, 2))
        phase = dataclasses.replace(config.phases[0], sequence_length=64, windows=windows, steps=1300)
        optimizer = dataclasses.replace(config.optimizer, weight_decay=0.1)
        config = dataclasses.replace(config, model=model, phases=(phase,), optimizer=optimizer)
    return config.to_config_dict()
