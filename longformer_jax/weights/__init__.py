"""Weights of RoBERTa and Longformer, in and out.

>>> from longformer_jax.weights import load_pretrained
>>> config, params = load_pretrained("allenai/longformer-base-4096")
"""

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
