"""Counts are held to five standard deviations of their binomial distributions."""

import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longformer_jax.data import mask_tokens
from longformer_jax.errors import InputError

VOCAB, MASK = 50, 49
SPECIAL = (0, 1, 2, 17)
ORDINARY = [token for token in range(VOCAB) if token not in (*SPECIAL, MASK)]
OPTIONS = {"vocab_size": VOCAB, "mask_token_id": MASK, "special_token_ids": SPECIAL}


def assert_binomial(count, trials, probability):
    assert abs(count - trials * probability) < 5 * math.sqrt(trials * probability * (1 - probability))


def draw(seed, tokens, **options):
    inputs, chosen = jax.jit(partial(mask_tokens, **(OPTIONS | options)))(jax.random.key(seed), tokens)
    return np.asarray(inputs), np.asarray(chosen)


@pytest.fixture(scope="module")
def tokens():
    """Every id but <mask>'s equally often, specials included: uint16 [64, 4096]."""
    return np.random.default_rng(0).integers(0, MASK, (64, 4096), dtype=np.uint16)


@pytest.mark.parametrize("probability", [0.15, 0.5, 1.0])
def test_shares_are_those_of_bert(tokens, probability):
    inputs, chosen = draw(1, tokens, mask_probability=probability)
    ordinary = np.isin(tokens, ORDINARY)
    assert inputs.dtype == np.int32 and chosen.dtype == bool and inputs.shape == chosen.shape == tokens.shape
    if probability == 1:
        np.testing.assert_array_equal(chosen, ordinary)
    else:
        assert_binomial(chosen.sum(), ordinary.sum(), probability)
    hidden = inputs[chosen] == MASK
    same = inputs[chosen] == tokens[chosen]
    assert_binomial(hidden.sum(), chosen.sum(), 0.8)
    # A token drawn at random may be the token itself.
    assert_binomial(same.sum(), chosen.sum(), 0.1 + 0.1 / len(ORDINARY))
    assert_binomial((~hidden & ~same).sum(), chosen.sum(), 0.1 * (1 - 1 / len(ORDINARY)))


def test_nothing_else_changes(tokens):
    inputs, chosen = draw(2, tokens)
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    assert not np.isin(tokens[chosen], SPECIAL).any()


def test_replacements_are_uniform_and_never_special(tokens):
    inputs, chosen = draw(3, tokens, mask_probability=1.0)
    replaced = inputs[chosen & (inputs != MASK) & (inputs != tokens)]
    ids, counts = np.unique(replaced, return_counts=True)
    assert ids.tolist() == ORDINARY
    for count in counts:
        assert_binomial(count, len(replaced), 1 / len(ORDINARY))


def test_tokens_are_chosen_independently():
    tokens = np.full((64, 4096), 30)
    _, chosen = draw(4, tokens)
    for one, other in (
        (chosen[:, 1:], chosen[:, :-1]),
        (chosen[1:], chosen[:-1]),
        (chosen, draw(5, tokens)[1]),
    ):
        assert_binomial((one & other).sum(), one.size, 0.15**2)
    # No row of the batch is preferred, and no part of the rows.
    for count in (*chosen.sum(1), *chosen.reshape(64, 64, 64).sum((0, 2))):
        assert_binomial(count, 4096, 0.15)


def test_what_becomes_of_a_token_does_not_depend_on_the_others(tokens):
    """A change of other tokens changes neither which are chosen nor what they become."""
    inputs, chosen = draw(6, tokens)
    other = np.where(np.arange(4096) % 2, tokens, 30)
    other_inputs, other_chosen = draw(6, other)
    np.testing.assert_array_equal(other_inputs[:, 1::2], inputs[:, 1::2])
    np.testing.assert_array_equal(other_chosen[:, 1::2], chosen[:, 1::2])


def test_same_key_same_masks(tokens):
    first, again = draw(7, tokens), mask_tokens(jax.random.key(7), jnp.asarray(tokens), **OPTIONS)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[1], draw(8, tokens)[1])


@settings(deadline=None, max_examples=25)
@given(special=st.sets(st.integers(0, 7), max_size=6), mask=st.integers(0, 7), data=st.data())
def test_any_set_of_special_tokens(special, mask, data):
    tokens = data.draw(st.lists(st.integers(0, 7), min_size=40, max_size=40))
    inputs, chosen = mask_tokens(
        jax.random.key(data.draw(st.integers(0, 99))),
        jnp.array(tokens * 10).reshape(20, 20),
        vocab_size=8,
        mask_token_id=mask,
        special_token_ids=special,
        mask_probability=1,
    )
    changed = {int(token) for token in np.asarray(inputs)[np.asarray(chosen)]}
    assert changed.isdisjoint(special - {mask})
    np.testing.assert_array_equal(chosen, ~np.isin(np.array(tokens * 10).reshape(20, 20), [*special, mask]))


def test_masks_do_not_depend_on_sharding():
    script = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
from longformer_jax.data import mask_tokens

tokens = np.random.default_rng(0).integers(0, 100, (8, 64))
mask = partial(mask_tokens, vocab_size=100, mask_token_id=99, special_token_ids=(0, 1, 2), mask_probability=0.5)
mesh = jax.make_mesh((2, 2), ("data", "sequence"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
one = jax.jit(mask)(jax.random.key(0), tokens)
for spec in (P("data"), P(("data", "sequence")), P("data", "sequence"), P(None, "sequence")):
    sharding = NamedSharding(mesh, spec)
    many = jax.jit(mask, out_shardings=sharding)(jax.random.key(0), jax.device_put(tokens, sharding))
    assert all(len(array.sharding.device_set) == 4 for array in many)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.zeros(5, np.int32)}, "^tokens is int32 of shape .5,.; expected integers .B, T."),
        ({"tokens": np.zeros((2, 5))}, "^tokens is float64 of shape .2, 5.; expected integers"),
        ({"mask_probability": 0}, "^mask_probability is 0; expected a number in .0, 1."),
        ({"mask_probability": 1.01}, "^mask_probability is 1.01; expected"),
        ({"mask_probability": "1"}, "^mask_probability is '1'; expected a number in .0, 1."),
        ({"vocab_size": 100.0}, "^vocab_size is 100.0; expected an integer >= 1"),
        ({"mask_token_id": 99.0}, "^mask_token_id has 99.0; expected ids from 0 to 49"),
        ({"mask_probability": math.nan}, "^mask_probability is nan; expected"),
        ({"mask_token_id": VOCAB}, "^mask_token_id has 50; expected ids from 0 to 49, as vocab_size=50$"),
        ({"special_token_ids": (0, -1)}, "^special_token_ids has -1; expected ids from 0 to 49"),
        ({"special_token_ids": range(VOCAB)}, "^special_token_ids leaves no ordinary token .vocab_size=50.; expected"),
    ],
)
def test_bad_input(change, message):
    arguments = OPTIONS | {"tokens": np.zeros((2, 5), np.int32)} | change
    with pytest.raises(InputError, match=message):
        mask_tokens(jax.random.key(0), arguments.pop("tokens"), **arguments)
