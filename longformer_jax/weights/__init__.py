"""Weights of RoBERTa and Longformer, in and out.

>>> from longformer_jax.weights import load_pretrained
>>> config, params = load_pretrained("allenai/longformer-base-4096")
"""

from typing import TYPE_CHECKING

from longformer_jax.loading import on_demand

if TYPE_CHECKING:
    from longformer_jax.weights.conversion import roberta_to_longformer
    from longformer_jax.weights.hugging_face_config import config_from_hugging_face, config_to_hugging_face
    from longformer_jax.weights.pretrained import load_pretrained, save_pretrained
    from longformer_jax.weights.tokenizer import load_tokenizer
    from longformer_jax.weights.vocabulary import resize_vocab

__all__ = [
    "config_from_hugging_face",
    "config_to_hugging_face",
    "load_pretrained",
    "load_tokenizer",
    "resize_vocab",
    "roberta_to_longformer",
    "save_pretrained",
]

# So that `python -m longformer_jax.weights.convert` begins before JAX is loaded.
_MODULES = ("hugging_face_config", "pretrained", "conversion", "tokenizer", "vocabulary")
__getattr__ = on_demand(__name__, _MODULES, __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
