"""Models outside of jit, where a loop over layers that is made anew would be compiled anew."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from longformer_jax import CharLM, InputError, Longformer
from longformer_jax.attention.choice import VARIABLE
from tests.models import encoders, small

CHAR_LM = CharLM(dataclasses.replace(small.SMALL, dropout_rate=0.1, attention_dropout_rate=0.1))
ENCODER = Longformer(
    dataclasses.replace(encoders.SMALL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1), False
)


def char_lm(params: Any, seed: int, **how: Any) -> Any:
    return CHAR_LM.apply({"params": params}, small.random_tokens(2, 21), rngs={"dropout": jax.random.key(seed)}, **how)


def encoder(params: Any, seed: int, **how: Any) -> Any:
    ids, mask = encoders.random_ids([30, 21])
    is_global = np.arange(30) < np.array([[2], [3]])
    return ENCODER.apply({"params": params}, ids, mask, is_global, rngs={"dropout": jax.random.key(seed)}, **how)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        pytest.param(char_lm, small.random_params(CHAR_LM.config), id="char_lm", marks=pytest.mark.slow),
        pytest.param(encoder, encoders.random_params(ENCODER.config), id="encoder"),
    ],
)
def test_nothing_is_compiled_again(model: Callable, params: Any, caplog: pytest.LogCaptureFixture) -> None:
    def call(seed: int) -> Any:
        caplog.clear()
        with jax.log_compiles():
            out, pullback = jax.vjp(lambda params: model(params, seed, deterministic=False), params)
            found = jax.block_until_ready((out, pullback(jax.tree.map(np.ones_like, out))))
        return found, sum(record.message.startswith("Compiling") for record in caplog.records)

    (first, at_first), (other, _), (again, in_the_end) = call(0), call(1), call(0)
    assert at_first > 0 and in_the_end == 0
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(*(jax.tree.leaves(out)[0] for out in (first[0], other[0])))


def test_methods_are_intercepted_in_layers() -> None:
    """As quantization of Linen models does, before and after calls without."""
    params = small.random_params(CHAR_LM.config)

    def doubled(call: Callable, arguments: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
        found = call(*arguments, **named)
        return 2 * found if (context.module.name, context.method_name) == ("mlp_in", "__call__") else found

    plain = char_lm(params, 0)
    with nn.intercept_methods(doubled):
        intercepted = char_lm(params, 0)
    twice = jax.tree_util.tree_map_with_path(
        lambda path, x: 2 * x if "mlp_in" in jax.tree_util.keystr(path) else x, params
    )
    np.testing.assert_allclose(intercepted, char_lm(twice, 0), atol=1e-5)
    np.testing.assert_array_equal(char_lm(params, 0), plain)
    assert small.error(intercepted, plain) > 1e-3


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    params = small.random_params(CHAR_LM.config)
    char_lm(params, 0)
    monkeypatch.setenv(VARIABLE, "hopper")
    with pytest.raises(InputError, match=VARIABLE):
        char_lm(params, 0)
