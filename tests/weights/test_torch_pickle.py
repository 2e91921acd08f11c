"""PyTorch's files without PyTorch: golden ones, damaged ones, hostile ones."""

import pickle
import random
import sys
import zipfile
from pathlib import Path

import ml_dtypes  # noqa: F401, for bfloat16 in safetensors.numpy
import numpy as np
import pytest
import torch_archive
from safetensors.numpy import load_file

from longformer_jax import InputError
from longformer_jax.weights.torch_pickle import read_torch_file

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_files"
FORMATS = ("zip.bin", "legacy.bin")
NUMBERS = np.arange(6, dtype=np.float32)


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor.read()) for name, tensor in read_torch_file(path).items()}


@pytest.mark.parametrize("name", [*FORMATS, "protocol_4.bin"])
def test_golden_files(name: str) -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    stored = read_torch_file(GOLDEN / name)
    assert list(stored)[:3] == ["contiguous", "transposed", "first_rows"]
    assert stored.keys() == expected.keys()
    for key, tensor in stored.items():
        x = tensor.read()
        assert tensor.shape == x.shape == expected[key].shape, key
        assert tensor.dtype == x.dtype.name == expected[key].dtype.name, key
        assert x.tobytes() == expected[key].tobytes(), key
        assert x.size == 0 or not x.flags.writeable, key


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(tmp_path: Path, name: str) -> None:
    content = (GOLDEN / name).read_bytes()
    for length in [*range(0, len(content), 23), len(content) - 1]:
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(InputError, match=rf"{name} is damaged \(.*\); expected a whole file of torch.save"):
            read_all(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes(tmp_path: Path, name: str) -> None:
    content = (GOLDEN / name).read_bytes()
    expected = read_all(GOLDEN / name)
    rng = random.Random(0)
    undetected = 0
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(changed)
        try:
            found = read_all(tmp_path / name)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            undetected += any(key not in found or x.tobytes() != found[key].tobytes() for key, x in expected.items())
    if name == "zip.bin":  # it has checksums
        assert undetected == 0


def test_a_memo_of_two_billion_entries_takes_no_memory(tmp_path: Path) -> None:
    pickled = torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,)) + b"r\xff\xff\xff\x7f")
    path = torch_archive.write_zip(tmp_path / "a.bin", pickled, {"0": NUMBERS.tobytes()})
    assert read_all(path)["x"].tolist() == NUMBERS.tolist()


class Hostile:
    """Leaves a file behind where its pickle is executed."""

    def __init__(self, path: Path, function):
        self.call = function, (f"touch {path}",)

    def __reduce__(self):
        return self.call


def legacy(path: Path, pickled: bytes) -> Path:
    return torch_archive.write_legacy(path, pickled, {"0": (6, NUMBERS.tobytes())})


def archived(path: Path, pickled: bytes) -> Path:
    return torch_archive.write_zip(path, pickled, {"0": NUMBERS.tobytes()})


@pytest.mark.parametrize("write", [legacy, archived])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_no_pickle_is_executed(tmp_path: Path, write, protocol: int) -> None:
    import os

    canary = tmp_path / "canary"
    pickled = pickle.dumps({"x": Hostile(canary, os.system)}, protocol)
    pickle.loads(pickled)
    assert canary.exists()  # so it would
    canary.unlink()
    path = write(tmp_path / "a.bin", pickled)
    message = "the protocol of the pickle in .* is 0" if protocol == 0 else "a.bin asks for posix.system; expected a pi"
    with pytest.raises(InputError, match=message):
        read_all(path)
    assert not canary.exists()


@pytest.mark.parametrize("write", [legacy, archived])
@pytest.mark.parametrize(
    "function", ["os system", "builtins eval", "torch load", "torch._utils _rebuild_sparse_tensor", "numpy dtype"]
)
def test_other_names_are_refused(tmp_path: Path, write, function: str) -> None:
    pickled = torch_archive.state_dict(
        x=torch_archive.tensor(6, 0, (6,), (1,)), y=torch_archive.call(function, torch_archive.push("1"))
    )
    with pytest.raises(InputError, match=f"asks for {function.replace(' ', '.')}; expected a pickle of tensors alone"):
        read_torch_file(write(tmp_path / "a.bin", pickled))


def test_no_module_is_imported(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "canary_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = archived(tmp_path / "a.bin", torch_archive.state_dict(x=torch_archive.name("canary_module x")))
    with pytest.raises(InputError, match="asks for canary_module.x"):
        read_torch_file(path)
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize("write", [legacy, archived])
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (2, 3), (10**9, 1)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2**62, 8), (0, 0)),
        (0, (2**24, 2**25), (0, 0)),
        (0, (2, 3), (1,)),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, 6, 1),
        ("0", (6,), (1,)),
        (0, [[6]], [[1]]),
    ],
)
def test_tensors_outside_their_storage(tmp_path: Path, write, offset, shape, strides) -> None:
    path = write(tmp_path / "a.bin", torch_archive.state_dict(x=torch_archive.tensor(6, offset, shape, strides)))
    with pytest.raises(InputError, match="a.bin is damaged"):
        read_torch_file(path)  # before anything is read


