"""Rows for added tokens."""

from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint import ENCODER, assert_same

from longformer_jax import (
    ForMaskedLM,
    InputError,
    LongformerConfig,
    load_pretrained,
    resize_vocab,
    save_pretrained,
)


@pytest.fixture(scope="module")
def masked_lm():
    return load_pretrained(ENCODER / "LongformerForMaskedLM", ForMaskedLM)  # 40 tokens


def table_of(params) -> np.ndarray:
    return np.asarray(params.get("longformer", params)["word_embeddings"]["embedding"])


def test_old_tokens_stay_and_new_ones_are_random(masked_lm) -> None:
    old_config, old = masked_lm
    config, params = resize_vocab(old_config, old, np.int64(640), seed=3)
    assert config.vocab_size == 640 and type(config.vocab_size) is int and old_config.vocab_size == 40
    table, before = table_of(params), table_of(old)
    np.testing.assert_array_equal(table[:40], before)
    assert table.shape == (640, 16) and table.dtype == np.float32
    assert abs(table[40:].std() / config.initializer_range - 1) < 0.03 and abs(table[40:].mean()) < 0.001
    bias = params["lm_head"]["bias"]
    np.testing.assert_array_equal(bias[:40], old["lm_head"]["bias"])
    assert bias.shape == (640,) and not bias[40:].any()
    assert_same(resize_vocab(old_config, old, 640, seed=3)[1], params)
    assert np.all(table_of(resize_vocab(old_config, old, 640, seed=4)[1])[40:] != table[40:])

    ids = np.array([[0, 7, 8, 2]])
    run = jax.jit(
        lambda config, params, ids: ForMaskedLM(config).apply({"params": params}, ids).logits, static_argnums=0
    )
    logits = run(config, params, ids)
    np.testing.assert_allclose(logits[..., :40], run(old_config, old, ids), atol=1e-5)
    assert logits.shape == (1, 4, 640) and np.isfinite(run(config, params, ids + 600)).all()


def test_a_model_without_a_head_and_one_that_needs_no_more(masked_lm) -> None:
    config, params = masked_lm
    encoder = params["longformer"]
    _, longer = resize_vocab(config, encoder, 41)
    assert table_of(longer).shape == (41, 16) and "lm_head" not in longer
    same_config, same = resize_vocab(config, params, 40)
    assert same_config == config
    assert_same(same, params)


def test_saved_and_loaded(masked_lm, tmp_path: Path) -> None:
    config, params = resize_vocab(*masked_lm, 43)
    save_pretrained(tmp_path, config, params)
    again, loaded = load_pretrained(tmp_path, ForMaskedLM)
    assert again == config
    assert_same(loaded, params)


def test_bad_input(masked_lm) -> None:
    config, params = masked_lm
    with pytest.raises(InputError, match="^vocab_size is 39; expected at least 40, the tokens there are$"):
        resize_vocab(config, params, 39)
    with pytest.raises(InputError, match=r"^vocab_size is 41\.0; expected an integer >= 1$"):
        resize_vocab(config, params, 41.0)  # pyrefly: ignore
    with pytest.raises(InputError, match="^seed is -1; expected an integer"):
        resize_vocab(config, params, 41, seed=-1)
    with pytest.raises(InputError, match=r"^params have \S+ \(40,( 16)?\); expected vocab_size rows, 50265$"):
        resize_vocab(LongformerConfig(), params, 60_000)
    with pytest.raises(InputError, match="^params have no word_embeddings/embedding; expected the parameters of an en"):
        resize_vocab(config, {"lm_head": params["lm_head"]}, 41)


def test_settings_of_jax_and_dtypes_of_the_parameters(masked_lm) -> None:
    config, params = masked_lm
    expected = resize_vocab(config, params, 48, seed=3)[1]
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        assert_same(resize_vocab(config, params, 48, seed=3)[1], expected)
    halves = resize_vocab(config, jax.tree.map(lambda x: x.astype("bfloat16"), params), 48, seed=3)[1]
    assert {x.dtype.name for x in jax.tree.leaves(halves)} == {"bfloat16"}
