"""What an encoder promises beyond the numbers of the original: batches, transformations, global tokens, bad input."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import SMALL, random_ids, random_params
from golden import relative_error

from longformer_jax import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    InputError,
    Longformer,
    global_capacity,
)

PARAMS = random_params()
IDS, MASK = random_ids([61, 33, 8])
GLOBALS = np.zeros_like(IDS)
GLOBALS[0, [0, 1, 30, 60]] = 1
GLOBALS[1, [0, 5]] = 1


def encode(params: Any = PARAMS, config=SMALL, ids=IDS, mask=MASK, global_mask=GLOBALS, **kwargs: Any) -> Any:
    return Longformer(config).apply({"params": params}, ids, mask, global_mask, **kwargs)


@functools.partial(jax.jit, static_argnames=("config", "max_global_tokens", "deterministic"))
def compiled(params, config, ids, mask, global_mask, *, max_global_tokens, **kwargs: Any) -> jax.Array:
    kwargs["max_global_tokens"] = None if global_mask is None else max_global_tokens
    return encode(params, config, ids, mask, global_mask, **kwargs).last_hidden_state


def hidden(params: Any = PARAMS, config=SMALL, ids=IDS, mask=MASK, global_mask=GLOBALS, **kwargs: Any) -> jax.Array:
    """Compiled, with room for 4 global tokens."""
    return compiled(params, config, ids, mask, global_mask, **{"max_global_tokens": 4} | kwargs)


def random_cotangent(seed: int = 5) -> np.ndarray:
    """Nothing flows out of padding."""
    return np.random.default_rng(seed).standard_normal((*IDS.shape, SMALL.hidden_size)) * MASK[:, :, None]


def gradients(config=SMALL, params: Any = PARAMS, **kwargs: Any) -> Any:
    cotangent = random_cotangent()
    return jax.jit(jax.grad(lambda p: (hidden(p, config, **kwargs) * cotangent).sum()))(params)


def assert_trees_close(found: Any, expected: Any, tolerance: float) -> None:
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(found)[0], jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(a - b).max()) <= tolerance * scale, jax.tree_util.keystr(path)


def test_what_init_returns_knows_global_tokens() -> None:
    found, variables = Longformer(SMALL).init_with_output(jax.random.key(0), IDS, MASK, GLOBALS)
    expected = hidden(params=variables["params"])
    assert relative_error(found.last_hidden_state, expected) < 1e-5  # type: ignore
    assert relative_error(hidden(params=variables["params"], global_mask=None), expected) > 1e-3


@pytest.mark.parametrize(
    "model", [ForSequenceClassification, ForTokenClassification, ForQuestionAnswering, ForMultipleChoice]
)
def test_logits_are_not_rounded_to_the_models_dtype(model: type) -> None:
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    ids = IDS[:, None, :20] if model is ForMultipleChoice else IDS[:, :20]
    params = random_params(config, model)
    logits = model(config).apply({"params": params}, ids, max_global_tokens=20).logits
    assert logits.dtype == jnp.float32 and (logits != logits.astype(jnp.bfloat16)).any()


def test_a_batch_gives_each_row_what_the_row_gives_alone() -> None:
    together = hidden()
    for row, length in enumerate(MASK.sum(1)):
        alone = hidden(ids=IDS[row : row + 1, :length], mask=None, global_mask=GLOBALS[row : row + 1, :length])
        assert relative_error(together[row : row + 1, :length], alone) < 5e-6


def test_what_stands_in_padding_does_not_matter() -> None:
    ids = np.where(MASK == 1, IDS, 17)
    positions = np.where(MASK == 1, np.cumsum(MASK, 1) + 1, 77)
    shown = np.asarray(hidden(ids=ids, position_ids=positions.astype(np.int32)))
    assert relative_error(shown[MASK == 1], np.asarray(hidden())[MASK == 1]) < 5e-6


def test_padding_on_the_left_only_shifts() -> None:
    ids, mask, global_mask = (np.pad(x[:1], ((0, 0), (7, 0))) for x in (IDS, MASK, GLOBALS))
    ids[:, :7] = SMALL.pad_token_id
    shifted = hidden(ids=ids, mask=mask, global_mask=global_mask)[:, 7:]
    assert relative_error(shifted, hidden(ids=IDS[:1], mask=MASK[:1], global_mask=GLOBALS[:1])) < 5e-6


def test_jit_needs_the_number_of_global_tokens() -> None:
    with pytest.raises(InputError, match="max_global_tokens is None while global_attention_mask is traced; expected"):
        hidden(max_global_tokens=None)
    assert global_capacity(GLOBALS, MASK) == 4
    assert relative_error(hidden(), encode().last_hidden_state) < 1e-6


@pytest.mark.parametrize("capacity", [9, 1000])
def test_spare_room_for_global_tokens_changes_nothing(capacity: int) -> None:
    assert relative_error(hidden(max_global_tokens=capacity), encode().last_hidden_state) < 5e-6


def test_global_tokens_without_room_are_never_cut() -> None:
    with pytest.raises(InputError, match="max_global_tokens is 3; expected at least 4, as many as a row has"):
        encode(max_global_tokens=3)
    out = np.asarray(hidden(max_global_tokens=3))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1:]).all()
    none = np.asarray(hidden(max_global_tokens=0))
    assert np.isnan(none[:2]).all() and np.isfinite(none[2]).all()


def test_global_tokens_in_padding_do_not_count() -> None:
    beyond = GLOBALS.copy()
    beyond[2, 20:40] = 1
    assert relative_error(hidden(global_mask=beyond, max_global_tokens=4), hidden()) < 1e-6


def test_every_token_sees_a_global_one_and_is_seen_by_it() -> None:
    def change(global_mask, position):
        ids = IDS[:1].copy()
        ids[0, position] = (ids[0, position] + 1) % 30 + 5
        one_layer = dataclasses.replace(SMALL, num_hidden_layers=1, attention_window=6, attention_dilation=1)
        params = PARAMS | {"layers": jax.tree.map(lambda p: p[:1], PARAMS["layers"])}
        before, after = (hidden(params, one_layer, i, None, global_mask) for i in (IDS[:1], ids))
        return np.flatnonzero(np.abs(np.asarray(after - before)[0]).max(-1) > 1e-6).tolist()

    mask = np.zeros_like(IDS[:1])
    assert change(mask, 20) == list(range(17, 24))
    mask[0, 20] = 1
    assert change(mask, 20) == list(range(61))
    assert change(mask, 50) == [20, *range(47, 54)]


def test_without_projections_of_their_own_global_rows_use_the_ordinary_ones() -> None:
    shared = dataclasses.replace(SMALL, global_projections=False)
    layers = dict(PARAMS["layers"])
    for name in ("query", "key", "value"):
        layers[f"{name}_global"] = layers[name]
    copied = hidden(PARAMS | {"layers": layers})
    without = {name: value for name, value in layers.items() if not name.endswith("_global")}
    assert relative_error(hidden(PARAMS | {"layers": without}, shared), copied) < 1e-6
    # Those that are there but not wanted are passed over.
    np.testing.assert_array_equal(hidden(PARAMS, shared), hidden(PARAMS | {"layers": without}, shared))


def test_parameters_of_another_configuration_are_named() -> None:
    without = {name: value for name, value in PARAMS["layers"].items() if not name.endswith("_global")}
    with pytest.raises(
        InputError,
        match=r"^params have layers/key_global/bias missing; expected \(\d, 32\), as Longformer has it where config"
        r"\.global_projections is True",
    ):
        hidden(PARAMS | {"layers": without})
    wide = dataclasses.replace(SMALL, intermediate_size=64)
    with pytest.raises(
        InputError, match=r"^params have layers/mlp_in/bias \(\d, \d+\); expected \(\d, 64\), as Longformer has it"
    ):
        hidden(config=wide)
    with pytest.raises(InputError, match=r"^params have layers/attention_norm/bias \(\d, 32\); expected \(1, 32\), as"):
        hidden(config=dataclasses.replace(SMALL, num_hidden_layers=1, attention_window=4, attention_dilation=1))
    with pytest.raises(InputError, match=r"^params have position_embeddings/embedding missing; expected"):
        hidden({name: x for name, x in PARAMS.items() if name != "position_embeddings"})


def test_a_window_over_everything_is_full_attention() -> None:
    wide = dataclasses.replace(SMALL, attention_window=200, attention_dilation=1)
    full = dataclasses.replace(SMALL, attention_mode="full")
    valid = MASK == 1
    a, b = (np.asarray(hidden(config=config, global_mask=None))[valid] for config in (wide, full))
    assert relative_error(a, b) < 5e-6


@pytest.mark.parametrize("length", [1, 2, 7, 11, 128])
def test_any_length_needs_no_padding(length: int) -> None:
    ids, _ = random_ids([length])
    padded = np.pad(ids, ((0, 0), (0, 128 - length)), constant_values=SMALL.pad_token_id)
    expected = hidden(ids=padded, mask=(padded != SMALL.pad_token_id).astype(np.int32), global_mask=None)
    assert relative_error(hidden(ids=ids, mask=None, global_mask=None), expected[:, :length]) < 5e-6


@pytest.mark.slow
def test_remat_changes_no_gradient() -> None:
    assert_trees_close(gradients(dataclasses.replace(SMALL, remat=True)), gradients(), 1e-6)


@pytest.mark.slow
def test_gradients_agree_with_the_dense_reference() -> None:
    assert_trees_close(gradients(dataclasses.replace(SMALL, implementation="reference")), gradients(), 5e-6)


@pytest.mark.slow
def test_bfloat16_stays_near_float32() -> None:
    low = dataclasses.replace(SMALL, dtype="bfloat16")
    # The same network in bfloat16 with dense attention: the yardstick for the blockwise one.
    plain = dataclasses.replace(low, implementation="reference")
    exact = np.asarray(hidden())[MASK == 1]
    found, yardstick = (np.asarray(hidden(config=c), np.float32)[MASK == 1] for c in (low, plain))
    assert encode(config=low).last_hidden_state.dtype == jnp.bfloat16
    assert relative_error(found, exact) <= 2 * relative_error(yardstick, exact)
    params = jax.jit(Longformer(low).init)(jax.random.key(0), IDS)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_dropout_is_a_function_of_the_rng() -> None:
    config = dataclasses.replace(SMALL, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)

    def run(seed: int, implementation: str | None = None) -> np.ndarray:
        c = dataclasses.replace(config, implementation=implementation)
        return np.asarray(hidden(config=c, deterministic=False, rngs={"dropout": jax.random.key(seed)}))

    assert np.array_equal(run(0), run(0))
    assert relative_error(run(1), run(0)) > 0.1
    assert relative_error(run(0, "reference"), run(0)) < 5e-6
    assert relative_error(hidden(config=config), hidden()) < 1e-6


@pytest.mark.slow
def test_dropout_of_each_rate_alone_has_an_effect() -> None:
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        config = dataclasses.replace(SMALL, **{field: 0.3})
        dropped = hidden(config=config, deterministic=False, rngs={"dropout": jax.random.key(0)})
        assert relative_error(dropped, hidden()) > 0.01, field


def test_vmap_over_documents() -> None:
    def one(ids, mask, global_mask):
        return hidden(ids=ids[None], mask=mask[None], global_mask=global_mask[None])[0]

    assert relative_error(jax.vmap(one)(IDS, MASK, GLOBALS), hidden()) < 5e-6


def test_nothing_syncs_with_the_host_under_jit() -> None:
    arrays = jax.device_put((IDS, MASK, GLOBALS))
    hidden(PARAMS, SMALL, *arrays)
    with jax.transfer_guard("disallow"):
        out = hidden(PARAMS, SMALL, *arrays)
    assert relative_error(out, hidden()) < 5e-6


SHARDED = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from encoders import SMALL, random_ids, random_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from longformer_jax import Longformer

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
by_row = NamedSharding(mesh, P("data"))
params, (ids, mask) = random_params(), random_ids([61, 33, 8, 50])
is_global = (np.arange(61) < np.array([[1], [0], [3], [2]])).astype(np.int32)

@jax.jit
def encode(params, *arrays):
    return Longformer(SMALL).apply({"params": params}, *arrays, max_global_tokens=3).last_hidden_state

arrays = ids, mask, is_global
sharded = encode(params, *jax.device_put(arrays, by_row))
assert sharded.sharding.is_equivalent_to(by_row, 3), sharded.sharding
np.testing.assert_allclose(sharded, encode(params, *arrays), atol=2e-5)
"""


