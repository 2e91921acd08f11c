"""Models: functional Linen modules, free of meshes and of training."""

from longformer_jax.models.char_lm import CharLM, CharLMConfig
from longformer_jax.models.streaming import decode_step, extend, generate, init_cache, prefill

__all__ = ["CharLM", "CharLMConfig", "decode_step", "extend", "generate", "init_cache", "prefill"]
