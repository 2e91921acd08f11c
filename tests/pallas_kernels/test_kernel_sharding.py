"""The kernels on several devices: to XLA they are black boxes, and must be told that batches can be split."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, numpy as np
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from longformer_jax import banded_attention

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
split, whole = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P())
B, T, H, D = 4, 72, 2, 16
rng = np.random.default_rng(0)
arrays = [jnp.array(rng.normal(size=(B, T, H, D)), jnp.float32) for _ in range(4)]
shared = jnp.array(rng.normal(size=(T, 8)), jnp.float32)  # on every device as a whole
mask = jnp.array(rng.random((B, T)) < 0.8)
ids = jnp.array(np.sort(rng.integers(0, 3, (B, T)), 1))

def run(query, key, value, dout, mask, ids, shared, implementation="pallas_triton_interpret"):
    def attend(query, key, value, shared):
        return banded_attention(
            query, key[..., :8], value, window=9, dilation=(1, 2), key_mask=mask, segment_ids=ids, dropout_rate=0.2,
            dropout_seed=3, shared_key=shared, implementation=implementation,
        )
    out, pullback = jax.vjp(attend, query, key, value, shared)
    return out, *pullback(dout)

def put(batches, others, *operands):
    return [jax.device_put(x, batches if len(x) == B else others) for x in operands]

operands = (*arrays, mask, ids, shared)
expected = jax.jit(run)(*operands)
compiled = jax.jit(run).lower(*put(split, whole, *operands)).compile()
*found, dshared = compiled(*put(split, whole, *operands))
text = compiled.as_text()
assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text, "arrays are gathered"
assert all(x.sharding.spec[0] == ("data", "fsdp") for x in found), [x.sharding for x in found]
for a, b in zip(found, expected):
    np.testing.assert_array_equal(a, b)
oracle = jax.jit(lambda *x: run(*x, implementation="reference"))(*operands)
for a, b in zip((*found, dshared), oracle):
    np.testing.assert_allclose(a, b, atol=1e-5)
# Sequences and heads that are sharded are gathered, and right.
other = [jax.device_put(x, NamedSharding(mesh, P(None, "data", "fsdp"))) for x in arrays]
for a, b in zip(jax.jit(run)(*other, mask, ids, shared)[:-1], expected):
    np.testing.assert_array_equal(a, b)
# A shared key with a part for each batch entry is split as they are.
operands = (*operands[:-1], jnp.array(rng.normal(size=(B, T, 8)), jnp.float32))
oracle = jax.jit(lambda *x: run(*x, implementation="reference"))(*operands)
for a, b in zip(jax.jit(run)(*put(split, whole, *operands)), oracle):
    np.testing.assert_allclose(a, b, atol=1e-5)
"""


@pytest.mark.slow
def test_batches_are_split_over_devices() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-3000:]
