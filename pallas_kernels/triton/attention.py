"""Banded attention with its gradients, from the Triton kernels."""

import functools

import jax

from pallas_kernels.block_sizes import block_sizes
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.triton.backward import backward_dkdv, backward_dq, backward_dshared
from pallas_kernels.triton.forward import forward
from pallas_kernels.triton.tiles import Keys

MAX_HEAD_DIM = 256
MAX_BESIDE_SHARED = 128  # of the keys, where they have a shared part, too


def unsupported(key_dim: int, value_dim: int, shared_dim: int = 0) -> str | None:
    """Why the kernels cannot take these head_dims; None where they can."""
    if shared_dim and (key_dim > MAX_BESIDE_SHARED or shared_dim > MAX_HEAD_DIM):
        return (
            f"head_dim is {key_dim} of key, {shared_dim} of shared_key; "
            f"the kernels take at most {MAX_BESIDE_SHARED} and {MAX_HEAD_DIM}"
        )
    if max(key_dim, value_dim) > MAX_HEAD_DIM:
        return f"head_dim is {key_dim} of query and key, {value_dim} of value; the kernels take at most {MAX_HEAD_DIM}"
    return None


def _walk_and_sizes(kernel: str, spec: Spec, device_kind: str, query, keys: Keys, value):
    width, key_dim = spec.left + spec.right + 1, query.shape[-1]
    if keys.shared is not None:  # what a tile takes in registers, filled up with zeros
        key_dim = sum(chunk.size for chunk in keys.query_chunks)
    sizes = block_sizes(device_kind, kernel, str(query.dtype), key_dim, value.shape[-1], width)
    return spec.walk(kernel, query, keys.own, rows=sizes.rows, columns=sizes.columns), sizes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
    spec: Spec,
    device_kind: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    shared_key: jax.Array | None,
    limits: Limits,
) -> tuple[jax.Array, jax.Array]:
    """out [B, T, H, Dv] of value's dtype and lse float32 [B, T, H], both differentiable in the four arrays.

    Args:
      spec: the band, scale and dropout.
      device_kind: of the GPU, for the block sizes.
      query, key, value: [B, T, H, Dk + R], [B, S, H, Dk], [B, S, H, Dv], float32, float16 or bfloat16, of one dtype.
      shared_key: [B or 1, S, R] of that dtype, or None, where R is 0.
      limits: key mask, documents and dropout seed.
    """
    keys = _keys(key, shared_key)
    return forward(spec, *_walk_and_sizes("forward", spec, device_kind, query, keys, value), query, keys, value, limits)


def _keys(key: jax.Array, shared_key: jax.Array | None) -> Keys:
    return Keys(key) if shared_key is None else Keys(key, shared_key[:, :, None])


def _attention_forward(spec: Spec, device_kind: str, query, key, value, shared_key, limits: Limits):
    out, lse = attention(spec, device_kind, query, key, value, shared_key, limits)
    # Named so that a rematerialised layer can keep them: the backward then recomputes the projections only.
    out, lse = jax.ad_checkpoint.checkpoint_name(out, "attention"), jax.ad_checkpoint.checkpoint_name(lse, "attention")
    return (out, lse), (query, key, value, shared_key, limits, out, lse)


def _attention_backward(spec: Spec, device_kind: str, residuals, cotangents):
    query, key, value, shared_key, limits, out, lse = residuals
    keys, (dout, dlse) = _keys(key, shared_key), cotangents
    walk, sizes = _walk_and_sizes("dq", spec, device_kind, query, keys, value)
    dq, delta = backward_dq(spec, walk, sizes, (query, keys, value, out, dout, lse, dlse), limits)
    walk, sizes = _walk_and_sizes("dkdv", spec, device_kind, query, keys, value)
    dk, dv = backward_dkdv(spec, walk, sizes, (query, keys, value, dout, lse, delta), limits)
    if shared_key is None:
        return dq, dk, dv, None, None
    # Where nobody asks for this gradient, the compiler leaves its kernels out.
    walk, sizes = _walk_and_sizes("dshared", spec, device_kind, query, keys, value)
    dshared = backward_dshared(spec, walk, sizes, (query, keys, value, dout, lse, delta), limits)
    if len(shared_key) < len(query):
        dshared = dshared.sum(0, keepdims=True)
    return dq, dk, dv, dshared.astype(shared_key.dtype), None


attention.defvjp(_attention_forward, _attention_backward)
