"""Meshes, the placement of parameters and batches, and the same losses on any number of devices."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.errors import InputError
from longformer_jax.training import MeshConfig, train
from longformer_jax.training.sharding import (
    accumulation_steps,
    batch_share,
    evaluation_mesh,
    make_mesh,
    put_batch,
    state_shardings,
)
from longformer_jax.training.step import abstract_params
from tests.training import tiny_task
from tests.training.tiny import CONFIG


def abstract_mesh(data: int, fsdp: int = 1, sequence: int = 1, tensor: int = 1) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh((data, fsdp, sequence, tensor), ("data", "fsdp", "sequence", "tensor"))


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (MeshConfig(sequence=2), 4, (2, 2, 1)),
        (MeshConfig(data=1, sequence=-1), 4, (1, 4, 1)),
        (MeshConfig(data=1, fsdp=2, tensor=-1), 4, (2, 1, 2)),
        (MeshConfig(data=8, sequence=-1), 4, (4, 1, 1)),
        (MeshConfig(sequence=8), 4, (4, 1, 1)),
    ],
)
def test_evaluation_splits_sequences_as_training_if_it_can(
    config: MeshConfig,
    devices: int,
    expected: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="longformer_jax")
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * devices)
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, **_: dict(zip(axes, sizes, strict=True)))
    sizes: Any = evaluation_mesh(config, [32])
    assert tuple(sizes[axis] for axis in ("data", "sequence", "tensor")) == expected
    whole = "evaluation: every device has whole sequences, as sequence=8 does not fit 4 devices and sequences of 32"
    assert caplog.messages == [whole] * (config.sequence == 8)


def test_mesh_takes_all_devices() -> None:
    devices = jax.device_count()
    assert dict(make_mesh(MeshConfig()).shape) == {"data": devices, "fsdp": 1, "sequence": 1, "tensor": 1}
    for axis in ("fsdp", "sequence", "tensor"):
        assert make_mesh(MeshConfig(**{"data": 1, axis: -1})).shape[axis] == devices


@pytest.mark.parametrize("config", [MeshConfig(data=2, tensor=2), MeshConfig(fsdp=3), MeshConfig(data=4, sequence=-1)])
def test_mesh_that_the_devices_do_not_fill(config: MeshConfig) -> None:
    with pytest.raises(
        InputError, match=r"^mesh is data=.* by .*; expected the product to be 1, the number of devices that JAX sees$"
    ):
        make_mesh(config)


def test_matrices_of_layers_are_split_and_the_rest_is_replicated() -> None:
    mesh = abstract_mesh(2, 4)
    params = abstract_params(CONFIG)
    state = {"params": params, "opt_state": ({"mu": params},), "step": jax.ShapeDtypeStruct((), np.int32)}
    shardings: Any = state_shardings(mesh, state)  # pyrefly: ignore[bad-argument-type]
    whole, into_units, out_of_units = P(), P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
    by_unit, norm = P(None, "tensor"), {"bias": whole, "scale": whole}
    layers = {
        "attention_norm": norm,
        "qkv": {"kernel": P(None, "fsdp")},
        "relative": into_units,
        "u": by_unit,
        "v": by_unit,
        "attention_out": {"kernel": out_of_units},
        "mlp_norm": norm,
        "mlp_in": {"kernel": into_units, "bias": by_unit},
        "mlp_out": {"kernel": out_of_units, "bias": whole},
    }
    expected = {"embed": {"embedding": whole}, "final_norm": norm, "layers": layers}
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    assert specs == {"params": expected, "opt_state": ({"mu": expected},), "step": whole}


def test_matrix_that_the_mesh_cannot_split() -> None:
    mesh = abstract_mesh(1, 3)
    message = r"^mesh\.fsdp is 3; expected a divisor of 16, as params/layers/attention_out/kernel is \(2, 16, 16\)$"
    with pytest.raises(InputError, match=message):
        state_shardings(mesh, {"params": abstract_params(CONFIG)})  # pyrefly: ignore[bad-argument-type]


def test_parts_of_the_batch_that_two_processes_would_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(*mine: int) -> tuple[int, int]:
        indices = {f"device {part}": (slice(part, part + 1),) for part in mine}
        monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda *_: indices)
        return batch_share(abstract_mesh(6))

    assert [share(0, 1, 2), share(3, 4, 5), share(4, 5), share(0)] == [(0, 2), (1, 2), (2, 3), (0, 6)]
    for mine in ((1, 2), (2, 3, 4, 5), (0, 2), (0, 1, 2, 3)):
        with pytest.raises(
            InputError, match=f"^mesh splits batches into 6 parts, of which this process has {mine[0]}, "
        ):
            share(*mine)


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
    mesh = abstract_mesh(devices)
    assert accumulation_steps(dataclasses.replace(CONFIG, phases=(phase,)), 0, mesh) == expected  # pyrefly: ignore[bad-argument-type]


def test_lengths_that_the_mesh_cannot_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever rows, before the data are read."""
    monkeypatch.setattr("longformer_jax.training.loop.make_mesh", lambda _: abstract_mesh(1, sequence=3))
    monkeypatch.setattr("longformer_jax.training.loop.batch_share", lambda _: (0, 1))
    (phase,) = tiny_task.CONFIG.phases
    phases = (dataclasses.replace(phase, sequence_length=30),)
    config = dataclasses.replace(tiny_task.CONFIG, phases=phases, lengths=(16, 30))
    with pytest.raises(InputError, match=r"^phases\[0\] has sequences of 16 tokens; expected a multiple of mesh.seq"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_that_the_devices_cannot_share() -> None:
    mesh = abstract_mesh(3)
    with pytest.raises(
        InputError, match=r"^phases\[1\]\.batch_size is 8; expected a multiple of 3, the number of devices that it is"
    ):
        accumulation_steps(CONFIG, 1, mesh)  # pyrefly: ignore[bad-argument-type]


def test_sequence_that_the_devices_cannot_share() -> None:
    mesh = abstract_mesh(1, sequence=5)
    with pytest.raises(
        InputError, match=r"^phases\[0\] has sequences of 32 tokens; expected a multiple of mesh\.seq.*, 5$"
    ):
        accumulation_steps(CONFIG, 0, mesh)  # pyrefly: ignore[bad-argument-type]


def test_microbatches_take_every_nth_row() -> None:
    rows = np.arange(12 * 5, dtype=np.uint8).reshape(12, 5)
    batch = np.asarray(put_batch(rows, 3, make_mesh(MeshConfig())))
    assert batch.dtype == np.uint8 and batch.shape == (3, 4, 5)
    for microbatch in range(3):
        np.testing.assert_array_equal(batch[microbatch], rows[microbatch::3])


LOSSES = """
import dataclasses, json, math, pathlib, sys, tempfile
import jax
sizes = dict(zip(("data", "fsdp", "sequence", "tensor"), map(int, sys.argv[2:])))
jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
from longformer_jax.training import MeshConfig, train
from longformer_jax.training.step import abstract_params
from longformer_jax.evaluation import evaluate
from longformer_jax.tasks.triviaqa import TriviaQA
from tests.tasks import sets, test_coreference, test_hotpotqa, test_wikihop
from tests.training import tiny, tiny_masked, tiny_task
def questions(folder):
    for name in ("train.json", "dev.json"):
        (folder / name).write_text(json.dumps(test_wikihop.QUESTIONS))
    return folder
def by_heart(task, folder, data):
    return tiny_task.by_heart(task, data, folder / "cache", length=128, steps=6)
def muon(config):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name="muon"))
with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryDirectory() as data:
    folder = pathlib.Path(data)
    config = {
        "char_lm": lambda: tiny.CONFIG,
        "masked_lm": lambda: muon(tiny_masked.with_text(folder)),
        "task": lambda: tiny_task.with_data(folder),
        "coreference": lambda: by_heart(test_coreference.TASK, folder, test_coreference.written(folder / "data")),
        "wikihop": lambda: by_heart(test_wikihop.TASK, folder, questions(folder)),
        "hotpotqa": lambda: by_heart(test_hotpotqa.TASK, folder, test_hotpotqa.written(folder)),
        "triviaqa": lambda: by_heart(TriviaQA(), folder, sets.triviaqa(folder)),
    }[sys.argv[1]]()
    # Not accumulated, so that microbatches and with them dropout are the same on any number of devices.
    phase = dataclasses.replace(config.phases[0], sequences_per_device=None)
    config = dataclasses.replace(config, mesh=MeshConfig(**sizes), phases=(phase,), log_interval=1)
    state = train(config, workdir)
    with open(f"{workdir}/metrics.jsonl") as file:
        records = [json.loads(line) for line in file]
    protocol = {"protocol": "paper", "sequence_length": 64, "stride": 16, "limit": 800}
    options = protocol if sys.argv[1] == "char_lm" else {}
    found = dataclasses.asdict(evaluate(workdir, split="validation", **options))
    found |= found.pop("metrics", {})
    scores = ("bits_per_character", "bits_per_token", "loss")
leaves = [(jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(state["params"])]
kernels = [x for path, x in leaves if "layers" in path and "kernel" in path]
print(json.dumps({
    "train": [record[config.score] for record in records if record["split"] == "train"],
    "validation": [record[config.score] for record in records if record["split"] == "validation"],
    "evaluated": [found[score] for score in scores if score in found],
    "parts": [x.size // x.addressable_shards[0].data.size for x in kernels],
}))
"""


def measure(run_python: Callable, kind: str, *sizes: int) -> dict[str, list[float]]:
    result = run_python("-W", "error", "-c", LOSSES, kind, *sizes)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes", "steps"),
    [
        ("masked_lm", (1, 2, 2, 2), 12),
        ("task", (1, 2, 2, 2), 18),
        *(
            pytest.param(kind, (1, 1, 2, 2), 6, marks=pytest.mark.exhaustive)
            for kind in ("coreference", "wikihop", "hotpotqa", "triviaqa")
        ),
    ],
)
def test_split_sequences_give_the_losses_of_whole_ones(
    run_python: Callable, kind: str, sizes: tuple[int, ...], steps: int
) -> None:
    one, many = (measure(run_python, kind, *each) for each in ((1, 1, 1, 1), sizes))
    assert len(one["train"]) == steps and one["validation"] and len(one["evaluated"]) == 1
    for figures, expected in one.items():
        if figures != "parts":
            np.testing.assert_allclose(many[figures], expected, rtol=1e-4)


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(run_python: Callable) -> None:
    one = measure(run_python, "char_lm", 1, 1, 1, 1)
    assert len(one["train"]) == 12 and len(one["validation"]) == 2 and len(one["evaluated"]) == 1
    assert one["train"][-1] < one["train"][0] - 0.5
    for data, fsdp, sequence, tensor in ((4, 2, 1, 1), (1, 2, 2, 2)):
        many = measure(run_python, "char_lm", data, fsdp, sequence, tensor)
        assert set(many["parts"]) <= {fsdp, fsdp * tensor}
        np.testing.assert_allclose(many["train"], one["train"], rtol=2e-5)
        np.testing.assert_allclose(many["validation"], one["validation"], rtol=2e-5)
        np.testing.assert_allclose(many["evaluated"], one["evaluated"], rtol=2e-5)
