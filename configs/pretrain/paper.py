"""What the paper's pretraining runs share (section 5); the files beside this one are the experiments.

Read from the paper: 65K steps of 2^18 tokens in sequences of 4096, the rate of 3e-5 with 500 steps of warm-up and decay
with the power 3, copied positions, windows of 512. "The rest of the hyperparameters are the same as for RoBERTa", so
from RoBERTa's paper (its table 9): Adam's betas 0.9 and 0.98 and eps 1e-6, weight decay 0.01, dropout 0.1, no clipping
of gradients, 15% of the tokens to predict. Different: RoBERTa's code decayed all parameters, here biases and LayerNorms
are left out; activations are bfloat16, with softmax, sums and parameters in float32; and the paper's text (books,
Wikipedia, news, stories) is not public as a whole, so bring your own: --config.data.path=DIRECTORY, files of UTF-8 with
a blank line between documents, or --config.data.path=tfds:NAME. "Only the position embeddings" is read as the whole
table.
"""

import dataclasses

from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.training import MaskedLMExperiment, OptimizerConfig, Phase, TokenDataConfig

SEQUENCE_LENGTH = 4096
BATCH_SIZE = 2**18 // SEQUENCE_LENGTH

POSITION_TABLE = "position_embeddings"


def experiment(init: str, model: LongformerConfig, sequences_per_device: int) -> MaskedLMExperiment:
    """Continued pretraining of `init`, as a Longformer like `model`."""
    phase = Phase(
        sequence_length=SEQUENCE_LENGTH,
        learning_rate=3e-5,
        batch_size=BATCH_SIZE,
        steps=65_000,
        sequences_per_device=sequences_per_device,
    )
    optimizer = OptimizerConfig(
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.01,
        clip_norm=None,
        warmup_steps=500,
        decay="polynomial",
        power=3.0,
    )
    return MaskedLMExperiment(
        init=init, model=model, phases=(phase,), data=TokenDataConfig(), optimizer=optimizer, eval_sequences=256
    )


VARIANTS = ("copied_positions", "random_positions", "positions_only")


def variant(config: MaskedLMExperiment, name: str) -> MaskedLMExperiment:
    """Variant `name` of an experiment; "" is copied_positions."""
    if name in ("", "copied_positions"):
        return config
    if name == "random_positions":
        return dataclasses.replace(config, positions="random")
    if name == "positions_only":
        return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, train_only=POSITION_TABLE))
    raise InputError(f"config variant is {name!r}; expected none, or {' or '.join(VARIANTS)}")
