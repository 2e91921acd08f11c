"""JAX's settings: what a program sets for itself neither breaks the library nor changes what a seed gives."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import (
    CharLM,
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    banded_attention,
    merge_attention,
)
from longformer_jax.attention import pallas
from longformer_jax.attention.band import Band
from longformer_jax.data import mask_tokens
from longformer_jax.models import generate
from longformer_jax.models.attention_probabilities import attention_probabilities
from longformer_jax.models.global_attention import GlobalTokens
from longformer_jax.settings import pinned
from pallas_kernels.dropout import Streams
from tests.models import encoders, small
from tests.training import tiny, tiny_masked, tiny_task

IDS = np.zeros((2, 24), np.int32)
SEGMENTS = np.arange(48).reshape(2, 24) // 7
OPTIONS: dict[str, Any] = {"window": (3, 2), "dilation": (1, 2), "dropout_rate": 0.1, "return_lse": True}


def attend(implementation: str, shared_dim: int = 0) -> Callable[..., Any]:
    def run() -> Any:
        query, key = (jnp.ones((2, 24, 2, dim), jnp.float32) for dim in (16, 16 - shared_dim))
        shared_key = jnp.ones((24, shared_dim), jnp.float32) if shared_dim else None
        masks = {"key_mask": SEGMENTS % 7 > 0, "segment_ids": SEGMENTS}
        option = functools.partial(banded_attention, implementation=implementation, dropout_seed=1, **OPTIONS, **masks)
        out, pull_back = jax.vjp(lambda q, k, v, s: option(q, k, v, shared_key=s), query, key, query, shared_key)
        return pull_back(out)

    return run


def attend_over_tiles() -> Any:
    query, key, shared_key = (jnp.ones(shape, jnp.float32) for shape in ((1, 611, 2, 16), (1, 611, 2, 12), (611, 4)))
    option = functools.partial(banded_attention, implementation="xla", window=20, dilation=(1, 2))
    out, pull_back = jax.vjp(lambda q, k, v, s: option(q, k, v, shared_key=s), query, key, query, shared_key)
    return pull_back(out)


def kernels(run_kernels: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    def run() -> Any:
        query = jnp.ones((2, 72, 2, 64), dtype)
        ids = np.arange(144).reshape(2, 72) // 40
        band = Band(left=9, right=5, key_offset=0, dilation=(1, 1))
        options = {"band": band, "key_mask": None, "segment_ids": (ids, ids), "scale": 1.0, "dropout_rate": 0.1}
        option = functools.partial(run_kernels, interpret=True, dropout=Streams.of(jnp.int32(1), 2), **options)
        out, pull_back = jax.vjp(option, query, query, query)
        return pull_back(out)

    return run


def model_gradients(model: Any, ids: np.ndarray, **arguments: Any) -> Callable[..., Any]:
    def run() -> Any:
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        params = model.init(rngs, ids[..., :1])["params"]

        def outputs(params: Any) -> Any:
            return jax.tree.leaves(model.apply({"params": params}, ids, deterministic=False, rngs=rngs, **arguments))

        out, pull_back = jax.vjp(outputs, params)
        return pull_back(out)

    return run


def experiment_gradients(config: Any) -> Callable[..., Any]:
    def run() -> Any:
        key = jax.random.key(0)
        batch = jax.tree.map(lambda x: jnp.ones((2, x.shape[0] // 2, *x.shape[1:]), x.dtype), config.batch_spec(0))
        prepared = jax.tree.map(lambda x: x[0], config.prepare(batch, key))
        return jax.grad(lambda params: config.loss(0, params, prepared, key)[0])(config.init_params())

    return run


def with_dropout(config: Any) -> Any:
    names = [field.name for field in dataclasses.fields(config) if "dropout" in field.name and field.name[-1] in "eb"]
    return dataclasses.replace(config, **dict.fromkeys(names, 0.1))


def attentions(dilation: int) -> Any:
    query = jnp.ones((2, 24, 2, 16), jnp.float32)
    tokens = GlobalTokens(jnp.arange(24)[None, :] == jnp.arange(2)[:, None], jnp.arange(2, dtype=jnp.int32)[:, None])
    options: dict[str, Any] = {"window": 3, "dilation": dilation, "attention_mask": IDS == 0, "global_tokens": tokens}
    return attention_probabilities(query, query, query[:, :1], query, **options)


def test_columns_out_of_reach_are_zero() -> None:
    (local, _), (far, _) = (attentions(dilation) for dilation in (24, 2**30))
    np.testing.assert_array_equal(local, far)


def test_keys_are_the_same_whatever_is_added_to_seeds() -> None:
    expected = jax.random.key_data(jax.random.key(3))
    jax.config.update("jax_random_seed_offset", 5)
    try:
        with pinned():
            np.testing.assert_array_equal(jax.random.key_data(jax.random.key(3)), expected)
        assert jax.config.jax_random_seed_offset == 5
    finally:
        jax.config.update("jax_random_seed_offset", 0)


CHAR_LM = with_dropout(small.SMALL)
ENCODER = with_dropout(encoders.SMALL)
GLOBAL = {"global_attention_mask": np.eye(2, 24, dtype=np.int32)}
CASES: dict[str, Callable[..., Any]] = {
    **{name: attend(name) for name in ("reference", "xla")},
    **{f"{name}_shared_key": attend(name, 5) for name in ("reference", "xla", "pallas_triton_interpret")},
    "xla_tiles": attend_over_tiles,
    "pallas_triton": kernels(pallas.triton_attention, jnp.float32),
    "pallas_mosaic_gpu": kernels(pallas.hopper_attention, jnp.bfloat16),
    "pallas_mosaic_mma": kernels(pallas.mma_attention, jnp.bfloat16),
    "merge_attention": lambda: merge_attention(
        *[jnp.ones(shape, jnp.float32) for shape in 2 * [(2, 3, 2, 4), (2, 3, 2)]]
    ),
    "char_lm": model_gradients(CharLM(CHAR_LM), IDS),
    "char_lm_rotary": model_gradients(CharLM(dataclasses.replace(CHAR_LM, positions="rotary")), IDS),
    "masked_lm": model_gradients(ForMaskedLM(ENCODER), IDS, attention_mask=IDS + 1, **GLOBAL),
    "full": model_gradients(
        ForMaskedLM(dataclasses.replace(ENCODER, attention_mode="full")), IDS, attention_mask=IDS + 1
    ),
    "attentions": lambda: attentions(dilation=2),
    "sequences": model_gradients(ForSequenceClassification(ENCODER), IDS),
    "tokens": model_gradients(ForTokenClassification(ENCODER), IDS, **GLOBAL),
    "questions": model_gradients(ForQuestionAnswering(ENCODER), IDS, **GLOBAL),
    "choices": model_gradients(ForMultipleChoice(ENCODER), np.zeros((2, 3, 24), np.int32)),
    "char_lm_experiment": experiment_gradients(tiny.CONFIG),
    "masked_lm_experiment": experiment_gradients(tiny_masked.CONFIG),
    **{task.kind: experiment_gradients(tiny_task.of_task(task)) for task in tiny_task.TASKS},
}


@pytest.mark.parametrize("case", CASES)
def test_no_promotion_is_asked_for(case: str) -> None:
    """Neither of ranks nor of dtypes to 64 bits; tracing is what would show it."""
    with jax.numpy_rank_promotion("raise"), jax.enable_x64(True):
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(CASES[case]))}
    assert dtypes and dtypes <= {jnp.dtype("float32"), jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_settings_do_not_change_what_a_seed_gives() -> None:
    params = small.random_params(small.SMALL)
    write = functools.partial(generate, small.SMALL, params, small.random_tokens(2, 5), 8, seed=3)
    tokens = np.arange(400, dtype=np.int32).reshape(2, 200) % 60
    mask = functools.partial(mask_tokens, tokens=tokens, vocab_size=60, mask_token_id=4, special_token_ids=(0, 1, 2))
    key = jax.random.key(0)
    expected = write(), mask(key)
    with jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.threefry_partitionable(False):
        np.testing.assert_array_equal(write(), expected[0])
    with jax.enable_x64(True):
        jax.tree.map(np.testing.assert_array_equal, mask(key), expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["xla", pytest.param("masked_lm", marks=pytest.mark.exhaustive)])
def test_without_jit(case: str) -> None:
    with jax.disable_jit():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(CASES[case]()))
