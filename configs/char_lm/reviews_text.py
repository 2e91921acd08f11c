"""A longer run on two CPU cores: 4.9M parameters, IMDB's reviews, three phases up to sequences of 8,192 characters.

  python -m benchmarks.reviews_text aclImdb runs/reviews.txt
  python train.py --config=configs/char_lm/reviews_text.py --workdir=runs/reviews_text
  python eval.py --workdir=runs/reviews_text --split=validation --protocol=stream

The text, 130 MB, has the reviews of a film one after another; aclImdb is what aclImdb_v1.tar.gz of
https://ai.stanford.edu/~amaas/data/sentiment unpacks to. Training reads 28M of its 117M characters.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.char_lm import quickstart
from longformer_jax.errors import InputError
from longformer_jax.training import CharLMExperiment, CharLMPhase, DataConfig

WINDOWS = (32, 32, 64, 64, 128, 128)
# Sequences, how much longer the windows are, the rate, sequences of a batch, steps.
PHASES = ((512, 1, 3e-3, 8, 4000), (2048, 4, 1.5e-3, 4, 800), (8192, 16, 1e-3, 2, 300))


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; it has no variants."""
    if variant:
        raise InputError(f"config variant is {variant!r}; expected none")
    model = dataclasses.replace(quickstart.MODEL, embed_dim=256, num_heads=4, mlp_dim=1024, windows=WINDOWS)
    phases = tuple(
        CharLMPhase(
            sequence_length=length,
            windows=tuple(factor * window for window in WINDOWS),
            learning_rate=rate,
            batch_size=batch_size,
            steps=steps,
        )
        for length, factor, rate, batch_size, steps in PHASES
    )
    return CharLMExperiment(
        model=model,
        phases=phases,
        data=DataConfig(path="runs/reviews.txt"),
        optimizer=dataclasses.replace(quickstart.OPTIMIZER, weight_decay=0.1),
        log_interval=20,
        eval_interval=400,
        eval_sequences=16,
        checkpoint_interval=100,
    ).to_config_dict()
