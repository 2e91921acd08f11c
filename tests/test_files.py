"""What a user calls a path, and what is no JSON object."""

from pathlib import Path

import pytest

from longformer_jax import InputError, load_pretrained
from longformer_jax.checkpoints import has_checkpoint
from longformer_jax.data import load_corpus
from longformer_jax.evaluation import evaluate
from longformer_jax.files import read_json, user_path
from longformer_jax.training import ExperimentConfig, train
from longformer_jax.weights import load_tokenizer
from tests.training.tiny import CONFIG


def test_a_tilde_is_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("path", "~/a/b") == tmp_path / "a" / "b"
    assert user_path("path", Path("a")) == Path("a")
    CONFIG.save(tmp_path)
    assert ExperimentConfig.load("~") == CONFIG


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody-of-that-name/x", "is '~nobody-of-that-name/x', whose user has no home here; expected another path"),
        ("a\0b", r"is 'a\\x00b'; expected a path without a null character"),
        (3, "is 3; expected a path"),
    ],
)
@pytest.mark.parametrize(
    ("field", "use"),
    [
        ("workdir", lambda path: train(CONFIG, path)),
        ("workdir", evaluate),
        ("workdir", has_checkpoint),
        ("path", lambda path: load_corpus("text_file", path=path)),
        ("path", lambda path: load_corpus("enwik8", path=path)),
        ("data_dir", lambda path: load_corpus("enwik8", data_dir=path)),
        ("source", load_pretrained),
        ("source", load_tokenizer),
    ],
)
def test_what_can_be_no_path(field: str, use, path, message: str) -> None:
    with pytest.raises(InputError, match=f"^{field} {message}$"):
        use(path)


def test_a_workdir_that_is_no_utf8(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^workdir is '/.*\\udcff', which is no UTF-8; expected a name in UTF-8$"):
        train(CONFIG, tmp_path / "run\udcff")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 200_000, b'{"a":' * 200_000])
def test_what_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"^/.*/file\.json is damaged.*; expected a JSON object$"):
        read_json(file)
