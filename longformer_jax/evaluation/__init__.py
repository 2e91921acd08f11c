"""Evaluation of trained models: of a workdir, whatever it holds, and of texts by two protocols."""

from longformer_jax.evaluation.protocols import BitsPerCharacter, score_overlapping, score_stream
from longformer_jax.evaluation.workdir import evaluate, evaluate_model, sample_from_model, sample_text

__all__ = [
    "BitsPerCharacter",
    "evaluate",
    "evaluate_model",
    "sample_from_model",
    "sample_text",
    "score_overlapping",
    "score_stream",
]
