"""Lines of text into rows of tokens: RoBERTa's FULL-SENTENCES."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longformer_jax.data.documents import Line
from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<mask>")

# <s>, one token of text and </s>.
_MIN_SEQUENCE_LENGTH = 3
# Characters that the tokenizer gets at once: work for many threads, while its encodings, some hundred bytes a token,
# stay small.
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Packer:
    """How lines of text become rows of tokens; see `pack_lines`.

    Attributes:
      tokenizer: a copy that neither cuts nor pads, and to which a "<s>" in a text is three characters as any others,
        unless its vocabulary has that as a piece.
      sequence_length: T, in tokens.
      vocab_size: the number of token ids.
      bos_token_id, pad_token_id, sep_token_id, mask_token_id: ids of <s>, <pad>, </s> and <mask>.
      special_token_ids: these and what else the tokenizer calls special, sorted.
    """

    tokenizer: "Tokenizer"
    sequence_length: int
    vocab_size: int
    bos_token_id: int
    pad_token_id: int
    sep_token_id: int
    mask_token_id: int
    special_token_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: "Tokenizer", sequence_length: int) -> "Packer":
        """Raises InputError if the tokenizer is none or has no <s>, <pad>, </s> or <mask>, or T is less than 3."""
        from tokenizers import Tokenizer  # not above: byte corpora do not need it

        if not isinstance(tokenizer, Tokenizer):
            raise InputError(f"tokenizer is a {type(tokenizer).__name__}; expected a tokenizers.Tokenizer")
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise InputError(
                f"tokenizer has no {' and no '.join(missing)}; expected one with {', '.join(SPECIAL_TOKENS)}"
            )
        length = as_integer(sequence_length)
        if length is None or length < _MIN_SEQUENCE_LENGTH:
            raise InputError(
                f"sequence_length is {sequence_length!r}; expected an integer of at least {_MIN_SEQUENCE_LENGTH}, room "
                "for <s>, a token and </s>"
            )
        bos, pad, sep, mask = (vocab[token] for token in SPECIAL_TOKENS)
        special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        special = tuple(sorted(special | {bos, pad, sep, mask}))
        return cls(plain, length, max(vocab.values()) + 1, bos, pad, sep, mask, special)

    @property
    def dtype(self) -> np.dtype:
        """Of the rows: the smallest that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def pack(self, lines: Iterable[Line]) -> np.ndarray:
        """The rows of `lines`, padded with <pad>: `[N, T]` of `dtype`."""
        lines = list(lines)
        rows = pack_lines(
            zip((line.document for line in lines), self._encode(line.text for line in lines), strict=True),
            sequence_length=self.sequence_length,
            bos_token_id=self.bos_token_id,
            sep_token_id=self.sep_token_id,
        )
        padding = [self.pad_token_id] * self.sequence_length
        padded = [np.array(row + padding[len(row) :], self.dtype) for row in rows]
        return np.array(padded, self.dtype).reshape(-1, self.sequence_length)

    def _encode(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The tokens of each text, without special tokens.

        The threads of `tokenizers` work in parallel: one for each core, unless TOKENIZERS_PARALLELISM or
        RAYON_NUM_THREADS say otherwise.
        """
        for batch in batched_by_length(texts, len, _BATCH_CHARACTERS):
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids


def pack_lines(
    lines: Iterable[tuple[int, list[int]]], *, sequence_length: int, bos_token_id: int, sep_token_id: int
) -> Iterator[list[int]]:
    """Packs whole lines of consecutive documents into rows (Liu et al. 2019, section 4.2, FULL-SENTENCES).

    As in RoBERTa's own data, each line ends in </s>, and one more </s> stands between documents:
    `<s> line </s> line </s> </s> line of the next document </s>`. A row is filled until the next line does not fit.
    Lines that no row has room for are cut into pieces of `sequence_length` - 2 tokens, each a line of its own.

    Args:
      lines: of each line in order, the number of its document and its tokens.
      sequence_length: T, the most tokens of a row; at least 3.
      bos_token_id, sep_token_id: ids of <s> and </s>.

    Yields:
      Rows of 3 to T tokens, without padding.
    """
    longest = sequence_length - 2
    row, last_document = [bos_token_id], None
    for document, tokens in lines:
        for start in range(0, len(tokens), longest):
            piece = tokens[start : start + longest]
            separator = [sep_token_id] if last_document not in (None, document) else []
            if len(row) + len(separator) + len(piece) + 1 > sequence_length:
                yield row
                row, separator = [bos_token_id], []
            row += [*separator, *piece, sep_token_id]
            last_document = document
    if len(row) > 1:
        yield row


def batched_by_length[T](items: Iterable[T], length: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Cuts `items` into lists, each closed by the item with which its length reaches `limit`."""
    batch, total = [], 0
    for item in items:
        batch.append(item)
        total += length(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
