"""Writes files in the formats of torch.save, good ones and bad ones."""

import pickle
import struct
import zipfile
from pathlib import Path

REBUILD = "torch._utils _rebuild_tensor_v2"
STOP = b"."


def push(value: object) -> bytes:
    """The opcodes that put plain data on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def name(text: str) -> bytes:
    """The opcode that puts a global on the stack, as "module name"."""
    module, attribute = text.split(" ")
    return f"c{module}\n{attribute}\n".encode()


def call(function: str, *arguments: bytes) -> bytes:
    """The opcodes of a call."""
    return name(function) + b"(" + b"".join(arguments) + b"tR"


def storage(count: int, type_: str = "torch FloatStorage", key: object = "0") -> bytes:
    return b"(" + push("storage") + name(type_) + push(key) + push("cpu") + push(count) + b"tQ"


def tensor(count: int, offset: object, shape: object, strides: object, **kwargs) -> bytes:
    hooks = call("collections OrderedDict")
    return call(REBUILD, storage(count, **kwargs), push(offset), push(shape), push(strides), push(False), hooks)


def state_dict(**tensors: bytes) -> bytes:
    """A pickle of a dictionary."""
    return b"\x80\x02}" + b"".join(push(key) + value + b"s" for key, value in tensors.items()) + STOP


def write_zip(
    path: Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED, **extra: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        for key, content in extra.items():
            archive.writestr(f"archive/{key}", content)
    return path


def write_legacy(
    path: Path, pickled: bytes, storages: dict[str, tuple[int, bytes]], little_endian: bool = True
) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}]
    content = b"".join(pickle.dumps(x, 2) for x in head) + pickled + pickle.dumps(list(storages), 2)
    for count, numbers in storages.values():
        content += struct.pack("<q", count) + numbers
    path.write_bytes(content)
    return path
