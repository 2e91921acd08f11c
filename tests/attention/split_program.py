"""Holds `banded_attention` of parts of a sequence, on eight devices, to the dense reference of the whole.

    python -m tests.attention.split_program IMPLEMENTATION CASE…

A process of its own, as the number of devices is fixed with the first use of JAX.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from longformer_jax.attention import banded_attention
from tests.attention.cases import CASE, Case, compiled
from tests.collectives import bytes_sent

SHORT = Case(T=41, B=2, window=(9, 4), dilation=(1, 3), dropout_rate=0.3)
CASES = CASE | {
    # Three rows a device at a length of 24: what is seen comes from up to six devices away.
    "several_hops": dataclasses.replace(SHORT, T=24, window=(9, 4), dilation=(2, 1)),
    "ragged_end": SHORT,
    "documents": dataclasses.replace(SHORT, segments="shared", masked=True, dead_rows=True),
    "causal_shared": dataclasses.replace(SHORT, window=15, causal=True, R=5, dilation=1),
    "shared_by_heads_ahead": dataclasses.replace(SHORT, R=5, shared_by="heads", key_offset=13, window=(0, 6)),
    "far_behind": dataclasses.replace(SHORT, key_offset=-20, window=(3, 2), dead_rows=True),
}
DEVICES = 8


def padded(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def split_attention(case: Case, implementation: str) -> Any:
    """As `Case.attend`: each device gets its part of the arrays, filled up where the length is no multiple."""
    mesh = jax.make_mesh((DEVICES,), ("sequence",), axis_types=(AxisType.Auto,))
    length = -(-case.T // DEVICES) * DEVICES
    options: dict[str, Any] = dict(case.options)
    key_mask = jnp.asarray(options.pop("key_mask", np.ones((case.B, case.T), bool)))
    ids = jnp.asarray(options.pop("segment_ids", np.zeros((case.B, case.T), int)))
    ids = jnp.where(jnp.arange(length) < case.T, padded(ids, length), -1)

    def part(query, key, value, shared_key, key_mask, ids):
        return banded_attention(
            query, key, value, shared_key=shared_key, key_mask=key_mask, segment_ids=ids, **options,
            axis_name="sequence", return_lse=True, implementation=implementation,
        )  # fmt: skip

    def attend(query, key, value, shared_key=None):
        rows = [padded(x, length) for x in (query, key, value, key_mask)]
        if shared_key is not None:
            shared_key = padded(shared_key, length) if shared_key.ndim == 3 else padded(shared_key[None], length)[0]
        split = P(None, "sequence")
        shared = split if shared_key is not None and shared_key.ndim == 3 else P("sequence")
        whole = jax.shard_map(
            part, mesh=mesh, in_specs=(split,) * 3 + (shared, split, split), out_specs=split, check_vma=False
        )
        return tuple(x[:, : case.T] for x in whole(*rows[:3], shared_key, rows[3], ids))

    return attend


def largest_difference(case: Case, implementation: str) -> float:
    """Of values, log-sum-exps and gradients from the reference's, by the largest of each."""
    inputs, cotangents = case.inputs(), case.cotangents()
    found = compiled(split_attention(case, implementation))(inputs, cotangents)
    expected = compiled(case.attend("reference"))(inputs, cotangents)
    differences = []
    for name, truth in expected.items():
        unseen = np.isinf(truth)
        assert (np.isinf(found[name]) == unseen).all(), name
        scale = max(1.0, np.abs(truth[~unseen]).max(initial=0))
        differences.append(np.abs(found[name] - truth)[~unseen].max(initial=0) / scale)
    return float(np.max(differences))  # Python's max passes over NaN


def edges_sent(length: int) -> int:
    """Bytes that each device sends in forward and backward pass; fails where anything but edges is sent."""
    case = Case(T=length, window=(9, 4), dilation=(1, 3))

    def both(inputs, cotangents):
        outputs, pullback = jax.vjp(split_attention(case, "xla"), *inputs)
        return outputs, pullback(cotangents)

    sent = bytes_sent(jax.jit(both).lower(case.inputs(), case.cotangents()).compile().as_text())
    assert {what.split()[0] for what in sent} == {"collective-permute"}, sent
    return sum(sent.values())


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    implementation, *names = sys.argv[1:]
    print(json.dumps({name: largest_difference(CASES[name], implementation) for name in names}))
    print(json.dumps([edges_sent(length) for length in (64, 512)]))
