"""Banded attention with its gradients, from the three Triton kernels."""

import functools

import jax

from pallas_kernels.block_sizes import block_sizes
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.triton.backward import backward_dkdv, backward_dq
from pallas_kernels.triton.forward import forward

MAX_HEAD_DIM = 256


def unsupported(key_dim: int, value_dim: int) -> str | None:
    """Why the kernels cannot take these head_dims; None where they can."""
    if max(key_dim, value_dim) > MAX_HEAD_DIM:
        return f"head_dim is {key_dim} of query and key, {value_dim} of value; the kernels take at most {MAX_HEAD_DIM}"
    return None


def _walk_and_sizes(kernel: str, spec: Spec, device_kind: str, query, key, value):
    width = spec.left + spec.right + 1
    sizes = block_sizes(device_kind, kernel, str(query.dtype), query.shape[-1], value.shape[-1], width)
    return spec.walk(kernel, query, key, rows=sizes.rows, columns=sizes.columns), sizes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
    spec: Spec, device_kind: str, query: jax.Array, key: jax.Array, value: jax.Array, limits: Limits
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype and lse float32 [B, T, H], both differentiable in query, key and value.

    Args:
      spec: the band, scale and dropout.
      device_kind: of the GPU, for the block sizes.
      query, key, value: [B, T, H, Dk], [B, S, H, Dk], [B, S, H, Dv], float32, float16 or bfloat16, all of one dtype.
      limits: key mask, documents and dropout seed.
    """
    return forward(spec, *_walk_and_sizes("forward", spec, device_kind, query, key, value), query, key, value, limits)


def _attention_forward(spec: Spec, device_kind: str, query, key, value, limits: Limits):
    out, lse = attention(spec, device_kind, query, key, value, limits)
    # Named so that a rematerialised layer can keep them: the backward then recomputes the projections only.
    out, lse = jax.ad_checkpoint.checkpoint_name(out, "attention"), jax.ad_checkpoint.checkpoint_name(lse, "attention")
    return (out, lse), (query, key, value, limits, out, lse)


def _attention_backward(spec: Spec, device_kind: str, residuals, cotangents):
    query, key, value, limits, out, lse = residuals
    dout, dlse = cotangents
    walk, sizes = _walk_and_sizes("dq", spec, device_kind, query, key, value)
    dq, delta = backward_dq(spec, walk, sizes, (query, key, value, out, dout, lse, dlse), limits)
    walk, sizes = _walk_and_sizes("dkdv", spec, device_kind, query, key, value)
    dk, dv = backward_dkdv(spec, walk, sizes, (query, key, value, dout, lse, delta), limits)
    return dq, dk, dv, None


attention.defvjp(_attention_forward, _attention_backward)
