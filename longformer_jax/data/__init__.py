"""Corpora of bytes and of packed tokens, the batches drawn from them, and the masks of masked language models."""

from longformer_jax.data.batches import row_batches, train_batches
from longformer_jax.data.corpus import SOURCES, Corpus, check_vocab, load_corpus
from longformer_jax.data.documents import DocumentSource, Line, TextFiles, TfdsText, document_source
from longformer_jax.data.masking import mask_tokens
from longformer_jax.data.token_corpus import TokenCorpus, load_token_corpus

__all__ = [
    "SOURCES",
    "Corpus",
    "DocumentSource",
    "Line",
    "TextFiles",
    "TfdsText",
    "TokenCorpus",
    "check_vocab",
    "document_source",
    "load_corpus",
    "load_token_corpus",
    "mask_tokens",
    "row_batches",
    "train_batches",
]
