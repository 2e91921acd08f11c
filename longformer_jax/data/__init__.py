"""Byte corpora and the batches drawn from them."""

from longformer_jax.data.batches import train_batches
from longformer_jax.data.corpus import SOURCES, Corpus, check_vocab, load_corpus

__all__ = ["SOURCES", "Corpus", "check_vocab", "load_corpus", "train_batches"]
