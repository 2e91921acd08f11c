"""Longformer in JAX: banded attention, and the models built on it.

>>> from longformer_jax import banded_attention, CharLM, CharLMConfig
"""

from longformer_jax.attention import banded_attention, merge_attention
from longformer_jax.errors import InputError
from longformer_jax.models import CharLM, CharLMConfig, decode_step, extend, generate, init_cache, prefill

__all__ = [
    "CharLM",
    "CharLMConfig",
    "InputError",
    "banded_attention",
    "decode_step",
    "extend",
    "generate",
    "init_cache",
    "merge_attention",
    "prefill",
]
