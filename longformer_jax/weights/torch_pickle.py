"""Reads what PyTorch's `torch.save` wrote, without PyTorch, and without executing its pickle.

A file of torch.save is a pickle of tensors, whose numbers lie outside the pickle in *storages*: since PyTorch 1.6 both
are members of a zip archive, before that the storages follow the pickle. Unpickling runs a program, which may be
anyone's. So the pickle is interpreted here, by the few opcodes that describe tensors, and a name in it that is none of
torch.save's is refused.
"""

import contextlib
import functools
import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Buffer, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.models.checks import MAX_SIZE
from longformer_jax.weights.stored_tensor import StoredTensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_FUNCTIONS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
)


class _Global(NamedTuple):
    """A name in the pickle, never imported."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors by name; their numbers are read on demand, one storage at a time.

    Raises:
      InputError: the file is damaged, is no dictionary of tensors, or its pickle has more in it than tensors.
    """
    with _reading(path):
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        root, read_storage = _open_zip(path) if is_zip else _open_legacy(path)
        tensors = {name: x for name, x in root.items() if isinstance(x, _Tensor)} if isinstance(root, dict) else {}
        if not tensors:
            raise InputError(f"{path} holds no tensors at its top level; expected a state dict")
        cached = functools.lru_cache(maxsize=1)(read_storage)  # tensors of one storage mostly follow one another

        def read(tensor: _Tensor) -> np.ndarray:
            with _reading(path):
                return _view(tensor, cached(tensor.storage))

        return {
            name: StoredTensor(x.shape, x.storage.dtype.name, functools.partial(read, x)) for name, x in tensors.items()
        }


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file can lead to any
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}); expected a whole file of torch.save") from None


