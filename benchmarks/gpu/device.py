"""What the device is, and the rates that everything else is measured by."""

import importlib.metadata
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.timing import measure_jax
from longformer_jax.attention.pallas import default_device

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "triton", "tokamax", "jax-linear-attention",
    "flash-attn",
)  # fmt: skip
_DRIVER = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]


def facts() -> dict[str, Any]:
    """Device, platform, versions and date."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.device_kind,
        "platform": device.platform,
        "is_hopper": default_device().is_hopper,
        "runtime": device.client.platform_version,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def prepare_rates(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return lambda: rates() | {"driver, clock, power": _driver()}


def _driver() -> str:
    try:
        return subprocess.run(_DRIVER, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def rates() -> dict[str, float]:
    """FLOPs per second of a large product in bfloat16, bytes per second that a copy reads and writes."""
    on_gpu = jax.devices()[0].platform == "gpu"
    size = 8192 if on_gpu else 256
    x, y = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    product = measure_jax(jnp.matmul, x, y)["milliseconds"] / 1e3
    z = jnp.zeros((2**28 if on_gpu else 2**16,), jnp.float32)
    copy = measure_jax(lambda z: -z, z)["milliseconds"] / 1e3
    return {"size": size, "flops_per_second": 2.0 * size**3 / product, "bytes_per_second": 2.0 * z.nbytes / copy}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