@pytest.mark.parametrize("count", [0, 5, 7, 2**40, -1, 2**62])
@pytest.mark.parametrize("write", [legacy, archived])
def test_storages_of_another_size(tmp_path: Path, write, count: int) -> None:
    path = write(tmp_path / "a.bin", torch_archive.state_dict(x=torch_archive.tensor(count, 0, (0,), (1,))))
    with pytest.raises(InputError, match="a.bin is damaged"):
        read_all(path)
    if write is legacy:  # the second number of elements too
        pickled = torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,)))
        torch_archive.write_legacy(path, pickled, {"0": (count, NUMBERS.tobytes())})
        with pytest.raises(InputError, match="a.bin is damaged"):
            read_all(path)


def test_tensors_of_too_many_axes(tmp_path: Path) -> None:
    path = archived(tmp_path / "a.bin", torch_archive.state_dict(x=torch_archive.tensor(6, 0, (1,) * 100, (1,) * 100)))
    with pytest.raises(InputError, match="a.bin is damaged"):
        read_all(path)


def test_storages_that_do_not_fit_their_pickle(tmp_path: Path) -> None:
    one = torch_archive.tensor(6, 0, (6,), (1,))
    for pickled, storages in [
        (torch_archive.state_dict(x=one), {}),
        (torch_archive.state_dict(x=one, y=torch_archive.tensor(3, 0, (3,), (1,))), {"0": NUMBERS.tobytes()}),
        (torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,), key="../data.pkl")), {"0": b""}),
        (torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,), key=[0])), {"0": b""}),
        (torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,), type_="torch._utils _rebuild_tensor")), {}),
    ]:
        with pytest.raises(InputError, match="is damaged"):
            read_all(torch_archive.write_zip(tmp_path / "a.bin", pickled, storages))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    zeros = 1 << 22
    pickled = torch_archive.state_dict(x=torch_archive.tensor(zeros, 0, (zeros,), (1,)))
    path = torch_archive.write_zip(tmp_path / "a.bin", pickled, {"0": bytes(4 * zeros)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="is damaged"):
        read_all(path)
    # The storage alone.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(4 * zeros), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is damaged"):
        read_all(path)


def test_pickles_of_something_else(tmp_path: Path) -> None:
    one = torch_archive.tensor(6, 0, (6,), (1,))
    deep = b"\x80\x02}" + b")" + b"\x85" * 100_000 + torch_archive.push(1) + b"s."
    for pickled, message in [
        (torch_archive.state_dict(), "holds no tensors at its top level; expected a state dict"),
        (torch_archive.state_dict(x=torch_archive.push(1)), "holds no tensors"),
        (torch_archive.state_dict(model=torch_archive.state_dict(x=one)[2:-1]), "holds no tensors"),
        (b"\x80\x02]" + one + b"a.", "holds no tensors"),
        (deep, "other keys than text"),
        (b"\x80\x02" + one + torch_archive.push("x") + torch_archive.push(1) + b"s.", "is damaged"),
        (b"\x80\x02.", "is damaged"),
        (b"", "is damaged"),
        (pickle.dumps({"x": 1}, 4), "holds no tensors"),
        (b"\x80\x04\x8c\x01x\x93.", "is damaged"),
        (b"\x80\x04\x8c\x01xK\x01\x93.", "is damaged"),
        (b"\x80\x05\x97.", "is damaged .its pickle has the opcode NEXT_BUFFER"),
        (b"\x80\x02N)R.", "is damaged"),
        (torch_archive.state_dict(x=torch_archive.call(torch_archive.REBUILD)), "is damaged"),
    ]:
        with pytest.raises(InputError, match=message):
            read_torch_file(archived(tmp_path / "a.bin", pickled))


@pytest.mark.parametrize(("protocol", "opcode"), [(0, "DICT"), (1, "INT")])
def test_pickles_of_an_old_protocol(tmp_path: Path, protocol: int, opcode: str) -> None:
    path = archived(tmp_path / "a.bin", pickle.dumps({"x": True}, protocol))
    with pytest.raises(InputError) as raised:
        read_torch_file(path)
    assert str(raised.value) == (
        f"the protocol of the pickle in {path} is 0 or 1 (it has the opcode {opcode}); expected 2, which torch.save "
        "writes unless told otherwise, to 5"
    )
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol))  # as a file of PyTorch before 1.6 begins
    with pytest.raises(InputError, match="the protocol of the pickle in .* is 0 or 1 .it has the opcode LONG"):
        read_torch_file(path)


def test_numbers_of_a_big_endian_machine(tmp_path: Path) -> None:
    pickled = torch_archive.state_dict(x=torch_archive.tensor(6, 0, (6,), (1,)))
    swapped = NUMBERS.astype(">f4").tobytes()
    path = torch_archive.write_zip(tmp_path / "a.bin", pickled, {"0": swapped}, byteorder=b"big")
    with pytest.raises(InputError, match="big-endian machine; expected little-endian numbers"):
        read_torch_file(path)
    torch_archive.write_legacy(path, pickled, {"0": (6, swapped)}, little_endian=False)
    with pytest.raises(InputError, match="big-endian machine; expected little-endian numbers"):
        read_torch_file(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_torch_file(tmp_path / "a.bin")
