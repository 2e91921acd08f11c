"""Evaluation of trained models: of a workdir, whatever it holds, of texts by two protocols, and answers of a task's."""

from longformer_jax.evaluation.protocols import BitsPerCharacter, score_overlapping, score_stream
from longformer_jax.evaluation.task import TaskModel, load_task
from longformer_jax.evaluation.workdir import evaluate, evaluate_model, sample_from_model, sample_text

__all__ = [
    "BitsPerCharacter",
    "TaskModel",
    "evaluate",
    "evaluate_model",
    "load_task",
    "sample_from_model",
    "sample_text",
    "score_overlapping",
    "score_stream",
]
