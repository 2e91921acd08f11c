"""Which files of a checkpoint are read, and what is said about bad ones."""

import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from longformer_jax import InputError
from longformer_jax.weights.tensor_files import has_tensors, read_tensors, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_files"
A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(3).astype(ml_dtypes.bfloat16)


def write_index(directory: Path, file_of: object, kind: str = "model.safetensors") -> None:
    (directory / f"{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": A, "unused": A}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": B}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return tmp_path


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_is_for_whom_other_files_are(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "tensors", {"a": A, "b": B}, {"format": "pt"})
        (tmp_path / "text").write_text("Read me.")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_one_file(tmp_path: Path) -> None:
    assert not has_tensors(tmp_path)
    save_file({"a": A, "b": B, "c": A.astype(np.int64)}, tmp_path / "model.safetensors")
    assert has_tensors(tmp_path)
    tensors = read_tensors(tmp_path)
    assert {name: (x.shape, x.dtype) for name, x in tensors.items()} == {
        "a": ((3, 4), "float32"),
        "b": ((3,), "bfloat16"),
        "c": ((3, 4), "I64"),
    }
    np.testing.assert_array_equal(tensors["a"].read(), A)
    assert tensors["b"].read().dtype == B.dtype
    np.testing.assert_array_equal(tensors["b"].read(), B)


def test_shards(sharded: Path) -> None:
    tensors = read_tensors(sharded)
    assert list(tensors) == ["a", "b"]
    np.testing.assert_array_equal(tensors["a"].read(), A)
    np.testing.assert_array_equal(tensors["b"].read(), B)


def test_shards_of_pickles(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "zip.bin", tmp_path / "pytorch_model-00001-of-00002.bin")
    shutil.copy(GOLDEN / "legacy.bin", tmp_path / "pytorch_model-00002-of-00002.bin")
    file_of = {"tied": "pytorch_model-00001-of-00002.bin", "transposed": "pytorch_model-00002-of-00002.bin"}
    write_index(tmp_path, file_of, "pytorch_model.bin")
    tensors = read_tensors(tmp_path)
    assert {name: x.read().shape for name, x in tensors.items()} == {"tied": (4, 3), "transposed": (5, 6)}


def test_safetensors_go_before_pickles(sharded: Path) -> None:
    (sharded / "pytorch_model.bin").write_bytes(b"not looked at")
    assert list(read_tensors(sharded)) == ["a", "b"]
    save_file({"whole": A}, sharded / "model.safetensors")
    assert list(read_tensors(sharded)) == ["whole"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no weights; expected model.safetensors, pytorch_model.bin"):
        read_tensors(tmp_path)


def test_damaged_safetensors(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"model.safetensors is damaged \(.*\); expected a whole safetensors file"):
            read_tensors(tmp_path)
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (tmp_path / "model.safetensors").write_bytes(changed)
        try:
            read = {name: x.read() for name, x in read_tensors(tmp_path).items() if x.dtype.startswith(("f", "b"))}
            assert sum(x.nbytes for x in read.values()) <= len(content)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("header", [b"[" * 200_000, b'{"a":' * 200_000, b'{"a": {"dtype": "F32", "shape": [1e30]}}'])
def test_hostile_safetensors(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match=r"model.safetensors is damaged \(.*\); expected a whole safetensors file"):
        read_tensors(tmp_path)


def test_a_shard_is_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00002.safetensors is missing; expected every file"):
        read_tensors(sharded)


def test_a_shard_lacks_a_tensor(sharded: Path) -> None:
    write_index(sharded, {"b": "model-00001-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"})
    with pytest.raises(InputError, match=r"has no tensor b; expected all .* \(2 tensors are missing\)"):
        read_tensors(sharded)


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", ".bin/..", "config.json", "a\0.bin"],
)
def test_files_elsewhere_are_refused(tmp_path: Path, file: str) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    directory = tmp_path / "model"
    directory.mkdir()
    write_index(directory, {"a": file})
    with pytest.raises(InputError, match="expected a file of its own directory"):
        read_tensors(directory)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"[" * 200_000, b"\xff"]
)
def test_damaged_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(InputError, match=r"index.json is damaged.*; expected (a JSON object|JSON with a weight_map)"):
        read_tensors(tmp_path)
