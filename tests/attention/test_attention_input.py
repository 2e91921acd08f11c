"""What banded_attention refuses: one sentence that names the argument, its value and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, banded_attention

B, T, S, H, Dk, Dv = 2, 6, 7, 3, 4, 5


def shape(*size: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


GOOD: dict = {"query": shape(B, T, H, Dk), "key": shape(B, S, H, Dk), "value": shape(B, S, H, Dv), "window": 2}

DTYPES = "float32, float16, bfloat16"
ARRAYS = [
    ({"query": shape(T, H, Dk)}, r"^query is \[6, 3, 4\]; expected an array \[batch, length, heads, head_dim\]$"),
    ({"key": [1.0, 2.0]}, r"^key is list; expected an array \[batch, length, heads, head_dim\]$"),
    ({"value": None}, r"^value is NoneType; expected an array \[batch, length, heads, head_dim\]$"),
    ({"query": shape(B, 0, H, Dk)}, r"^query has the shape \[2, 0, 3, 4\]; expected every dimension to be at least 1$"),
    ({"value": shape(B, S, H, 0)}, r"^value has the shape \[2, 7, 3, 0\]; expected every dimension to be at least 1$"),
    ({"query": shape(B, T, H, Dk, dtype="int32")}, rf"^query has the dtype int32; expected one of {DTYPES}$"),
    ({"key": shape(B, S, H, Dk, dtype="float64")}, rf"^key has the dtype float64; expected one of {DTYPES}$"),
    ({"key": shape(B, S, H, Dk, dtype="bfloat16")}, r"^key has the dtype bfloat16; expected query's, float32$"),
    ({"value": shape(B, S, H, Dv, dtype="float16")}, r"^value has the dtype float16; expected query's, float32$"),
    ({"key": shape(B, S, H, Dv)}, r"^key has the shape \[2, 7, 3, 5\]; expected \[2, keys, 3, 4\] to go with query$"),
    ({"key": shape(1, S, H, Dk)}, r"^key has the shape \[1, 7, 3, 4\]; expected \[2, keys, 3, 4\] to go with query$"),
    ({"key": shape(B, S, 1, Dk)}, r"^key has the shape \[2, 7, 1, 4\]; expected \[2, keys, 3, 4\] to go with query$"),
    ({"value": shape(B, T, H, Dv)}, r"^value has the shape \[2, 6, 3, 5\]; expected \[2, 7, 3, any\] to go with key$"),
]  # fmt: skip

SHARED = [
    ({"shared_key": [1.0]}, r"^shared_key is list; expected an array \[keys, head_dim\] or \[batch, keys, head_dim\]$"),
    (
        {"shared_key": shape(S)},
        r"^shared_key is \[7\]; expected an array \[keys, head_dim\] or \[batch, keys, head_dim\]$",
    ),
    ({"shared_key": shape(B, S, H, 1)}, r"^shared_key is \[2, 7, 3, 1\]; expected an array \[keys, head_dim\] or "),
    ({"shared_key": shape(S, 0)}, r"^shared_key has the shape \[7, 0\]; expected every dimension to be at least 1$"),
    ({"shared_key": shape(S, 1, dtype="int32")}, rf"^shared_key has the dtype int32; expected one of {DTYPES}$"),
    ({"shared_key": shape(S, 1, dtype="float16")}, r"^shared_key has the dtype float16; expected query's, float32$"),
    (
        {"shared_key": shape(T, 1)},
        r"^shared_key has the shape \[6, 1\]; expected \[7, any\] or \[2, 7, any\] to go with query and key$",
    ),
    (
        {"shared_key": shape(1, S, 1)},
        r"^shared_key has the shape \[1, 7, 1\]; expected \[7, any\] or \[2, 7, any\] to go with query and key$",
    ),
    ({"shared_key": shape(S, 4)}, r"^shared_key has 4 numbers a key; expected fewer than query's head_dim, 4$"),
    (
        {"shared_key": shape(S, 1)},
        r"^key has the shape \[2, 7, 3, 4\]; expected \[2, keys, 3, 3\] to go with query and shared_key$",
    ),
]

MASK = r"expected booleans \[batch, keys\] = \[2, 7\]$"
IDS = r"expected integers \[2, 6\] for the queries and \[2, 7\] for the keys \(one array will do where .*\)$"
LIMITS = [
    ({"key_mask": np.ones((B, T), bool)}, rf"^key_mask is bool \[2, 6\]; {MASK}"),
    ({"key_mask": np.ones((B, S), np.int32)}, rf"^key_mask is int32 \[2, 7\]; {MASK}"),
    ({"key_mask": np.ones((B, S))}, rf"^key_mask is float32 \[2, 7\]; {MASK}"),
    ({"key_mask": "all"}, r"^key_mask is 'all'; expected an array, or what makes one$"),
    ({"key_mask": [[True], [True, True]]}, r"^key_mask is \[\[True\], .*; expected an array, or what makes one$"),
    ({"segment_ids": (None, None)}, r"^segment_ids is None; expected an array, or what makes one$"),
    ({"key_mask": np.ones((B, S, 1), bool)}, rf"^key_mask is bool \[2, 7, 1\]; {MASK}"),
    ({"segment_ids": np.ones((B, T), np.int32)}, rf"^segment_ids is int32 \[2, 6\], int32 \[2, 6\]; {IDS}"),
    ({"segment_ids": (np.ones((B, S), np.int32),) * 2}, rf"^segment_ids is int32 \[2, 7\], int32 \[2, 7\]; {IDS}"),
    (
        {"segment_ids": (np.ones((B, T), np.int64), np.full((B, S), 2**32))},
        r"^segment_ids holds 4294967296; expected integers that fit int32$",
    ),
    ({"segment_ids": (np.ones((B, T), np.int32),) * 3}, rf"^segment_ids is (int32 \[2, 6\](, )?){{3}}; {IDS}"),
    (
        {"segment_ids": (np.ones((B, T), np.int32), np.ones((B, S), np.float32))},
        rf"^segment_ids is int32 \[2, 6\], float32 \[2, 7\]; {IDS}",
    ),
]

RATE = r"expected a number in \[0, 1\)$"
DROPOUT = [
    ({"dropout_rate": 1.0, "dropout_seed": 0}, rf"^dropout_rate is 1\.0; {RATE}"),
    ({"dropout_rate": -0.1, "dropout_seed": 0}, rf"^dropout_rate is -0\.1; {RATE}"),
    ({"dropout_rate": float("nan"), "dropout_seed": 0}, rf"^dropout_rate is nan; {RATE}"),
    ({"dropout_rate": 0.1}, r"^dropout_seed is None while dropout_rate is 0\.1; expected an integer scalar$"),
    ({"dropout_rate": 0.1, "dropout_seed": "1"}, r"^dropout_seed is '1'; expected an array, or what makes one$"),
    ({"dropout_rate": 0.1, "dropout_seed": 1.5}, r"^dropout_seed is float32 \[\]; expected an integer scalar$"),
    (
        {"dropout_rate": 0.1, "dropout_seed": -(2**70)},
        r"^dropout_seed holds -1\d+; expected integers that fit int32 or",
    ),
    ({"dropout_rate": 0.1, "dropout_seed": np.arange(2)}, r"^dropout_seed is int32 \[2\]; expected an integer scalar$"),
]

SCALE = [
    ({"scale": float("inf")}, r"^scale is inf; expected a finite number$"),
    ({"scale": 10**400}, r"^scale is 10+; expected a number known when the call is traced$"),
    ({"scale": "large"}, r"^scale is 'large'; expected a number known when the call is traced$"),
    ({"scale": "1"}, r"^scale is '1'; expected a number known when the call is traced$"),
    ({"dropout_rate": "some"}, r"^dropout_rate is 'some'; expected a number known when the call is traced$"),
]

# test_band.py has the rest.
BAND = [
    ({"window": -1}, r"^window is -1; expected"),
    ({"window": "256"}, r"^window is '256'; expected"),
    ({"dilation": None}, r"^dilation is None; expected"),
    ({"causal": "no"}, r"^causal is 'no'; expected True or False$"),
    ({"causal": np.ones(2, bool)}, r"^causal is array.*; expected True or False$"),
    ({"return_lse": None}, r"^return_lse is None; expected True or False$"),
    ({"implementation": ["xla"]}, r"^implementation is \['xla'\]; expected None or one of 'reference', "),
    ({"window": (2, 1), "causal": True}, r"^window is \(2, 1\), which looks 1 steps ahead"),
    ({"dilation": (1, 2)}, r"^dilation has 2 entries; expected one for each of the 3 heads$"),
    ({"key_offset": 1.5}, r"^key_offset is 1\.5; expected"),
    ({"key_offset": 2**31 - 1}, r"^key_offset is 2147483647; expected at most 536870912 to either side$"),
    (
        {"dropout_rate": 0.1, "dropout_seed": 2**32},
        r"^dropout_seed holds 4294967296; expected integers that fit int32 or uint32$",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), ARRAYS + SHARED + LIMITS + DROPOUT + SCALE + BAND, ids=str)
def test_refusals(arguments: dict, sentence: str) -> None:
    """The arrays are shapes without numbers: nothing can have been computed."""
    with pytest.raises(InputError, match=sentence):
        banded_attention(**GOOD | arguments)


@pytest.mark.parametrize("name", ["scale", "dropout_rate"])
def test_traced_numbers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*; expected a number known when the call is traced"):
        jax.jit(lambda x: banded_attention(**GOOD | {name: x, "dropout_seed": 0}))(0.5)


@pytest.mark.parametrize("name", ["pallas", "XLA", ""])
def test_unknown_implementations_do_not_fall_back(name: str) -> None:
    sentence = rf"^implementation is '{name}', which this version does not have; expected None or one of 'reference', "
    with pytest.raises(NotImplementedError, match=sentence):
        banded_attention(**GOOD, implementation=name)


def test_the_good_call_is_good() -> None:
    arrays = GOOD["query"], GOOD["key"], GOOD["value"]
    assert jax.eval_shape(lambda *arrays: banded_attention(*arrays, window=2), *arrays).shape == (B, T, H, Dv)


def test_arrays_of_numpy_will_do(implementation: str) -> None:
    arrays: dict = {name: np.ones(x.shape, np.float32) for name, x in GOOD.items() if name != "window"}
    arrays["key_mask"] = np.ones((B, S), bool)
    arrays |= {"key": arrays["key"][..., 1:], "shared_key": np.ones((S, 1), np.float32)}
    out = banded_attention(**arrays, window=2, implementation=implementation)
    assert isinstance(out, jax.Array)
    np.testing.assert_allclose(out, jnp.ones((B, T, H, Dv)), rtol=1e-6)


def test_the_widest_window_the_longest_step_and_the_highest_rate_will_do(implementation: str) -> None:
    arrays: dict = {name: np.ones(x.shape, np.float32) for name, x in GOOD.items() if name != "window"}
    for offset in (0, 2**29, -(2**29)):
        out = banded_attention(**arrays, window=2**63 - 1, key_offset=offset, implementation=implementation)
        np.testing.assert_allclose(out, jnp.ones((B, T, H, Dv)), rtol=1e-6)
    out = banded_attention(**arrays, window=2, dilation=(1, 10**9, 10**30), implementation=implementation)
    np.testing.assert_allclose(out, jnp.ones((B, T, H, Dv)), rtol=1e-6)
    out = banded_attention(**arrays, window=2, dropout_rate=1 - 1e-12, dropout_seed=0, implementation=implementation)
    assert np.array_equal(out, jnp.zeros((B, T, H, Dv)))


def test_the_smallest_segment_id_counts_as_the_next(implementation: str) -> None:
    arrays: dict = {name: np.ones(x.shape, np.float32) for name, x in GOOD.items() if name != "window"}
    query_ids, every_other = np.full((B, T), -(2**31)), np.broadcast_to(np.arange(S) % 2, (B, S))
    for step, visible in ((1, S), (2, (S + 1) // 2)):
        ids = query_ids, -(2**31) + step * every_other
        _, lse = banded_attention(**arrays, window=S, segment_ids=ids, return_lse=True, implementation=implementation)
        np.testing.assert_allclose(np.exp(lse - Dk**0.5), np.full((B, T, H), visible), rtol=1e-5)
