"""Arguments of another kind than the public functions take: one sentence, before anything compiles."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import longformer_jax as lj
from longformer_jax import CharLM, CharLMConfig, Longformer, LongformerConfig
from longformer_jax.data import load_corpus
from longformer_jax.evaluation.stablehlo import _encoder as encoder_to_export
from longformer_jax.evaluation.stablehlo import _functions
from longformer_jax.models import question_mask
from longformer_jax.models.parameters import abstract_params
from longformer_jax.training import train, train_seeds
from longformer_jax.weights.conversion import convert

CHARS = CharLMConfig(vocab_size=9, embed_dim=4, num_layers=1, num_heads=2, mlp_dim=4, windows=2)
ENCODER = LongformerConfig(
    vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
    max_position_embeddings=10, attention_window=2, attention_mode="full", global_projections=False,
)  # fmt: skip


@functools.cache
def params_of(model: Any) -> Any:
    shapes = unflatten_dict(abstract_params(model), sep="/")
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


TOKENS, TOKEN = np.ones((1, 3), int), np.ones(1, int)
LM, READER = CharLM(CHARS), Longformer(ENCODER, add_pooling_layer=False)
NO_LM = "config is CharLM; expected CharLMConfig"
NO_TREE = "params is str; expected the parameters of the model, as init(…)['params'] has them"
WHOLE = "params is {'params': …}; expected the parameters of the model, as init(…)['params'] has them"
NONE = "params is NoneType; expected the parameters of the model, as init(…)['params'] has them"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: lj.generate(LM, params_of(LM), TOKENS, 3), NO_LM),
        (lambda: lj.generate(CHARS, LM, TOKENS, 3), "params is CharLM; expected the parameters of the model"),
        (lambda: lj.generate(CHARS, "abc", TOKENS, 3), NO_TREE),
        (lambda: lj.prefill(LM, params_of(LM), TOKENS), NO_LM),
        (lambda: lj.prefill(CHARS, "abc", TOKENS), NO_TREE),
        (lambda: lj.prefill(CHARS, {"params": params_of(LM)}, TOKENS), WHOLE),
        (lambda: lj.extend(ENCODER, params_of(LM), {}, TOKENS), "config is LongformerConfig; expected CharLMConfig"),
        (lambda: lj.decode_step(None, params_of(LM), {}, TOKEN), "config is NoneType; expected CharLMConfig"),
        (lambda: lj.init_cache("x", 1), "config is str; expected CharLMConfig"),
        (lambda: CharLM(ENCODER).apply({}, TOKENS), "config is LongformerConfig; expected CharLMConfig"),
        (lambda: Longformer(LM).init(jax.random.key(0), TOKENS), "config is CharLM; expected LongformerConfig"),
        (
            lambda: lj.ForMultipleChoice(ENCODER).init(jax.random.key(0), np.ones((2, 2, 0), int)),
            "input_ids has the shape [2, 2, 0]; expected at least one row, one choice and one token",
        ),
        (
            lambda: lj.ForSequenceClassification(ENCODER).init(jax.random.key(0), np.int32(3)),
            "input_ids is int32 []; expected an array of integers [batch, length]",
        ),
        (lambda: lj.as_nnx(CHARS, params_of(LM)), "model is CharLMConfig; expected a model, such as CharLM(config)"),
        (lambda: lj.answer_mask("abc", 2), "input_ids is str; expected an array of integers [..., length]"),
        (lambda: lj.answer_mask(TOKENS, "2"), "sep_token_id is '2'; expected an integer >= 0"),
        (
            *(lambda: lj.answer_mask(TOKENS, 2, TOKEN),),
            "attention_mask is int64 [1]; expected the shape of input_ids, [1, 3]",
        ),
        (lambda: question_mask(TOKENS * 1.0, 2), "input_ids is float64 [1, 3]; expected an array of integers [..., le"),
        (lambda: lj.resize_vocab(None, params_of(READER), 10), "config is NoneType; expected LongformerConfig"),
        (lambda: lj.resize_vocab(ENCODER, None, 10), NONE),
        (lambda: lj.roberta_to_longformer(CHARS, {}), "config is CharLMConfig; expected LongformerConfig"),
        (lambda: lj.roberta_to_longformer(ENCODER, None), NONE),
        (lambda: lj.roberta_to_longformer(ENCODER, {"params": params_of(READER)}), WHOLE),
        (
            *(lambda: lj.roberta_to_longformer(ENCODER, {"longformer": {}}),),
            "params have embeddings_norm/bias missing; expected (4,), as Longformer has it",
        ),
        (lambda: lj.save_pretrained("x", None, {}), "config is NoneType; expected LongformerConfig or CharLMConfig"),
        (lambda: lj.save_pretrained("x", CHARS, None), NONE),
        (lambda: lj.save_pretrained("x", ENCODER, {"params": params_of(READER)}), WHOLE),
        (lambda: convert("x", "y", format=["a"]), "format is ['a']; expected one of orbax, safetensors"),
        (lambda: [*_functions(exported(), 16)], "lengths is 16; expected a list of lengths"),
        (lambda: [*_functions(exported(), "16")], "length is '1'; expected an integer >= 1"),
        (lambda: [*_functions(exported(), [[4]])], "length is [4]; expected an integer >= 1"),
        (lambda: load_corpus(["text_file"]), "source is ['text_file']; expected one of enwik8, text8, text_file"),
        (lambda: load_corpus("text_file", path="x", split=0.5), "split is 0.5; expected three fractions >= 0 with sum"),
        (lambda: load_corpus("tiny_shakespeare", split=None), "split is None; expected three fractions >= 0 with sum"),
        (lambda: train({}, "x"), "config is dict; expected ExperimentConfig"),
        (lambda: train_seeds(None, "x", 2), "config is NoneType; expected ExperimentConfig"),
    ],
)
def test_one_sentence(call: Callable[[], Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lj.InputError, match="^" + re.escape(sentence)) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def exported() -> Any:
    return encoder_to_export(Longformer, ENCODER, params_of(READER), (), None)


def test_under_jit() -> None:
    with pytest.raises(lj.InputError, match="^params is list; expected the parameters of the model"):
        jax.jit(lj.extend, static_argnums=0)(CHARS, [jnp.zeros(3)], lj.init_cache(CHARS, 1), TOKENS)
