"""The way from the op to the GPU kernels: what they need, whether this device and call can have them."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax._src.lib  # knows CUDA's version, as nothing public does

from longformer_jax.attention.band import Band
from pallas_kernels import mosaic, triton
from pallas_kernels.dropout import Streams
from pallas_kernels.spec import Limits, Spec

AMPERE, HOPPER = 8.0, 9.0  # compute capabilities: of the oldest GPUs, and of the only ones with their instructions

_INTERPRETED_CORES = 2  # so that each has several items to go through
_H100_CORES = 132  # where JAX does not tell

# Outside of jit each call would compile the kernels anew; inside it is as if this were not here.
_jit = functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
_triton_attention, _mosaic_attention = _jit(triton.attention), _jit(mosaic.attention)


class Device(NamedTuple):
    """What JAX tells of a device. None: not known."""

    platform: str
    kind: str
    compute_capability: str | None
    num_cores: int | None

    def __str__(self) -> str:
        return f"{self.kind} ({self.platform})"

    @property
    def is_nvidia(self) -> bool:
        return self.platform in ("gpu", "cuda") and "nvidia" in self.kind.lower()

    @property
    def is_hopper(self) -> bool:
        if self.compute_capability is not None:
            return self.is_nvidia and float(self.compute_capability) == HOPPER
        return self.is_nvidia and any(name in self.kind for name in ("H100", "H200", "H800", "H20", "GH200"))


def default_device() -> Device:
    """Where the code being traced will run: the abstract device of the mesh in use, else the default device."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        capability = getattr(abstract, "compute_capability", None)
        return Device(abstract.platform, abstract.device_kind, capability, abstract.num_cores)
    device = jax.config.jax_default_device
    if isinstance(device, str) or device is None:
        device = jax.local_devices(backend=device)[0]
    known = (getattr(device, name, None) for name in ("compute_capability", "core_count"))
    return Device(device.platform, device.device_kind, *known)


@contextmanager
def at_home(x: Any) -> Iterator[None]:
    """A block whose default device is of the kind that an array lies on, where that is known: outside of jit."""
    devices = [] if isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array) else x.sharding.addressable_devices
    device = min(devices, key=lambda device: device.id, default=None)
    if device is None or device.device_kind == default_device().kind:
        yield
    else:
        with jax.default_device(device):
            yield


def device_lacks(name: str) -> str | None:
    """Why this device, with the CUDA here, cannot run the kernels of an implementation at all; None where it can."""
    device = default_device()
    if name == "pallas_mosaic_gpu" and not device.is_hopper:
        return f"its kernels need an NVIDIA GPU of the Hopper generation; this device is {device}"
    return _too_old(device) or (None if name == "pallas_triton" else _miscompiled())


def unfit(name: str, dtype: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> str | None:
    """Why the kernels of an implementation cannot take such arrays on any device; None where they can."""
    if name == "pallas_triton":
        return triton.unsupported(key_dim, value_dim, shared_dim)
    return mosaic.unsupported(dtype, key_dim, value_dim, shared_dim)


def _too_old(device: Device) -> str | None:
    if not device.is_nvidia:
        return f"its kernels need an NVIDIA GPU; this device is {device}"
    capability = device.compute_capability
    if capability is not None and float(capability) < AMPERE:
        return f"its kernels need compute capability {AMPERE}; this device, {device.kind}, has {capability}"
    return None


def _miscompiled() -> str | None:
    """Whether CUDA's version is one with which JAX refuses its own kernels of Mosaic's; None where there is no CUDA."""
    cuda = jax._src.lib.cuda_versions
    version = None if cuda is None else cuda.cuda_runtime_get_version()
    if version is None or not 12080 <= version < 12091:
        return None
    number = f"{version // 1000}.{version % 1000 // 10}.{version % 10}"
    return f"CUDA {number} is installed, and from 12.8.0 to 12.9.0 its assembler miscompiles such kernels"


def triton_attention(
    query, key, value, *, shared_key=None, interpret: bool = False, **options
) -> tuple[jax.Array, jax.Array]:
    """Shapes as in `banded_attention`, but shared_key [B or 1, S, R]; returns (out, lse).

    Raises:
      NotImplementedError: the device or the head_dims are none that the kernels support.
    """
    _check("pallas_triton", key, value, shared_key, interpret)
    spec, limits = _spec_and_limits(query, interpret=interpret, **options)
    return _triton_attention(spec, default_device().kind, query, key, value, shared_key, limits)


def hopper_attention(
    query, key, value, *, shared_key=None, interpret: bool = False, overlap: bool = True, **options
) -> tuple[jax.Array, jax.Array]:
    """Shapes as in `triton_attention`; returns (out, lse). `overlap` is that of `mosaic.Gpu`.

    Raises:
      NotImplementedError: the device, the dtype or the head_dims are none that the kernels support.
    """
    _check("pallas_mosaic_gpu", key, value, shared_key, interpret)
    spec, limits = _spec_and_limits(query, interpret=interpret, **options)
    return _mosaic(spec, hopper_gpu(interpret)._replace(overlap=overlap), query, key, value, shared_key, limits)


def mma_attention(
    query, key, value, *, shared_key=None, interpret: bool = False, **options
) -> tuple[jax.Array, jax.Array]:
    """As `hopper_attention`, with the kernels for any GPU."""
    _check("pallas_mosaic_mma", key, value, shared_key, interpret)
    spec, limits = _spec_and_limits(query, interpret=interpret, **options)
    return _mosaic(spec, mma_gpu(interpret), query, key, value, shared_key, limits)


def _mosaic(spec: Spec, gpu: mosaic.Gpu, *arrays) -> tuple[jax.Array, jax.Array]:
    # Its interpreter needs the threads that a program with several kernels would take.
    attend = mosaic.attention if spec.interpret else _mosaic_attention
    return attend(spec, gpu, *arrays)


def hopper_gpu(interpret: bool = False) -> mosaic.Gpu:
    """What the Hopper kernels run on."""
    return mosaic.Gpu(_INTERPRETED_CORES if interpret else default_device().num_cores or _H100_CORES)


def mma_gpu(interpret: bool = False) -> mosaic.Gpu:
    """What the kernels for any GPU run on."""
    capability = None if interpret else default_device().compute_capability
    # Where JAX does not tell, Mosaic GPU compiles for Hopper; and its interpreter knows only TMA.
    has_tma = capability is None or float(capability) >= HOPPER
    return hopper_gpu(interpret)._replace(has_tma=has_tma, has_wgmma=False)


def _check(name: str, key: jax.Array, value: jax.Array, shared_key: jax.Array | None, interpret: bool) -> None:
    reason = None if interpret else device_lacks(name)
    shared_dim = 0 if shared_key is None else shared_key.shape[-1]
    reason = reason or unfit(name, str(key.dtype), key.shape[-1], value.shape[-1], shared_dim)
    if reason is not None:
        raise NotImplementedError(f"implementation {name!r} is not available here: {reason}")


def _spec_and_limits(
    query,
    *,
    band: Band,
    key_mask,
    segment_ids,
    scale: float,
    dropout_rate: float,
    dropout: Streams | None,
    interpret: bool,
) -> tuple[Spec, Limits]:
    spec = Spec(
        left=band.left,
        right=band.right,
        key_offset=band.key_offset,
        dilations=band.dilation,
        scale=float(scale),
        dropout_rate=dropout_rate,
        interpret=interpret,
    )
    return spec, Limits.of(query.shape[:2], key_mask, segment_ids, dropout)
