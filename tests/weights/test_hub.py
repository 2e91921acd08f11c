"""Names of models on the hub, with a stand-in for huggingface_hub."""

import fnmatch
import shutil
import sys
import types
from pathlib import Path

import pytest
from checkpoint import ENCODER, assert_same, write

from longformer_jax import InputError
from longformer_jax.weights import load_pretrained


class Hub(types.ModuleType):
    """A hub whose one repository is a directory."""

    def __init__(self, repository: Path, cache: Path):
        super().__init__("huggingface_hub")
        self.repository, self.cache, self.asked = repository, cache, []

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((name, revision))
        if name != "someone/roberta":
            raise FileNotFoundError("404 Client Error.\n\nRepository Not Found for url: …")
        self.cache.mkdir(exist_ok=True)
        for path in self.repository.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.cache)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Hub:
    hub = Hub(write(tmp_path / "repository", "RobertaModel"), tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_download(hub: Hub) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "vocab.json", "training_args.bin", "README.md"):
        (hub.repository / name).write_text("")
    config, params = load_pretrained("someone/roberta", revision="v2")
    expected_config, expected = load_pretrained(ENCODER / "RobertaModel")
    assert config == expected_config
    assert_same(params, expected)
    assert hub.asked == [("someone/roberta", "v2")]
    assert sorted(path.name for path in hub.cache.iterdir()) == ["config.json", "model.safetensors", "vocab.json"]


def test_pickles_where_there_is_nothing_else(hub: Hub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin is damaged"):
        load_pretrained("someone/roberta")
    assert sorted(path.name for path in hub.cache.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_directory_goes_first(hub: Hub, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "someone").mkdir()
    write(tmp_path / "someone" / "roberta", "RobertaModel", num_labels=2, layer_norm_eps=0.5)
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("someone/roberta")[0].layer_norm_eps == 0.5
    with pytest.raises(InputError, match="^revision is 'v2'; expected None, as source, 'someone/roberta', is a direct"):
        load_pretrained("someone/roberta", revision="v2")
    assert not hub.asked


def test_no_such_model(hub: Hub) -> None:
    with pytest.raises(InputError) as raised:
        load_pretrained("someone/else", revision="v2")
    assert str(raised.value) == (
        "source is 'someone/else', which is no directory and could not be had from the hub at revision 'v2' (404 "
        "Client Error. Repository Not Found for url: …); expected a model of RoBERTa's or Longformer's kind"
    )


@pytest.mark.parametrize("source", ["./none", "/none/none", "a/b/c", "~/none", Path("none")])
def test_paths_are_not_looked_up(hub: Hub, source) -> None:
    with pytest.raises(InputError, match="which is no directory; expected the directory of a model or its name"):
        load_pretrained(source)
    assert not hub.asked


def test_without_huggingface_hub(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"is not installed; expected a directory, or pip install huggingface_hub"):
        load_pretrained("someone/roberta")
