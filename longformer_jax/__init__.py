"""Longformer in JAX: banded attention, and the models built on it.

>>> from longformer_jax import banded_attention, CharLM, CharLMConfig
"""

from typing import TYPE_CHECKING

from longformer_jax.loading import on_demand

if TYPE_CHECKING:
    from longformer_jax.attention import banded_attention, merge_attention
    from longformer_jax.errors import InputError
    from longformer_jax.evaluation import load_task
    from longformer_jax.models import (
        CharLM,
        CharLMConfig,
        ForMaskedLM,
        ForMultipleChoice,
        ForQuestionAnswering,
        ForSequenceClassification,
        ForTokenClassification,
        Longformer,
        LongformerConfig,
        answer_mask,
        as_nnx,
        best_spans,
        decode_step,
        extend,
        generate,
        global_capacity,
        init_cache,
        prefill,
        question_mask,
    )
    from longformer_jax.training import load_char_lm
    from longformer_jax.weights import (
        load_pretrained,
        load_tokenizer,
        resize_vocab,
        roberta_to_longformer,
        save_pretrained,
    )

__all__ = [
    "CharLM",
    "CharLMConfig",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
    "InputError",
    "Longformer",
    "LongformerConfig",
    "answer_mask",
    "as_nnx",
    "banded_attention",
    "best_spans",
    "decode_step",
    "extend",
    "generate",
    "global_capacity",
    "init_cache",
    "load_char_lm",
    "load_pretrained",
    "load_task",
    "load_tokenizer",
    "merge_attention",
    "prefill",
    "question_mask",
    "resize_vocab",
    "roberta_to_longformer",
    "save_pretrained",
]

# What the names above are in, from what needs least to what needs most: an attention needs jax alone, models flax, too,
# weights safetensors, and training and evaluation Orbax and Grain. None is loaded before one of its names is asked for.
__getattr__ = on_demand(__name__, ("errors", "attention", "models", "weights", "training", "evaluation"), __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
