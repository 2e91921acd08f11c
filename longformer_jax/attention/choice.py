"""Which implementation None means: what has been measured on this kind of GPU, or what the environment says.

choices/DEVICE.json, where DEVICE is the kind of GPU in lower case with "_" for anything else, holds the fastest of the
implementations that such a GPU has shown to be right: "DTYPE KEY_DIM VALUE_DIM" -> name, with "KEY_DIM+SHARED_DIM"
beside a shared key. `python -m benchmarks.gpu --choose` writes it. Head_dims that are not in the table count as the
next multiples of 64, to which the kernels fill them up. What is in no table is "xla".
"""

import functools
import json
import logging
import os
import re
from pathlib import Path

from longformer_jax.attention.pallas import default_device, device_lacks, unfit
from longformer_jax.errors import InputError

# Read when a call is traced, for the implementation of all calls that name none.
VARIABLE = "LONGFORMER_JAX_KERNELS"
KERNELS = {"triton": "pallas_triton", "hopper": "pallas_mosaic_gpu", "mma": "pallas_mosaic_mma"}
_FOLDER = Path(__file__).parent / "choices"
_logger = logging.getLogger(__name__)


def choose(dtype: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> str:
    """The name of the implementation for such arrays on the device that the code being traced is for.

    The dims are those of key, value and shared_key.

    Logs each choice once where there is one: on NVIDIA GPUs, and where the environment names kernels.

    Raises:
      InputError: the environment names what does not exist, or kernels that this device cannot run.
    """
    wanted, device = os.environ.get(VARIABLE) or "auto", default_device()
    shared = f" + {shared_dim} shared" * (shared_dim > 0)
    arrays = f"{dtype}, head_dim {key_dim}{shared}" + (f" and {value_dim}" if shared or value_dim != key_dim else "")
    if wanted not in ("auto", "xla", *KERNELS):
        raise InputError(f"{VARIABLE} is {wanted!r} in the environment; expected auto, xla, {', '.join(KERNELS)}")
    if wanted == "xla":
        return "xla"
    if wanted == "auto":
        table, dims = _table(table_path(device.kind)), (key_dim, value_dim, shared_dim)
        name = table.get(table_key(dtype, *map(filled_up, dims)), "xla")
        name = table.get(table_key(dtype, *dims), name)
        if name != "xla" and unfit(name, dtype, *dims):
            name = "xla"
        if name != "xla" and (reason := device_lacks(name)):  # of the CUDA here
            _log(f"attention: xla, not {name}, for {arrays} ({reason})")
            return "xla"
        if device.is_nvidia:
            why = "measured there"
            if name == "xla" and not table_path(device.kind).is_file():
                some = "hopper" if device.is_hopper else "triton"
                why = f"this kind of GPU has not gone through all cases of the kernels; {VARIABLE}={some} uses them"
            _log(f"attention: {name} on {device.kind} for {arrays} ({why})")
        return name
    name = KERNELS[wanted]
    if reason := device_lacks(name):
        raise InputError(f"{VARIABLE} is {wanted!r} in the environment, but {reason}")
    if reason := unfit(name, dtype, key_dim, value_dim, shared_dim):
        _log(f"attention: xla, not {wanted}, for {arrays} ({reason})")
        return "xla"
    _log(f"attention: {name} on {device.kind} for {arrays} ({VARIABLE}={wanted})")
    return name


def table_path(device_kind: str) -> Path:
    """Of the table for a kind of GPU, whether there is one or not."""
    return _FOLDER / f"{re.sub(r'\W+', '_', device_kind.lower())}.json"


def table_key(dtype: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> str:
    return f"{dtype} {key_dim}" + f"+{shared_dim}" * (shared_dim > 0) + f" {value_dim}"


def filled_up(dim: int) -> int:
    """The next multiple of 64."""
    return -(-dim // 64) * 64


@functools.cache
def _table(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.is_file() else {}


@functools.cache
def _log(line: str) -> None:
    _logger.info(line)
