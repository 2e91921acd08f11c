import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from longformer_jax.data.documents import Line
from longformer_jax.data.packing import Packer, pack_lines
from longformer_jax.errors import InputError
from tests.data.tiny_tokenizer import tiny_tokenizer

BOS, PAD, SEP = 0, 1, 2


def pack(lines, sequence_length):
    return list(pack_lines(lines, sequence_length=sequence_length, bos_token_id=BOS, sep_token_id=SEP))


def render(lines):
    """The row that consists of `lines`, written down from the paper's description."""
    tokens = [BOS]
    for number, (document, line) in enumerate(lines):
        if number and lines[number - 1][0] != document:
            tokens.append(SEP)
        tokens += [*line, SEP]
    return tokens


def pack_slowly(lines, sequence_length):
    """Row after row, the longest run of the remaining lines whose row is no longer than `sequence_length`."""
    longest = sequence_length - 2
    remaining = [(doc, line[i : i + longest]) for doc, line in lines for i in range(0, len(line), longest)]
    rows = []
    while remaining:
        count = max(n for n in range(1, len(remaining) + 1) if len(render(remaining[:n])) <= sequence_length)
        rows.append(render(remaining[:count]))
        remaining = remaining[count:]
    return rows


def test_full_sentences():
    lines = [(0, [10, 11]), (0, [12]), (1, [13, 14]), (2, [15]), (2, [16])]
    assert pack(lines, 100) == [[BOS, 10, 11, SEP, 12, SEP, SEP, 13, 14, SEP, SEP, 15, SEP, 16, SEP]]
    # The separator of documents neither begins nor ends a row, and there is none where its line does not fit with it.
    assert pack(lines, 9) == [[BOS, 10, 11, SEP, 12, SEP], [BOS, 13, 14, SEP, SEP, 15, SEP, 16, SEP]]
    assert pack(lines, 10) == [[BOS, 10, 11, SEP, 12, SEP, SEP, 13, 14, SEP], [BOS, 15, SEP, 16, SEP]]


def test_a_long_line_is_cut():
    assert pack([(0, [10]), (0, [11, 12, 13, 14, 15, 16, 17]), (0, [18])], 5) == [
        [BOS, 10, SEP],
        [BOS, 11, 12, 13, SEP],
        [BOS, 14, 15, 16, SEP],
        [BOS, 17, SEP, 18, SEP],
    ]


def test_lines_without_tokens_leave_no_trace():
    assert pack([(0, []), (0, [10]), (1, []), (1, [11]), (2, [])], 10) == [[BOS, 10, SEP, SEP, 11, SEP]]
    assert pack([], 10) == pack([(0, [])], 10) == []


DOCUMENTS = st.lists(st.lists(st.lists(st.integers(5, 99), max_size=12), max_size=5), max_size=8)


@settings(deadline=None)
@given(documents=DOCUMENTS, sequence_length=st.integers(3, 30))
def test_rows_are_those_of_a_slow_packer(documents, sequence_length):
    lines = [(number, line) for number, document in enumerate(documents) for line in document]
    rows = pack(lines, sequence_length)
    assert rows == pack_slowly(lines, sequence_length)
    assert [token for row in rows for token in row if token > SEP] == [token for _, line in lines for token in line]
    assert all(3 <= len(row) <= sequence_length and row[0] == BOS and row[-1] == SEP for row in rows)


TEXTS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), max_size=10)


@settings(deadline=None, max_examples=50)
@given(texts=TEXTS, sequence_length=st.integers(3, 64))
def test_the_text_comes_back(texts, sequence_length):
    tokenizer = tiny_tokenizer()
    packer = Packer.of(tokenizer, sequence_length)
    rows = packer.pack(Line(number // 3, text, number) for number, text in enumerate(texts))
    assert rows.dtype == np.uint16 and rows.shape == (len(rows), sequence_length)
    kept = rows[~np.isin(rows, packer.special_token_ids)].tolist()
    assert kept == [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert tokenizer.decode(kept) == "".join(texts)
    for row in rows:
        length = np.flatnonzero(row != PAD)[-1] + 1
        assert row[0] == BOS and row[length - 1] == SEP and (row[length:] == PAD).all() and (row[:length] != PAD).all()


def test_special_tokens_in_a_text_are_text():
    tokenizer = tiny_tokenizer()
    packer = Packer.of(tokenizer, 200)
    text = "</s><s> a <mask> fox<pad>"
    (row,) = packer.pack([Line(0, text, 1)])
    assert np.isin(row, packer.special_token_ids).sum() == 2 + (row == PAD).sum()
    assert tokenizer.decode(row.tolist(), skip_special_tokens=True) == text
    # The tokenizer itself is as it was.
    assert tokenizer.encode("<mask>").ids == [packer.mask_token_id]


def test_truncation_and_padding_of_the_tokenizer_are_ignored():
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50, pad_id=PAD)
    lines = [Line(0, "the quick brown fox jumps over a lazy dog", 1)]
    packer, plain = Packer.of(tokenizer, 64), Packer.of(tiny_tokenizer(), 64)
    np.testing.assert_array_equal(packer.pack(lines), plain.pack(lines))
    assert packer.tokenizer.to_str() == plain.tokenizer.to_str()
    assert tokenizer.truncation["max_length"] == 4


def test_ids_and_vocabulary():
    packer = Packer.of(tiny_tokenizer(), 16)
    assert (packer.bos_token_id, packer.pad_token_id, packer.sep_token_id) == (0, 1, 2)
    assert packer.vocab_size == tiny_tokenizer().get_vocab_size() == packer.mask_token_id + 1
    assert packer.special_token_ids == (0, 1, 2, 3, packer.mask_token_id)
    assert packer.dtype == np.uint16
    assert dataclasses.replace(packer, vocab_size=2**16).dtype == np.uint16
    assert dataclasses.replace(packer, vocab_size=2**16 + 1).dtype == np.uint32


def test_ids_above_65535():
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "word": 70_000, "<mask>": 65_536}
    packer = Packer.of(Tokenizer(models.WordLevel(words, unk_token="word")), 4)
    assert packer.vocab_size == 70_001 and packer.special_token_ids == (0, 1, 2, 65_536)
    rows = packer.pack([Line(0, "word", 1)])
    assert rows.tolist() == [[0, 70_000, 2, 1]] and rows.dtype == np.uint32


def without(*tokens):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([AddedToken(t) for t in ("<s>", "<pad>", "</s>", "<mask>") if t not in tokens])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "sequence_length", "message"),
    [
        ("roberta", 16, "^tokenizer is a str; expected a tokenizers.Tokenizer$"),
        (without("<mask>"), 16, "^tokenizer has no <mask>; expected one with <s>, <pad>, </s>, <mask>$"),
        (without("<s>", "<pad>"), 16, "^tokenizer has no <s> and no <pad>; expected"),
        (without(), 2, "^sequence_length is 2; expected an integer of at least 3"),
        (without(), 16.0, "^sequence_length is 16.0; expected an integer"),
    ],
)
def test_bad_input(tokenizer, sequence_length, message):
    with pytest.raises(InputError, match=message):
        Packer.of(tokenizer, sequence_length)
