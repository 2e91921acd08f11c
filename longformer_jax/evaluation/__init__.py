"""Trained models in use: scores of a workdir or a text, answers of a task's, and StableHLO for other programs."""

from longformer_jax.evaluation.protocols import BitsPerCharacter, score_overlapping, score_stream
from longformer_jax.evaluation.stablehlo import export_stablehlo
from longformer_jax.evaluation.task import TaskModel, load_task
from longformer_jax.evaluation.workdir import evaluate, evaluate_model, sample_from_model, sample_text

__all__ = [
    "BitsPerCharacter",
    "TaskModel",
    "evaluate",
    "evaluate_model",
    "export_stablehlo",
    "load_task",
    "sample_from_model",
    "sample_text",
    "score_overlapping",
    "score_stream",
]
