"""A byte-level BPE of one's own, like RoBERTa's."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from longformer_jax.data.documents import DocumentSource, Paths, document_source
from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# In the order of their ids, from 0 on.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def learn_tokenizer(source: DocumentSource | Paths, vocab_size: int) -> "Tokenizer":
    """Learns byte-level BPE from documents; the same documents give the same tokenizer.

    Args:
      source: as `load_token_corpus`'s.
      vocab_size: how many tokens at most: special ones, all bytes, and as many merges as are left and occur twice.

    Returns:
      The tokenizer; ids 0 to 4 are <s>, <pad>, </s>, <unk> and <mask>, and encodings begin with <s> and end with </s>.

    Raises:
      InputError: `vocab_size` has no room for special tokens and bytes, or the source is not as described.
    """
    return learn_from_texts((line.text for line in document_source(source).lines()), vocab_size)


def learn_from_texts(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """As `learn_tokenizer`, from texts one after the other."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(SPECIAL_TOKENS) + len(alphabet)
    size = as_integer(vocab_size)
    if size is None or size < smallest:
        raise InputError(
            f"vocab_size is {vocab_size!r}; expected at least {smallest}, the special tokens and all bytes"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=alphabet,
        show_progress=False,
        # A mask takes the place of a word, with the space before it.
        special_tokens=[AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL_TOKENS],
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    bos, sep = (SPECIAL_TOKENS.index(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", sep), ("<s>", bos), add_prefix_space=False)
    return tokenizer
