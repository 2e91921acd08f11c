"""Banded attention with its gradients, from three kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.backward import backward_dkdv, backward_dq
from pallas_kernels.mosaic.forward import forward
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling, hopper_tiling, mma_tiling
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk

DTYPES = ("bfloat16", "float16")
HEAD_DIMS = ((64, 64), (128, 64), (128, 128))  # of query and key, of value; others are filled up with zeros


def unsupported(dtype: str, key_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot take such arrays; None where they can."""
    if dtype not in DTYPES:
        return f"the dtype is {dtype}; the kernels take {' and '.join(DTYPES)}"
    if (most := max(key_dim, value_dim)) > HEAD_DIMS[-1][0]:
        return f"head_dim is {most}; the kernels take up to {HEAD_DIMS[-1][0]}"
    return None


def attention(
    spec: Spec, gpu: Gpu, query: jax.Array, key: jax.Array, value: jax.Array, limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype and lse float32 [B, T, H], both differentiable in query, key and value.

    Args:
      spec: the band, scale and dropout.
      gpu: what runs the kernels.
      query, key, value: [B, T, H, Dk], [B, S, H, Dk], [B, S, H, Dv], of dtypes and head_dims that are supported.
      limits: key mask, documents and dropout seed.
    """
    key_dim, value_dim = query.shape[-1], value.shape[-1]
    wanted = next((k, v) for k, v in HEAD_DIMS if k >= key_dim and v >= value_dim)
    query, key, value = (_filled_up(x, dim) for x, dim in zip((query, key, value), (wanted[0], *wanted), strict=True))
    out, lse = _attention(spec, gpu, query, key, value, limits)
    return out[..., :value_dim], lse


def _filled_up(x: jax.Array, dim: int) -> jax.Array:
    missing = dim - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _walk(
    kernel: str, spec: Spec, gpu: Gpu, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[Walk, Tiling | MmaTiling]:
    tiles = (hopper_tiling if gpu.has_wgmma else mma_tiling)(kernel, query.shape[-1], value.shape[-1])
    if isinstance(tiles, Tiling) and not gpu.overlap:
        tiles = dataclasses.replace(tiles, overlap=False, turns=False)
    return spec.walk(kernel, query, key, rows=tiles.rows, columns=tiles.columns), tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(spec: Spec, gpu: Gpu, query, key, value, limits: Limits) -> tuple[jax.Array, jax.Array]:
    return forward(spec, *_walk("forward", spec, gpu, query, key, value), query, key, value, limits, gpu)


def _attention_forward(spec: Spec, gpu: Gpu, query, key, value, limits: Limits):
    out, lse = _attention(spec, gpu, query, key, value, limits)
    # Named so that a rematerialised layer can keep them: the backward then recomputes the projections only.
    out, lse = jax.ad_checkpoint.checkpoint_name(out, "attention"), jax.ad_checkpoint.checkpoint_name(lse, "attention")
    return (out, lse), (query, key, value, limits, out, lse)


def _attention_backward(spec: Spec, gpu: Gpu, residuals, cotangents):
    query, key, value, limits, out, lse = residuals
    dout, dlse = cotangents
    arrays = query, key, value, out, dout, lse, dlse
    dq, *terms = backward_dq(spec, *_walk("dq", spec, gpu, query, key, value), arrays, limits, gpu)
    arrays = query, key, value, dout, *terms
    dk, dv = backward_dkdv(spec, *_walk("dkdv", spec, gpu, query, key, value), arrays, limits, gpu)
    return dq, dk, dv, None


_attention.defvjp(_attention_forward, _attention_backward)
