"""What the paper's fine-tuning shares (section 6 and its appendices); the files beside this one are the tasks.

Read from the paper: sequences of 4096 tokens, the rate of 3e-5, batches of 32; for classification 15 epochs, a warm-up
over the first tenth and a global <s>. Not in the paper, so the usual: linear decay, AdamW with weight decay 0.01, and
gradients clipped at 1. Activations are bfloat16, with softmax, sums and parameters in float32.
"""

import dataclasses

from configs.pretrain import reviews
from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.tasks import Task
from longformer_jax.training import OptimizerConfig, TaskExperiment, TaskPhase

SEQUENCE_LENGTH = 4096
MINIATURE_LENGTH = 1024

BASE = LongformerConfig(dtype="bfloat16", remat=True)  # the defaults are Longformer-base
LARGE = LongformerConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    dtype="bfloat16",
    remat=True,
)

VARIANTS = ("base", "large", "smoke")


def experiment(
    task: Task, variant: str, *, epochs: int = 15, warmup_steps: int | None = None, miniature_epochs: int | None = None
) -> TaskExperiment:
    """Fine-tuning of a variant; "" is base. A warm-up of None is the first tenth; the miniature may be missing."""
    variants = VARIANTS if miniature_epochs is None else (*VARIANTS, "miniature")
    if variant == "miniature" and miniature_epochs is not None:
        return miniature(task, miniature_epochs)
    if variant == "smoke":
        return smoke(task)
    if variant not in ("", *variants):
        raise InputError(f"config variant is {variant!r}; expected none, or {' or '.join(variants)}")
    large = variant == "large"
    return TaskExperiment(
        init="allenai/longformer-large-4096" if large else "allenai/longformer-base-4096",
        model=LARGE if large else BASE,
        task=task,
        phases=(
            TaskPhase(
                sequence_length=SEQUENCE_LENGTH,
                learning_rate=3e-5,
                batch_size=32,
                epochs=epochs,
                sequences_per_device=4 if large else 8,
            ),
        ),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear", warmup_steps=warmup_steps),
    )


def miniature(task: Task, epochs: int) -> TaskExperiment:
    """The RoBERTa of configs/pretrain/reviews.py, after `convert` has made a Longformer for 1,024 tokens of it."""
    return TaskExperiment(
        init="runs/long",
        model=dataclasses.replace(
            reviews.MODEL,
            max_position_embeddings=MINIATURE_LENGTH + 2,
            attention_mode="sliding_window",
            attention_window=reviews.SEQUENCE_LENGTH,  # as wide as the short model's sequences
            global_projections=True,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        ),
        task=task,
        phases=(TaskPhase(sequence_length=MINIATURE_LENGTH, learning_rate=3e-4, batch_size=32, epochs=epochs),),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear"),
        log_interval=50,
    )


def smoke(task: Task) -> TaskExperiment:
    """Two narrow layers from random weights, the first 256 tokens of each document, with a tokenizer of its own."""
    return TaskExperiment(
        model=LongformerConfig(
            vocab_size=4000,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=256 + 2,
            attention_window=32,
            initializer_range=0.1,  # narrower than Longformer, so larger
        ),
        task=task,
        phases=(TaskPhase(sequence_length=256, learning_rate=2e-3, batch_size=32, epochs=2),),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear"),
        log_interval=50,
    )