@pytest.mark.slow
def test_a_batch_is_split_over_devices() -> None:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parents[1])))}
    ran = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-3000:]


def test_program_does_not_grow_with_depth() -> None:
    def size(layers: int) -> int:
        config = dataclasses.replace(SMALL, num_hidden_layers=layers, attention_window=6, attention_dilation=1)
        params = jax.eval_shape(Longformer(config).init, jax.random.key(0), IDS)
        return len(jax.jit(Longformer(config).apply).lower(params, IDS, MASK).as_text().splitlines())

    assert size(12) == size(3)


def test_positions_may_be_given() -> None:
    given = np.cumsum(IDS != 1, 1) * (IDS != 1) + 1
    assert relative_error(hidden(position_ids=given.astype(np.int32)), hidden()) < 1e-7
    assert relative_error(hidden(position_ids=given[:, ::-1].astype(np.int32)), hidden()) > 0.01


def test_logits_at_chosen_positions_only() -> None:
    params, model = random_params(model=ForMaskedLM), ForMaskedLM(SMALL)
    every = model.apply({"params": params}, IDS, MASK).logits
    chosen = np.array([[0, 5, 60], [1, 1, 30], [7, 2, 0]])
    some = model.apply({"params": params}, IDS, MASK, positions=chosen).logits
    assert every.dtype == some.dtype == jnp.float32
    assert relative_error(some, np.take_along_axis(np.asarray(every), chosen[:, :, None], 1)) < 1e-6


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        ([[1]], "positions is list; expected an array of integers [batch, number]"),
        (np.zeros((3, 2)), "positions is float64 [3, 2]; expected an array of integers [batch, number]"),
        (np.zeros((2, 2), int), "positions has 2 rows; expected 3, as input_ids has"),
        (np.full((3, 2), 61), "positions holds 61; expected integers from 0 to 60"),
        (np.full((3, 2), -1), "positions holds -1; expected integers from 0 to 60"),
    ],
)
def test_bad_positions(positions: Any, sentence: str) -> None:
    params, model = random_params(model=ForMaskedLM), ForMaskedLM(SMALL)
    with pytest.raises(InputError, match=re.escape(sentence)):
        model.apply({"params": params}, IDS, MASK, positions=positions)
    with pytest.raises(InputError, match=r"^input_ids is int32 \[9\]; expected an array of integers \[batch, length\]"):
        model.apply({"params": params}, IDS[0, :9], positions=np.zeros((1, 1), int))


