"""A changed byte of a model's files is named."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest

from longformer_jax import CharLM, ForMaskedLM, InputError, load_pretrained, load_tokenizer, save_pretrained
from longformer_jax.checksums import CHECKSUMS, check_sum, file_sum, recording, write_sums
from longformer_jax.weights.tokenizer import save_tokenizer
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.models import encoders, small


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    params = encoders.random_params(encoders.SMALL, ForMaskedLM)
    save_pretrained(directory, encoders.SMALL, params, ForMaskedLM)
    save_tokenizer(directory, tiny_tokenizer(), 128)
    return directory


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def load(directory: Path) -> None:
    load_pretrained(directory, ForMaskedLM)
    load_tokenizer(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_flipped_byte_is_named(saved: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(saved, tmp_path / "model"))
    content = (directory / name).read_bytes()
    sentence = rf"^{directory / name} has changed since it was written, by the checksums.json beside it; expected the "
    read = load_tokenizer if "tokenizer" in name else functools.partial(load_pretrained, model=ForMaskedLM)
    for place in np.random.default_rng(0).integers(0, len(content), 20):
        flip(directory / name, int(place))
        with pytest.raises(InputError, match=sentence):
            read(directory)
        (directory / name).write_bytes(content)
    (directory / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=sentence):
        read(directory)
    (directory / name).write_bytes(content)
    read(directory)


def test_changes_that_are_meant(saved: Path, tmp_path: Path) -> None:
    """Without the sums, as transformers leaves a model, anything goes that can be read."""
    directory = Path(shutil.copytree(saved, tmp_path / "model"))
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace('"initializer_range": 0.02', '"initializer_range": 0.03'))
    with pytest.raises(InputError, match=r"if the change is meant, remove checksums\.json\)$"):
        load(directory)
    (directory / CHECKSUMS).unlink()
    load(directory)


def test_saving_again_is_recorded(tmp_path: Path) -> None:
    for seed in (0, 1):
        params = small.random_params(small.SMALL, seed)
        save_pretrained(tmp_path, small.SMALL, params)
        _, loaded = load_pretrained(tmp_path, CharLM)
        np.testing.assert_array_equal(loaded["layers"]["u"], params["layers"]["u"])
    flip(tmp_path / "model.safetensors", 3000)
    with pytest.raises(InputError, match="has changed since it was written"):
        load_pretrained(tmp_path, CharLM)


def test_a_failed_write_leaves_the_old_file_without_a_sum(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with recording(file) as partial:
        partial.write_text("old")
    with pytest.raises(ZeroDivisionError), recording(file) as partial:
        partial.write_text("ne")
        raise ZeroDivisionError
    assert file.read_text() == "old"
    check_sum(file)


@pytest.mark.parametrize("content", [b"{", b"[]", b"[" * 200_000])
def test_damaged_sums(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / CHECKSUMS).write_bytes(content)
    with pytest.raises(InputError, match=r"checksums\.json is damaged"):
        check_sum(tmp_path / "file")
    with recording(tmp_path / "file") as partial:
        partial.write_text("new")
    check_sum(tmp_path / "file")


@pytest.mark.parametrize("length", [0, 10, 65])
def test_a_sum_is_whole(tmp_path: Path, length: int) -> None:
    file = tmp_path / "file"
    file.write_text("some text")
    write_sums(tmp_path, {"file": file_sum(file)[:length]})
    with pytest.raises(InputError, match="has changed since it was written"):
        check_sum(file)


def test_sums_of_an_earlier_version_have_no_size(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("some text")
    write_sums(tmp_path, {"file": file_sum(file).partition(" ")[0]})
    check_sum(file)
    flip(file, 3)
    with pytest.raises(InputError, match="has changed since it was written"):
        check_sum(file)
