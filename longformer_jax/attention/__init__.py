"""Banded attention: the op that everything else is built on."""

from longformer_jax.attention.api import banded_attention
from longformer_jax.attention.merge import merge_attention

__all__ = ["banded_attention", "merge_attention"]
