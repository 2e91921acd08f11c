"""Models as modules of NNX."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from encoders import SMALL, random_params
from flax import nnx

from longformer_jax import CharLM, ForMultipleChoice, InputError, Longformer, as_nnx
from tests.models import small

TOKENS = small.random_tokens(2, 41)
CHAR_LM, PARAMS = CharLM(small.SMALL), small.random_params(small.SMALL)


def test_values_and_parameters_are_those_of_the_model() -> None:
    module: Any = as_nnx(CHAR_LM, PARAMS)
    assert small.error(nnx.jit(module)(TOKENS), small.logits_of(small.SMALL, PARAMS, TOKENS)) < 1e-6
    back = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, PARAMS))


def test_training_changes_the_module_and_leaves_the_parameters() -> None:
    module: Any = as_nnx(CHAR_LM, PARAMS)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module: Any, optimizer: Any) -> jax.Array:
        def loss(module: Any) -> jax.Array:
            logits = module(TOKENS, deterministic=False, rngs=nnx.Rngs(dropout=0))
            return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    before = jax.tree.map(np.array, PARAMS)
    first, second = step(module, optimizer), step(module, optimizer)
    assert second < first
    assert jax.tree.all(jax.tree.map(np.array_equal, before, PARAMS))


@pytest.mark.parametrize("model", [Longformer, ForMultipleChoice])
def test_encoders(model: Any) -> None:
    params = random_params(model=model)
    state = nnx.state(as_nnx(model(SMALL), params), nnx.Param)
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.to_pure_dict(state), params))


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({**PARAMS, "more": jnp.ones(3)}, "params have more (3,); expected none, as CharLM has it"),
        ({**PARAMS, "embed": {}}, "params have embed/embedding missing; expected (29, 32), as CharLM has it"),
        (
            {**PARAMS, "embed": {"embedding": jnp.ones((2, 32))}},
            "params have embed/embedding (2, 32); expected (29, 32)",
        ),
    ],
)
def test_parameters_of_another_model(params: Any, sentence: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        as_nnx(CHAR_LM, params)
