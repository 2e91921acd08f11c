"""Which implementation None means."""

import json
import logging
import re
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from longformer_jax import banded_attention
from longformer_jax.attention import api, choice
from longformer_jax.command_line import print_log
from longformer_jax.errors import InputError

H100, A100, MI300X = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "AMD Instinct MI300X"
ARRAYS = "bfloat16", 64, 64


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    choice._log.cache_clear()
    yield
    choice._table.cache_clear()


def chosen(kind: str, *arrays, platform: str = "gpu") -> str:
    device = AbstractDevice(device_kind=kind, num_cores=132, platform=platform)
    mesh = AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return choice.choose(*(arrays or ARRAYS))


@pytest.mark.parametrize(
    ("kind", "platform"), [(H100, "gpu"), (A100, "gpu"), (MI300X, "gpu"), ("TPU v5", "tpu"), ("cpu", "cpu")]
)
def test_what_has_not_been_measured_is_left_to_xla(kind: str, platform: str) -> None:
    assert choice.table_path(kind).is_file() or chosen(kind, platform=platform) == "xla"


def test_what_has_been_measured_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_FOLDER", tmp_path)
    table = {"bfloat16 64 64": "pallas_mosaic_gpu", "float32 64 64": "pallas_triton"}
    choice.table_path(H100).write_text(json.dumps(table))
    assert choice.table_path(H100).name == "nvidia_h100_80gb_hbm3.json"
    assert chosen(H100) == "pallas_mosaic_gpu"
    assert chosen(H100, "float32", 64, 64) == "pallas_triton"
    assert chosen(H100, "bfloat16", 128, 64) == chosen(A100) == "xla"
    # The kernels fill head_dims up; and what is measured itself comes first.
    table |= {"bfloat16 64+128 64": "pallas_mosaic_gpu", "bfloat16 32 32": "pallas_triton"}
    choice.table_path(H100).write_text(json.dumps(table))
    choice._table.cache_clear()
    assert chosen(H100, "bfloat16", 48, 40) == chosen(H100, "bfloat16", 64, 64, 126) == "pallas_mosaic_gpu"
    assert chosen(H100, "bfloat16", 32, 32) == "pallas_triton"
    assert chosen(H100, "bfloat16", 64, 64, 22) == chosen(H100, "bfloat16", 64, 64, 192) == "xla"
    monkeypatch.setenv(choice.VARIABLE, "xla")
    assert chosen(H100) == "xla"
    monkeypatch.setenv(choice.VARIABLE, "auto")
    assert chosen(H100) == "pallas_mosaic_gpu"


def test_the_tables_name_what_there_is() -> None:
    for file in choice._FOLDER.glob("*.json"):
        for key, name in json.loads(file.read_text()).items():
            assert re.fullmatch(rf"({'|'.join(api._DTYPES)}) \d+(\+\d+)? \d+", key) and name in api.IMPLEMENTATIONS


def test_the_environment_chooses_for_a_whole_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, name in choice.KERNELS.items():
        monkeypatch.setenv(choice.VARIABLE, wanted)
        assert chosen(H100) == name
    assert chosen(A100, "bfloat16", 128, 128) == "pallas_mosaic_mma"
    # What its kernels do not take is computed all the same.
    assert chosen(A100, "float32", 64, 64) == chosen(A100, "bfloat16", 160, 32) == "xla"
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert chosen(A100, "float32", 256, 256) == "pallas_triton" and chosen(A100, "float32", 264, 8) == "xla"


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        ("1", H100, "is '1' in the environment; expected auto, xla, triton, hopper, mma$"),
        (
            "hopper",
            A100,
            "is 'hopper' in the environment, but its kernels need an NVIDIA GPU of the Hopper gener",
        ),
        ("triton", MI300X, "is 'triton' in the environment, but its kernels need an NVIDIA GPU; this device is AMD"),
    ],
)
def test_what_the_device_cannot_have_is_refused(
    value: str, kind: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.VARIABLE, value)
    with pytest.raises(InputError, match=f"^{choice.VARIABLE} {sentence}"):
        chosen(kind)


def test_the_op_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = jax.ShapeDtypeStruct((1, 30, 2, 8), jnp.float32)
    monkeypatch.setenv(choice.VARIABLE, "mma")
    with pytest.raises(InputError, match="this device is cpu"):
        jax.eval_shape(lambda x: banded_attention(x, x, x, window=3), shape)
    named = jax.eval_shape(lambda x: banded_attention(x, x, x, window=3, implementation="xla"), shape)
    assert named.shape == shape.shape  # a name is what it says


def test_the_device_is_that_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the default device is another one; under jit it is not known where they are."""
    gpu = types.SimpleNamespace(platform="gpu", device_kind=H100, id=0)
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [gpu])
    monkeypatch.setenv(choice.VARIABLE, "mma")
    x = jnp.ones((1, 30, 2, 64), jnp.bfloat16)
    with pytest.raises(InputError, match="this device is cpu"):
        banded_attention(x, x, x, window=3)
    monkeypatch.setattr(api, "_select", lambda *arrays: lambda *_, **__: (choice.choose(*arrays[1:]), None))
    names = []
    jax.eval_shape(lambda x: names.append(banded_attention(x, x, x, window=3)), x)
    assert names == ["pallas_mosaic_mma"]


def test_the_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(choice, "_FOLDER", Path("nowhere"))
    with caplog.at_level(logging.INFO, logger="longformer_jax"):
        for _ in range(2):
            chosen("cpu", platform="cpu")
            chosen(H100)
        monkeypatch.setenv(choice.VARIABLE, "hopper")
        chosen(H100, "bfloat16", 128, 64)
        chosen(H100, "float32", 64, 64)
    assert caplog.messages == [
        f"attention: xla on {H100} for bfloat16, head_dim 64 (this kind of GPU has not gone through all cases "
        "of the kernels; LONGFORMER_JAX_KERNELS=hopper uses them)",
        f"attention: pallas_mosaic_gpu on {H100} for bfloat16, head_dim 128 and 64 (LONGFORMER_JAX_KERNELS=hopper)",
        "attention: xla, not hopper, for float32, head_dim 64 "
        "(the dtype is float32; the kernels take bfloat16 and float16)",
    ]


def test_the_scripts_print_the_log(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("longformer_jax")
    for name, value in {"level": logger.level, "propagate": True, "handlers": []}.items():
        monkeypatch.setattr(logger, name, value)
    print_log()
    print_log()
    monkeypatch.setenv(choice.VARIABLE, "mma")
    chosen(A100)
    assert capsys.readouterr().out == (
        f"attention: pallas_mosaic_mma on {A100} for bfloat16, head_dim 64 (LONGFORMER_JAX_KERNELS=mma)\n"
    )