def test_arrays_of_choices_have_the_shape_of_input_ids() -> None:
    params, model = random_params(model=ForMultipleChoice), ForMultipleChoice(SMALL)
    with pytest.raises(
        InputError, match=re.escape("attention_mask is [3, 61]; expected an array [1, 3, 61], as input_")
    ):
        model.apply({"params": params}, IDS[None], MASK)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_ids_of_any_integer_type(dtype: Any) -> None:
    given = np.cumsum(IDS != 1, 1) * (IDS != 1) + 1
    out = hidden(ids=IDS.astype(dtype), position_ids=given.astype(dtype), token_type_ids=(MASK * 0).astype(dtype))
    np.testing.assert_array_equal(out, hidden())


def test_ids_of_the_other_byte_order_are_refused() -> None:
    other = IDS.astype(IDS.dtype.newbyteorder())
    with pytest.raises(InputError, match=r"^input_ids is .*\[3, 61\]; expected an array of integers \[batch, length\]"):
        Longformer(SMALL).apply({"params": PARAMS}, other)


def test_parameters_are_as_many_as_the_original_has() -> None:
    config = dataclasses.replace(SMALL, **{f.name: f.default for f in dataclasses.fields(SMALL)})  # base, 4096

    def count(model: nn.Module) -> int:
        params = jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count(Longformer(config)) == 148_659_456
    assert count(ForMaskedLM(config)) == 148_711_257


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"ids": IDS[0]}, "input_ids is int32 [61]; expected an array of integers [batch, length]"),
        ({"ids": IDS.astype(np.float32)}, "input_ids is float32 [3, 61]; expected an array of integers"),
        ({"ids": IDS.tolist()}, "input_ids is list; expected an array of integers"),
        ({"ids": IDS[:, :0]}, "input_ids has the shape [3, 0]; expected at least one row and one token"),
        ({"ids": np.full((1, 129), 5)}, "input_ids has 129 tokens in a row; expected at most 128"),
        ({"ids": np.full((3, 61), 40)}, "input_ids holds 40; expected integers from 0 to 39"),
        ({"ids": np.full((3, 61), -1)}, "input_ids holds -1; expected integers from 0 to 39"),
        ({"mask": MASK[:2]}, "attention_mask is [2, 61]; expected an array [3, 61], as input_ids is"),
        ({"global_mask": MASK[0]}, "global_attention_mask is [61]; expected an array [3, 61]"),
        ({"token_type_ids": MASK + 1}, "token_type_ids holds 2; expected integers from 0 to 1"),
        ({"token_type_ids": MASK * 0.5}, "token_type_ids is float64 [3, 61]; expected an array of integers"),
        ({"position_ids": IDS + 100}, "position_ids holds 139; expected integers from 0 to 129"),
        ({"max_global_tokens": -1}, "max_global_tokens is -1; expected an integer >= 0"),
    ],
)
def test_bad_input(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        encode(**arguments)


@pytest.mark.parametrize("bad", [40, -1])
def test_unknown_ids_under_jit_give_nan_never_a_wrong_token(bad: int) -> None:
    ids = IDS.copy()
    ids[1, 2] = bad
    out = np.asarray(hidden(ids=ids, global_mask=None))
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()


@pytest.mark.parametrize("field", ["token_type_ids", "position_ids"])
def test_unknown_rows_of_other_tables_under_jit(field: str) -> None:
    """NaN for all of the row, beyond what a window sees, too."""
    config = dataclasses.replace(SMALL, attention_window=4)
    ids, _ = random_ids([64, 64])
    rows = np.ones_like(ids)
    rows[1, 60] = 1000
    model = Longformer(config)
    apply = jax.jit(lambda **arguments: model.apply({"params": random_params(config)}, ids, **arguments))
    output: Any = apply(**{field: rows})
    assert jnp.isnan(output.last_hidden_state[1]).all() and jnp.isfinite(output.last_hidden_state[0]).all()
    assert jnp.isnan(output.pooler_output[1]).all()


@pytest.mark.parametrize("rngs", [jax.random.key(0), {"params": jax.random.key(0)}], ids=["key", "params"])
def test_dropout_takes_what_other_modules_take(rngs: Any) -> None:
    ids, _ = random_ids([20])
    config = dataclasses.replace(SMALL, hidden_dropout_prob=0.5)
    params = {"params": random_params(config)}
    dropped, kept = (
        Longformer(config).apply(params, ids, deterministic=deterministic, rngs=rngs).last_hidden_state
        for deterministic in (False, True)
    )
    assert jnp.abs(dropped - kept).max() > 0.01


@pytest.mark.slow
def test_what_jit_closes_over_is_known() -> None:
    ids, mask, global_mask = map(jnp.asarray, (IDS, MASK, GLOBALS))
    out = jax.jit(lambda p: encode(p, SMALL, ids, mask, global_mask).last_hidden_state)(PARAMS)
    assert relative_error(out, hidden()) < 1e-6
    model, params = ForQuestionAnswering(SMALL), random_params(model=ForQuestionAnswering)
    asked = jnp.where(jnp.arange(61) == 7, SMALL.sep_token_id, ids)
    logits = jax.jit(lambda p: model.apply({"params": p}, asked, mask).logits)(params)
    given = model.apply({"params": params}, asked, mask, np.arange(61) < np.full((3, 1), 7)).logits
    assert relative_error(logits, given) < 5e-6
