"""Meshes, the placement of parameters and batches, and the same losses on any number of devices."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from longformer_jax.errors import InputError
from longformer_jax.training import MeshConfig
from longformer_jax.training.sharding import accumulation_steps, make_mesh, put_batch, state_shardings
from longformer_jax.training.step import abstract_params
from tests.training.tiny import CONFIG


def test_mesh_takes_all_devices() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == {"data": jax.device_count(), "fsdp": 1}
    assert dict(make_mesh(MeshConfig(data=1, fsdp=-1)).shape) == {"data": 1, "fsdp": jax.device_count()}


@pytest.mark.parametrize("config", [MeshConfig(data=2), MeshConfig(fsdp=3), MeshConfig(data=4, fsdp=-1)])
def test_mesh_that_the_devices_do_not_fill(config: MeshConfig) -> None:
    with pytest.raises(
        InputError, match=r"^mesh is data=.* by fsdp=.*; expected their product to be 1, the number of dev"
    ):
        make_mesh(config)


def test_matrices_of_layers_are_split_and_the_rest_is_replicated() -> None:
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"))
    params = abstract_params(CONFIG)
    state = {"params": params, "opt_state": ({"mu": params},), "step": jax.ShapeDtypeStruct((), np.int32)}
    shardings: Any = state_shardings(mesh, state)  # pyrefly: ignore[bad-argument-type]
    split, whole = P(None, "fsdp"), P()
    kernel, norm = {"kernel": split}, {"bias": whole, "scale": whole}
    biases = {"relative": split, "u": whole, "v": whole}
    mlp = kernel | {"bias": whole}
    layers = {"attention_norm": norm, "attention_out": kernel, "mlp_in": mlp, "mlp_norm": norm, "mlp_out": mlp}
    expected = {"embed": {"embedding": whole}, "final_norm": norm, "layers": layers | biases | {"qkv": kernel}}
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    assert specs == {"params": expected, "opt_state": ({"mu": expected},), "step": whole}


def test_matrix_that_the_mesh_cannot_split() -> None:
    mesh = jax.sharding.AbstractMesh((1, 3), ("data", "fsdp"))
    message = r"^mesh\.fsdp is 3; expected a divisor of 16, as params/layers/attention_out/kernel is \(2, 16, 16\)$"
    with pytest.raises(InputError, match=message):
        state_shardings(mesh, {"params": abstract_params(CONFIG)})  # pyrefly: ignore[bad-argument-type]


@pytest.mark.parametrize(
    ("batch_size", "most", "devices", "expected"),
    [
        (8, None, 1, 1),
        (8, 8, 1, 1),
        (8, 100, 1, 1),
        (8, 4, 1, 2),
        (8, 5, 1, 2),
        (8, 3, 1, 4),
        (12, 5, 1, 3),
        (7, 2, 1, 7),
    ]
    + [(8, 4, 2, 1), (32, 3, 4, 4), (32, None, 8, 1)],
)
def test_accumulation_is_as_little_as_memory_allows(
    batch_size: int, most: int | None, devices: int, expected: int
) -> None:
    phase = dataclasses.replace(CONFIG.phases[0], batch_size=batch_size, sequences_per_device=most)
    mesh = jax.sharding.AbstractMesh((devices, 1), ("data", "fsdp"))
    assert accumulation_steps(dataclasses.replace(CONFIG, phases=(phase,)), 0, mesh) == expected  # pyrefly: ignore[bad-argument-type]


def test_batch_that_the_devices_cannot_share() -> None:
    mesh = jax.sharding.AbstractMesh((3, 1), ("data", "fsdp"))
    with pytest.raises(
        InputError, match=r"^phases\[1\]\.batch_size is 8; expected a multiple of 3, the number of devices$"
    ):
        accumulation_steps(CONFIG, 1, mesh)  # pyrefly: ignore[bad-argument-type]


def test_microbatches_take_every_nth_row() -> None:
    rows = np.arange(12 * 5, dtype=np.uint8).reshape(12, 5)
    batch = np.asarray(put_batch(rows, 3, make_mesh(MeshConfig())))
    assert batch.dtype == np.uint8 and batch.shape == (3, 4, 5)
    for microbatch in range(3):
        np.testing.assert_array_equal(batch[microbatch], rows[microbatch::3])


LOSSES = """
import dataclasses, json, sys, tempfile
import jax
data, fsdp = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", data * fsdp)
from longformer_jax.training import MeshConfig, train
from longformer_jax.training.step import abstract_params
from tests.training.tiny import CONFIG
with tempfile.TemporaryDirectory() as workdir:
    # Not accumulated, so that microbatches and with them dropout are the same on any number of devices.
    phase = dataclasses.replace(CONFIG.phases[0], sequences_per_device=None)
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=data, fsdp=fsdp), phases=(phase,), log_interval=1)
    state = train(config, workdir)
    with open(f"{workdir}/metrics.jsonl") as file:
        records = [json.loads(line) for line in file]
kernels = [x for path, x in jax.tree_util.tree_leaves_with_path(state["params"]["layers"]) if path[-1].key == "kernel"]
print(json.dumps({
    "train": [record["bpc"] for record in records if record["split"] == "train"],
    "validation": [record["bpc"] for record in records if record["split"] == "validation"],
    "parts": [x.size // x.addressable_shards[0].data.size for x in kernels],
}))
"""


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(run_python: Callable) -> None:
    def measure(data: int, fsdp: int) -> dict[str, list[float]]:
        result = run_python("-W", "error", "-c", LOSSES, data, fsdp)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    one = measure(1, 1)
    assert len(one["train"]) == 12 and len(one["validation"]) == 2
    assert one["train"][-1] < one["train"][0] - 0.5
    for data, fsdp in ((8, 1), (2, 4)):
        many = measure(data, fsdp)
        assert set(many["parts"]) == {fsdp}
        np.testing.assert_allclose(many["train"], one["train"], rtol=2e-5)
        np.testing.assert_allclose(many["validation"], one["validation"], rtol=2e-5)