def _open_zip(path: Path) -> tuple[Any, Callable[[_Storage], Buffer]]:
    archive = zipfile.ZipFile(path)
    (pickle_name,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
    folder = pickle_name.removesuffix("data.pkl")

    def read_member(name: str, size: int | None = None) -> bytes:
        member = archive.getinfo(folder + name)
        # Nothing is compressed, so no member is larger than the file.
        if member.compress_type != zipfile.ZIP_STORED or size not in (None, member.file_size):
            raise ValueError(f"{member.filename} has {member.file_size} bytes, compressed or not as many as {size}")
        return archive.read(member)

    if folder + "byteorder" in archive.namelist() and read_member("byteorder") != b"little":
        raise InputError(f"{path} was written by a big-endian machine; expected little-endian numbers")
    root, storages = _unpickle(io.BytesIO(read_member("data.pkl")), path)
    for storage in storages.values():
        size = archive.getinfo(f"{folder}data/{storage.key}").file_size
        if size != storage.nbytes:
            raise ValueError(f"storage {storage.key} has {size} bytes, not {storage.count} of {storage.dtype}")

    def read_storage(storage: _Storage) -> Buffer:
        return read_member(f"data/{storage.key}", storage.nbytes)

    return root, read_storage


def _open_legacy(path: Path) -> tuple[Any, Callable[[_Storage], Buffer]]:
    with path.open("rb") as file:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, protocol, system = (_unpickle(data, path)[0] for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise ValueError("its first bytes are not torch.save's")
    if system["little_endian"] is not True:
        raise InputError(f"{path} was written by a big-endian machine; expected little-endian numbers")
    root, storages = _unpickle(data, path)
    keys, _ = _unpickle(data, path)

    offsets, position = {}, data.tell()
    for key in keys:
        (count,) = struct.unpack_from("<q", data, position)
        if count != storages[key].count:
            raise ValueError(f"storage {key} has {count} elements, not {storages[key].count}")
        offsets[key] = position + 8
        position = offsets[key] + storages[key].nbytes
    if storages.keys() - offsets.keys() or position > len(data):
        raise ValueError(f"{len(data)} bytes are too few for its storages")

    def read_storage(storage: _Storage) -> Buffer:
        return memoryview(data)[offsets[storage.key] :][: storage.nbytes]

    return root, read_storage


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_PUSHES_ITS_ARGUMENT = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)


def _unpickle(file: BinaryIO, path: Path) -> tuple[Any, dict[str, _Storage]]:
    """What the pickle at the file's position describes, and the storages in it by their keys."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}
    is_old = True

    def pop(count: int) -> list[Any]:
        popped = [stack.pop() for _ in range(count)]
        return popped[::-1]

    def pop_to_mark() -> list[Any]:
        popped = []
        while (item := stack.pop()) is not _MARK:
            popped.append(item)
        return popped[::-1]

    for opcode, found, _ in pickletools.genops(file):
        argument: Any = found  # of the type that the opcode has
        match opcode.name:
            case "PROTO":  # with which every pickle begins since protocol 2
                is_old = False
            case "FRAME":  # protocol 4 only cuts the same opcodes into frames
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _PUSHES_ITS_ARGUMENT:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "SETITEM":
                _set_items(pop(2), stack[-1])
            case "SETITEMS":
                _set_items(pop_to_mark(), stack[-1])
            case "APPEND":
                _append(pop(1), stack[-1])
            case "APPENDS":
                _append(pop_to_mark(), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", "."), path))
            case "STACK_GLOBAL":
                stack.append(_global(".".join(pop(2)), path))
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"storage {storage.key} is described in two ways")
                stack.append(storage)
            case "REDUCE":
                stack.append(_call(*pop(2)))
            case "BUILD":  # what an OrderedDict has beside its items: versions of modules
                stack.pop()
            case "STOP":
                return stack.pop(), storages
            case _ if is_old:
                raise InputError(
                    f"the protocol of the pickle in {path} is 0 or 1 (it has the opcode {opcode.name}); expected 2, "
                    "which torch.save writes unless told otherwise, to 5"
                )
            case _:
                raise ValueError(f"its pickle has the opcode {opcode.name}")
    raise AssertionError("unreachable: genops ends with STOP or raises")


def _global(name: str, path: Path) -> _Global:
    if name not in _FUNCTIONS and name not in _STORAGE_DTYPES:
        raise InputError(
            f"{path} asks for {name}; expected a pickle of tensors alone, which needs no such thing (nothing of it was "
            "executed)"
        )
    return _Global(name)


def _set_items(keys_and_values: list[Any], target: object) -> None:
    keys, values = keys_and_values[::2], keys_and_values[1::2]
    if type(target) is not dict or not all(type(key) is str for key in keys):
        raise ValueError("its pickle has a dictionary with other keys than text")
    target.update(zip(keys, values, strict=True))


def _append(items: list[Any], target: object) -> None:
    if type(target) is not list:
        raise ValueError("its pickle appends to what is no list")
    target.extend(items)


def _storage(identity: Any) -> _Storage:
    """From ("storage", type, key, device, number of elements); old files end with None, for being no view."""
    kind, type_, key, _, count, *view = identity
    if kind != "storage" or type(key) is not str or type(count) is not int or count < 0 or view not in ([], [None]):
        raise ValueError("its pickle describes a storage in another way")
    return _Storage(key, _STORAGE_DTYPES[type_.name], count)


def _call(function: Any, arguments: Any) -> Any:
    """What a function of `_FUNCTIONS` would give."""
    match function.name:
        case "collections.OrderedDict" if arguments == ():
            return {}
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            return _tensor(*arguments[:4])
        case "torch._utils._rebuild_parameter":
            return arguments[0]
    raise ValueError(f"its pickle calls {function.name} in another way")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """A tensor that is seen to lie inside its storage."""
    numbers = (offset, *shape, *strides)
    if type(storage) is not _Storage or not all(type(x) is int and x >= 0 for x in numbers):
        raise ValueError("its pickle describes a tensor in another way")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # An expanded tensor has more elements than its storage; beyond what a parameter can have they are a trap.
    if math.prod(shape) > MAX_SIZE**2 or (0 not in shape and last >= storage.count):
        raise ValueError(f"a tensor {list(shape)} sticks out of storage {storage.key} of {storage.count} elements")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _view(tensor: _Tensor, storage: Buffer) -> np.ndarray:
    dtype = tensor.storage.dtype
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    # The constructor checks the bounds once more.
    return np.ndarray(tensor.shape, dtype, storage, tensor.offset * dtype.itemsize, strides)
