"""A sequence that is split over devices: the same numbers as of the whole, and nothing sent but edges."""

import json
import re
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from longformer_jax import banded_attention
from longformer_jax.errors import InputError
from tests.attention.cases import CASES, SHARED_CASES

FEW = ["several_hops", "documents", "shared_by_heads_ahead"]
# A device has its own keys, as many as queries; segment_ids of one array.
ALL = [c.name for c in (*CASES, *SHARED_CASES) if c.num_keys == c.T and c.T > 1 and c.segments != "pair"]
ALL += ["ragged_end", "causal_shared", "far_behind"]


def measure(run_python: Callable, implementation: str, names: list[str]) -> tuple[dict[str, float], list[int]]:
    ran = run_python("-m", "tests.attention.split_program", implementation, *names)
    assert ran.returncode == 0, ran.stderr[-3000:]
    differences, sent = map(json.loads, ran.stdout.splitlines()[-2:])
    assert set(differences) == set(names)
    return differences, sent


def test_parts_give_what_the_whole_gives_and_send_edges_only(run_python: Callable) -> None:
    differences, sent = measure(run_python, "xla", FEW)
    assert all(x < 1e-5 for x in differences.values()), differences
    short, long = sent
    assert short == long
    # Keys, values and their gradients, 27 + 12 rows of two heads with 8 numbers, and as many of the mask and the ids.
    assert long == 39 * (4 * 2 * 8 * 4 + 1 + 4)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("implementation", "names"), [("xla", ALL), ("pallas_triton_interpret", FEW)])
def test_every_case_in_parts(run_python: Callable, implementation: str, names: list[str]) -> None:
    differences, _ = measure(run_python, implementation, names)
    assert all(x < 2e-5 for x in differences.values()), differences


X = jnp.zeros((1, 4, 2, 8))


def test_axis_that_there_is_none_of() -> None:
    for name in ("sequence", ["sequence"], 0):
        with pytest.raises(
            InputError, match=f"^axis_name is {re.escape(repr(name))}; expected an axis of the mesh that"
        ):
            banded_attention(X, X, X, window=1, axis_name=cast("str", name))


def test_parts_of_other_lengths() -> None:
    def attend(x):
        return banded_attention(x, x[:, :2], x[:, :2], window=1, axis_name="sequence")

    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(AxisType.Auto,))
    split = P(None, "sequence")
    with pytest.raises(InputError, match=r"^key has 2 positions on a device; expected query's 4, as axis_name is 'seq"):
        jax.shard_map(attend, mesh=mesh, in_specs=split, out_specs=split)(X)


@pytest.mark.parametrize("origin", [3, (1, 2), (0, 0, 0, 0.5), "abcd"])
def test_origin_of_dropout_that_is_none(origin: object) -> None:
    with pytest.raises(InputError, match=r"^dropout_origin (is|holds) .*; expected (four integers|an array)"):
        banded_attention(X, X, X, window=1, dropout_rate=0.1, dropout_seed=1, dropout_origin=origin)  # pyrefly: ignore


# What a batch shares comes without its axis, so that its gradient is a sum over devices.
CHECKED = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from longformer_jax import banded_attention

rng = np.random.default_rng(0)
query, value = (rng.standard_normal((2, 700, 2, 8), np.float32) for _ in range(2))
key, shared_key = (rng.standard_normal(shape, np.float32) for shape in ((2, 700, 2, 5), (700, 3)))
key_mask = rng.random((2, 700)) > 0.1

def attend(axis_name, *arrays):
    def loss(query, key, value, shared_key, key_mask):
        options = {"window": 9, "dilation": (1, 2), "dropout_rate": 0.1, "dropout_seed": 3, "axis_name": axis_name}
        origin = (jax.lax.axis_index("batch"), 0, 0, 0) if axis_name is None and query.shape[0] == 1 else None
        out = banded_attention(
            query, key, value, shared_key=shared_key, key_mask=key_mask, dropout_origin=origin, **options
        )
        return jnp.sin(out).sum(), out
    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*arrays)
    return out, *grads

arrays = query, key, value, shared_key, key_mask
expected = jax.jit(lambda *arrays: attend(None, *arrays))(*arrays)
for name, axis_name, split, shared in (
    ("batch", None, P("batch"), P()),
    ("sequence", "sequence", P(None, "sequence"), P("sequence")),
):
    mesh = jax.make_mesh((2,), (name,), axis_types=(AxisType.Auto,))
    specs = (split, split, split, shared)
    run = jax.shard_map(
        lambda *arrays: attend(axis_name, *arrays), mesh=mesh, in_specs=(*specs, split), out_specs=(split, *specs)
    )
    for x, y in zip(jax.jit(run)(*arrays), expected, strict=True):
        error = np.abs(x - y).max() / np.abs(y).max()
        assert error < 1e-5, (name, error)
print("right")
"""


@pytest.mark.slow
def test_inside_of_a_shard_map_that_checks(run_python: Callable) -> None:
    ran = run_python("-c", CHECKED)
    assert ran.stdout.splitlines()[-1:] == ["right"], ran.stderr
