"""A tokenizer learnt from a text: what it knows, that it loses nothing, and what it refuses."""

from pathlib import Path

import pytest

from longformer_jax.data.tokenizer_training import learn_tokenizer
from longformer_jax.errors import InputError

TEXT = "the cat sat on the mat, the cat sat\n\nthe hat\n" * 5


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


def test_tokens(text: Path) -> None:
    tokenizer = learn_tokenizer(text, 265)
    assert tokenizer.get_vocab_size() == 265
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert [tokenizer.token_to_id(token) for token in specials] == [0, 1, 2, 3, 4]
    encoding = tokenizer.encode("the cat <mask>")
    assert encoding.ids[0] == 0 and encoding.ids[-2:] == [4, 2]
    assert len(encoding.ids) < len("the cat") + 3
    for unseen in ("Zebra ä中!", TEXT):
        assert tokenizer.decode(tokenizer.encode(unseen).ids) == unseen
    assert tokenizer.to_str() == learn_tokenizer(text, 265).to_str()


def test_a_short_text_has_few_merges(text: Path) -> None:
    assert 261 < learn_tokenizer(text, 5000).get_vocab_size() < 300


def test_bad_input(text: Path) -> None:
    with pytest.raises(
        InputError, match=r"^vocab_size is 260; expected at least 261, the special tokens and all bytes$"
    ):
        learn_tokenizer(text, 260)
    with pytest.raises(InputError, match=r"^vocab_size is '300'; expected at least 261"):
        learn_tokenizer(text, "300")  # pyrefly: ignore
    with pytest.raises(InputError, match="matches no file"):
        learn_tokenizer(text.parent / "none", 300)
