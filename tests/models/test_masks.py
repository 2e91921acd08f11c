"""What masks may hold: 0, 1 and, in attention masks, 2 for global tokens; all else is refused, or NaN under jit."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import SMALL, random_ids, random_params
from golden import TOLERANCE, Golden, relative_error

from longformer_jax import (
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    InputError,
    Longformer,
    global_capacity,
    load_pretrained,
    question_mask,
)
from longformer_jax.models.embedding import look_up

ONE_LAYER = dataclasses.replace(SMALL, num_hidden_layers=1, attention_window=6, attention_dilation=1)
PARAMS = random_params(ONE_LAYER)
IDS, MASK = random_ids([29, 21, 8])
GLOBALS = np.zeros_like(IDS)
GLOBALS[0, [0, 1, 20]] = 1
GLOBALS[1, 5] = 1
BOTH = MASK * (GLOBALS + 1)  # as the original combines them


@functools.partial(jax.jit, static_argnames=("config", "room"))
def compiled(config: Any, mask: Any, global_mask: Any, room: int | None) -> jax.Array:
    module = Longformer(config)
    return module.apply({"params": PARAMS}, IDS, mask, global_mask, max_global_tokens=room).last_hidden_state  # type: ignore


def known(mask: Any, global_mask: Any = None, config: Any = ONE_LAYER) -> np.ndarray:
    """With masks that are constants of the program."""
    program = jax.jit(lambda p: Longformer(config).apply({"params": p}, IDS, mask, global_mask).last_hidden_state)  # type: ignore
    return np.asarray(program(PARAMS))


def traced(mask: Any, global_mask: Any = None, room: int | None = None, config: Any = ONE_LAYER) -> np.ndarray:
    return np.asarray(compiled(config, mask, global_mask, room))


EXPECTED = known(MASK, GLOBALS)


@pytest.mark.parametrize("xp", [np, jnp])
def test_an_id_is_not_cut_to_the_width_of_others(xp: Any) -> None:
    """300 is 44 in eight bits."""
    ids = xp.asarray([[7, 44, 44, 9]], "uint8")
    assert not jax.jit(question_mask, static_argnums=1)(ids, 300).any() and not question_mask(ids, 300).any()
    assert question_mask(ids, 44).tolist() == [[True, False, False, False]]

    grads = jax.grad(lambda x: look_up(nn.Embed(400, 2).bind({"params": {"embedding": x}}), ids, padding_id=300).sum())(
        jnp.ones((400, 2))
    )
    assert grads[44].tolist() == [2.0, 2.0]


def test_gradients_of_a_row_are_summed_in_float32() -> None:
    table, ids = nn.Embed(3, 2, dtype=jnp.bfloat16), jnp.ones((4, 999), jnp.int32)

    def total(x: jax.Array) -> jax.Array:
        return look_up(table.bind({"params": {"embedding": x}}), ids).astype(jnp.float32).sum()

    traced = str(jax.make_jaxpr(jax.grad(total))(jnp.ones((3, 2))))
    assert re.findall(r":(\w+)\[[\d,]+\] = scatter-add", traced) == ["f32"]
    assert jax.grad(total)(jnp.ones((3, 2)))[1].tolist() == [3996.0, 3996.0]


def test_2_is_a_global_token() -> None:
    assert relative_error(traced(MASK), EXPECTED) > 0.01
    np.testing.assert_array_equal(known(BOTH.astype(np.uint8)), EXPECTED)
    some = GLOBALS * (np.arange(29) < 3)
    np.testing.assert_array_equal(known(MASK * (some + 1), GLOBALS - some), EXPECTED)


def test_2_gives_the_numbers_of_the_original() -> None:
    golden = Golden("LongformerModel")
    config, params = load_pretrained(golden.directory)
    inputs, expected = golden.inputs("globals_differ"), golden.outputs("globals_differ")["last_hidden_state"]
    inputs["attention_mask"] *= inputs.pop("global_attention_mask") + 1
    found = jax.jit(lambda p: Longformer(config).apply({"params": p}, **inputs).last_hidden_state)(params)  # type: ignore
    assert relative_error(found, expected) <= TOLERANCE


def test_2_is_a_token_like_others_in_full_attention() -> None:
    full = dataclasses.replace(ONE_LAYER, attention_mode="full")
    np.testing.assert_array_equal(traced(BOTH, config=full), traced(MASK, config=full))


def test_2_under_jit_needs_room() -> None:
    assert relative_error(traced(BOTH, room=3), EXPECTED) < 5e-6
    # None means that there is no 2: where there is one, the row is NaN, never that of other global tokens.
    out = traced(BOTH)
    assert np.isnan(out[:2]).all() and relative_error(out[2], EXPECTED[2]) < 5e-6
    out = traced(BOTH, room=1)
    assert np.isnan(out[0]).all() and relative_error(out[1:], EXPECTED[1:]) < 5e-6


@pytest.mark.parametrize("config", [ONE_LAYER, dataclasses.replace(ONE_LAYER, attention_mode="full")])
def test_other_values_under_jit_give_nan(config: Any) -> None:
    additive = np.where(MASK, 0, -10_000)
    additive[0] = MASK[0]
    for mask, global_mask in ((additive, GLOBALS), (MASK + (MASK - GLOBALS) * [[0], [2], [2]], GLOBALS)):
        out = traced(mask, global_mask, room=3, config=config)
        assert np.isfinite(out[0]).all() and np.isnan(out[1:]).all()
    out = traced(MASK, GLOBALS * [[2], [-1], [1]], room=3, config=config)
    assert np.isnan(out[:2]).all() and np.isfinite(out[2]).all()


MEANINGS = "expected booleans, or the integers 0 (padding), 1 (a token), 2 (a global token)"


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ((MASK * 3,), f"attention_mask holds 3; {MEANINGS}"),
        ((np.where(MASK, 0, -10_000),), f"attention_mask holds -10000; {MEANINGS}"),
        ((np.where(MASK, 0.0, -1e4),), f"attention_mask is of float64 and holds -10000.0; {MEANINGS}; an additive"),
        ((np.where(MASK, 0.0, -np.inf),), f"attention_mask is of float64 and holds -inf; {MEANINGS}; an additive mask"),
        ((np.where(MASK, 0.0, np.finfo("f").min),), "attention_mask is of float32 and holds -3.4028234663852886e+38;"),
        ((jnp.ones(MASK.shape),), f"attention_mask is of float32; {MEANINGS}; an additive mask becomes one by mask =="),
        ((MASK.astype(str),), f"attention_mask is of <U11; {MEANINGS}"),
        ((MASK, GLOBALS * 2), "global_attention_mask holds 2; expected booleans, or the integers 0 (an ordinary token"),
        ((MASK, GLOBALS * -1.0), "global_attention_mask is of float64 and holds -1.0; expected booleans"),
    ],
)
def test_other_values_are_refused(masks: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        Longformer(ONE_LAYER).apply({"params": PARAMS}, IDS, *masks)
    with pytest.raises(InputError, match=re.escape(sentence)):
        global_capacity(masks[1] if len(masks) == 2 else None, masks[0])


def test_the_first_token_of_a_batch_of_any_size() -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    model, params = ForSequenceClassification(ONE_LAYER), random_params(ONE_LAYER, ForSequenceClassification)
    logits = jax.jit(lambda ids: model.apply({"params": params}, ids).logits)
    exported = jax.export.export(logits)(jax.ShapeDtypeStruct((batch, IDS.shape[1]), IDS.dtype))
    np.testing.assert_allclose(exported.call(IDS), logits(IDS), rtol=1e-5, atol=1e-6)


def test_masks_of_different_shapes_are_not_counted() -> None:
    for attention_mask in (MASK[0], MASK[:, :-1], MASK[:1]):
        sentence = f"attention_mask has the shape {list(attention_mask.shape)}; expected {list(GLOBALS.shape)}, as"
        with pytest.raises(InputError, match="^" + re.escape(sentence)):
            global_capacity(GLOBALS, attention_mask)


@pytest.mark.parametrize("mask", [np.where(MASK, 0.0, -1e4), np.zeros(MASK.shape, np.float32)])
def test_masks_of_floats_are_refused_under_jit_too(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="attention_mask is of float32; expected booleans"):
        traced(mask)


def test_capacity_counts_2() -> None:
    assert global_capacity(None, BOTH) == global_capacity(GLOBALS, MASK) == global_capacity(GLOBALS, BOTH) == 3
    assert global_capacity(None, MASK) == global_capacity(None) == 0
    assert global_capacity(np.eye(3, dtype=int), [[2, 0, 0], [2, 1, 1], [2, 0, 1]]) == 2


def test_2_comes_on_top_of_the_global_tokens_of_a_head() -> None:
    model, params = ForSequenceClassification(ONE_LAYER), random_params(ONE_LAYER, ForSequenceClassification)

    def hidden(params: Any, *masks: Any, **room: int) -> jax.Array:
        return model.apply({"params": params}, IDS, *masks, **room).encoder.last_hidden_state  # type: ignore

    first = np.arange(29)[None] == np.zeros((3, 1))
    expected = jax.jit(lambda p: hidden(p, MASK, GLOBALS | first))(params)
    found = jax.jit(functools.partial(hidden, max_global_tokens=4))
    assert relative_error(found(params, BOTH), expected) < 5e-6
    assert relative_error(found(params, MASK), expected) > 1e-3


def test_heads_whose_global_tokens_follow_from_ids_say_what_jit_needs() -> None:
    ids = IDS.copy()
    ids[:, 6:8] = SMALL.sep_token_id
    model, params = ForQuestionAnswering(ONE_LAYER), random_params(ONE_LAYER, ForQuestionAnswering)

    @functools.partial(jax.jit, static_argnames="room")
    def logits(params: Any, ids: Any, room: int | None = None) -> Any:
        return model.apply({"params": params}, ids, MASK, max_global_tokens=room).logits  # type: ignore

    sentence = (
        "max_global_tokens is None while input_ids is traced; expected a number of global tokens that no question "
        "exceeds, such as global_capacity(question_mask(input_ids, 2)) outside of jit"
    )
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        logits(params, ids)
    room = global_capacity(question_mask(ids, 2))
    expected = jax.jit(lambda p: model.apply({"params": p}, ids, MASK).logits)(params)  # type: ignore
    assert room == 6 and relative_error(logits(params, ids, room), expected) < 5e-6
    jax.eval_shape(model.init, jax.random.key(0), ids)  # needs none

    choice, params = ForMultipleChoice(ONE_LAYER), random_params(ONE_LAYER, ForMultipleChoice)
    sentence = "max_global_tokens is None while input_ids is traced; expected a number of global tokens that no text"
    with pytest.raises(InputError, match="^" + re.escape(sentence)):
        jax.eval_shape(choice.apply, {"params": params}, ids[None])
