"""Models: functional Linen modules, free of training; they spread their attention over the mesh in use."""

from longformer_jax.models.char_lm import CharLM, CharLMConfig
from longformer_jax.models.global_attention import global_capacity
from longformer_jax.models.heads import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    question_mask,
)
from longformer_jax.models.longformer import Longformer
from longformer_jax.models.longformer_config import LongformerConfig
from longformer_jax.models.nnx_bridge import as_nnx
from longformer_jax.models.spans import Spans, answer_mask, best_spans
from longformer_jax.models.streaming import decode_step, extend, generate, init_cache, prefill

__all__ = [
    "CharLM",
    "CharLMConfig",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
    "Longformer",
    "LongformerConfig",
    "Spans",
    "answer_mask",
    "as_nnx",
    "best_spans",
    "decode_step",
    "extend",
    "generate",
    "global_capacity",
    "init_cache",
    "prefill",
    "question_mask",
]
