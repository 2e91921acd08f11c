"""The character LM that comes with the library."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs.char_lm.quickstart import get_config
from longformer_jax import CharLM, InputError, load_char_lm, load_pretrained
from longformer_jax.data import load_corpus
from longformer_jax.evaluation import evaluate_model, sample_from_model
from longformer_jax.training import CharLMExperiment


def test_it_is_the_quickstarts() -> None:
    config, params = load_char_lm("example")
    jax.tree.map(np.testing.assert_array_equal, params, load_pretrained("example", CharLM)[1])
    assert config == CharLMExperiment.from_config_dict(get_config()).model_in_phase(1)


@pytest.mark.slow
def test_it_has_learnt(tmp_path: Path) -> None:
    """As well as docs/results.md says, on what it was not trained on."""
    (tmp_path / "text").write_bytes(bytes(load_corpus("tiny_shakespeare").split("validation")))
    result = evaluate_model("example", data=tmp_path / "text", protocol="stream")
    assert result.characters == 111_539 and result.bits_per_character == pytest.approx(2.0704, abs=1e-3)
    written = sample_from_model("example", 60, prompt="ROMEO:\n", temperature=0.5)
    assert len(written) == 60 and written == sample_from_model("example", 60, prompt="ROMEO:\n", temperature=0.5)
    assert sum(character.isalpha() or character.isspace() for character in written) > 50


def test_a_directory_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "example").mkdir()
    monkeypatch.chdir(tmp_path)
    for read in (load_char_lm, lambda source: load_pretrained(source, CharLM)):
        with pytest.raises(InputError, match="config.json"):
            read("example")
