"""The rate of dropout in heads; what transformers' RoBERTa does with it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from encoders import SMALL

from longformer_jax import ForMultipleChoice, ForSequenceClassification, ForTokenClassification, Longformer

IDS = jnp.zeros((1, 4), jnp.int32)


def rates_of_head(model: Any, **rates: float) -> set[float]:
    """Of the dropout layers that are not the encoder's."""
    found = set()

    def note(call, arguments, settings, context):
        if isinstance(context.module, nn.Dropout):
            found.add(context.module.rate)
        result = call(*arguments, **settings)
        if isinstance(context.module, Longformer):  # which comes before the head
            found.clear()
        return result

    config = dataclasses.replace(SMALL, **rates)
    ids = IDS[None] if model is ForMultipleChoice else IDS
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with nn.intercept_methods(note):
        jax.eval_shape(lambda: model(config).init(keys, ids, deterministic=False))
    return found


@pytest.mark.parametrize("model", [ForSequenceClassification, ForTokenClassification])
def test_classifier_dropout_is_the_rate_of_heads(model: Any) -> None:
    assert rates_of_head(model, hidden_dropout_prob=0.5, classifier_dropout=0.25) == {0.25}
    assert rates_of_head(model, hidden_dropout_prob=0.5, classifier_dropout=0.0) == {0.0}
    assert rates_of_head(model, hidden_dropout_prob=0.5) == {0.5}


def test_multiple_choice_has_the_hidden_rate() -> None:
    assert rates_of_head(ForMultipleChoice, hidden_dropout_prob=0.5, classifier_dropout=0.25) == {0.5}
