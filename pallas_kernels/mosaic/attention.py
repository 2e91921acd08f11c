"""Banded attention with its gradients, from its kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.backward import backward_dkdv, backward_dq, backward_dshared
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling, hopper_tiling, mma_tiling
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

DTYPES = ("bfloat16", "float16")
# Of key and value, and where there is a shared key of key, value and that; others are filled up with zeros.
HEAD_DIMS = ((64, 64), (128, 64), (128, 128))
SHARED_HEAD_DIMS = tuple((dim, dim, shared) for dim in (64, 128) for shared in (64, 128, 192))


def unsupported(dtype: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> str | None:
    """Why the kernels cannot take such arrays; None where they can."""
    if dtype not in DTYPES:
        return f"the dtype is {dtype}; the kernels take {' and '.join(DTYPES)}"
    if shared_dim > SHARED_HEAD_DIMS[-1][2]:
        return f"head_dim of shared_key is {shared_dim}; the kernels take up to {SHARED_HEAD_DIMS[-1][2]}"
    if (most := max(key_dim, value_dim)) > HEAD_DIMS[-1][0]:
        return f"head_dim is {most}; the kernels take up to {HEAD_DIMS[-1][0]}"
    return None


def filled_up_dims(key_dim: int, value_dim: int, shared_dim: int = 0) -> tuple[int, int, int]:
    """What the head_dims of key, value and shared key become."""
    some = SHARED_HEAD_DIMS if shared_dim else [(key, value, 0) for key, value in HEAD_DIMS]
    return next(x for x in some if x[0] >= key_dim and x[1] >= value_dim and x[2] >= shared_dim)


def attention(
    spec: Spec,
    gpu: Gpu,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    shared_key: jax.Array | None,
    limits: Limits,
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype and lse float32 [B, T, H], both differentiable in the four arrays.

    Args:
      spec: the band, scale and dropout.
      gpu: what runs the kernels.
      query, key, value: [B, T, H, Dk + R], [B, S, H, Dk], [B, S, H, Dv], of dtypes and head_dims that are supported.
      shared_key: [B or 1, S, R] of that dtype, or None, where R is 0.
      limits: key mask, documents and dropout seed.
    """
    key_dim, value_dim = key.shape[-1], value.shape[-1]
    dims = filled_up_dims(key_dim, value_dim, query.shape[-1] - key_dim)
    own = {"query": _filled_up(query[..., :key_dim], dims[0])}
    keys = {"key": _filled_up(key, dims[0]), "value": _filled_up(value, dims[1])}
    if shared_key is not None:
        own["query_shared"] = _filled_up(query[..., key_dim:], dims[2])
        keys["shared_key"] = _filled_up(shared_key[:, :, None], dims[2])
    out, lse = _attention(spec, gpu, own, keys, limits)
    return out[..., :value_dim], lse


def _filled_up(x: jax.Array, dim: int) -> jax.Array:
    missing = dim - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _walk(
    kernel: str, spec: Spec, gpu: Gpu, query: dict[str, jax.Array], keys: dict[str, jax.Array]
) -> tuple[Walk, Tiling | MmaTiling]:
    dims = (keys[name].shape[-1] if name in keys else 0 for name in ("key", "value", "shared_key"))
    tiles = (hopper_tiling if gpu.has_wgmma else mma_tiling)(kernel, *dims)
    if isinstance(tiles, Tiling) and not gpu.overlap:
        tiles = dataclasses.replace(tiles, overlap=False, turns=False)
    return spec.walk(kernel, query["query"], keys["key"], rows=tiles.rows, columns=tiles.columns), tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(spec: Spec, gpu: Gpu, query, keys, limits: Limits) -> tuple[jax.Array, jax.Array]:
    return forward(spec, *_walk("forward", spec, gpu, query, keys), query, keys, limits, gpu)


def _attention_forward(spec: Spec, gpu: Gpu, query, keys, limits: Limits):
    out, lse = _attention(spec, gpu, query, keys, limits)
    # Named so that a rematerialised layer can keep them: the backward then recomputes the projections only.
    out, lse = jax.ad_checkpoint.checkpoint_name(out, "attention"), jax.ad_checkpoint.checkpoint_name(lse, "attention")
    return (out, lse), (query, keys, limits, out, lse)


def _attention_backward(spec: Spec, gpu: Gpu, residuals, cotangents):
    query, keys, limits, out, lse = residuals
    dout, dlse = cotangents
    rows = {"out": out, "dout": dout, "lse": lse, "dlse": dlse}
    dq, terms = backward_dq(spec, *_walk("dq", spec, gpu, query, keys), query, keys, rows, limits, gpu)
    rows = {"dout": dout} | terms
    dk, dv = backward_dkdv(spec, *_walk("dkdv", spec, gpu, query, keys), query, keys, rows, limits, gpu)
    gradients = {"key": dk, "value": dv}
    if "shared_key" in keys:
        # Where nobody asks for this gradient, the compiler leaves its kernels out.
        walk = _walk("dshared", spec, gpu, query, keys)
        dshared = backward_dshared(spec, *walk, query, keys, rows, limits, gpu)
        if len(keys["shared_key"]) < len(dshared):
            dshared = dshared.sum(0, keepdims=True)
        gradients["shared_key"] = dshared.astype(keys["shared_key"].dtype)
    return dq, gradients, None


_attention.defvjp(_attention_forward, _attention_backward)
