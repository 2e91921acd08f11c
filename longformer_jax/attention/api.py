"""The public op: checks its arguments, then hands them to an implementation."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention.band import make_band
from longformer_jax.attention.choice import choose
from longformer_jax.attention.halo import halo_sizes, with_halo
from longformer_jax.attention.pallas import at_home, hopper_attention, mma_attention, triton_attention
from longformer_jax.attention.reference import reference_attention
from longformer_jax.attention.split import check_mesh
from longformer_jax.attention.xla import xla_attention
from longformer_jax.errors import InputError
from longformer_jax.integers import as_integer
from pallas_kernels.dropout import Origin, Streams
from pallas_kernels.spec import NO_ID

IMPLEMENTATIONS = {
    "reference": reference_attention,
    "xla": xla_attention,
    "pallas_triton": triton_attention,
    "pallas_triton_interpret": functools.partial(triton_attention, interpret=True),
    "pallas_mosaic_gpu": hopper_attention,
    "pallas_mosaic_gpu_interpret": functools.partial(hopper_attention, interpret=True),
    "pallas_mosaic_mma": mma_attention,
    "pallas_mosaic_mma_interpret": functools.partial(mma_attention, interpret=True),
}
_DTYPES = ("float32", "float16", "bfloat16")


def banded_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    window: int | tuple[int, int],
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    shared_key: jax.Array | None = None,
    key_mask: jax.Array | None = None,
    segment_ids: jax.Array | tuple[jax.Array, jax.Array] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_seed: jax.Array | int | None = None,
    dropout_origin: Sequence[jax.Array | int] | None = None,
    key_offset: int = 0,
    axis_name: str | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Exact softmax attention in which each query sees a band of keys (Longformer, section 3.1).

    Query i sees key `i + key_offset + m * dilation` for -left <= m <= right. Softmax and accumulation are in float32
    whatever the input type. A query that sees no key gives zeros, and a log-sum-exp of -inf, never NaN, in values and
    in gradients. Differentiable in query, key, value and shared_key, through both outputs, in reverse mode; twice with
    "xla" and "reference" alone.

    Where a part of the keys is the same for all heads, `shared_key` holds it once: the score of a pair is
    `(query[..., :Dk] . key + query[..., Dk:] . shared_key) * scale`. No copy for each head is made. Two uses:

        # Relative positions (Transformer-XL): the sinusoid's half of the keys is even the same for the whole batch.
        query = concatenate([query + u, relative_query(by_sinusoid, positions, frequencies)], axis=-1)
        banded_attention(query, key, value, window=512, causal=True, shared_key=relative_key(positions, frequencies))

        # Multi-head latent attention (DeepSeek-V2): heads without positions, beside one rotary key of each token.
        query = concatenate([query, rotate(rotary_query, positions)], axis=-1)
        rotary_key = rotate(rotary_key[:, :, None], positions)[:, :, 0]  # [B, S, R]
        banded_attention(query, key, value, window=512, causal=True, shared_key=rotary_key)

    Args:
      query: [B, T, H, Dk + R], float32, float16 or bfloat16; R is the width of shared_key, 0 without one.
      key: [B, S, H, Dk], of query's dtype; S and T may be any lengths >= 1, without padding.
      value: [B, S, H, Dv], of query's dtype.
      window: one-sided: an int w is w steps left and w right (left only where causal), or a pair (left, right). Hugging
        Face's `attention_window`, a total of both sides, is twice this number.
      dilation: distance between neighbouring steps, in positions; an int, or one for each head.
      causal: whether an int `window` means the left side only.
      shared_key: [S, R], or [B, S, R] with one for each batch entry, of query's dtype: what every head's key goes on
        with. The last R numbers of a query meet it.
      key_mask: booleans [B, S], True where the key may be seen.
      segment_ids: integers [B, T] where S equals T, or a pair of [B, T] and [B, S]: a query sees keys of its own
        segment only. They are taken as int32; -2³¹ counts as the next number.
      scale: multiplies the scores, a Python number; None means (Dk + R) ** -0.5. Multiply the query by a learned one.
      dropout_rate: the probability with which an attention probability is dropped, in [0, 1).
      dropout_seed: integer scalar that fits int32 or uint32, needed where dropout_rate > 0. The mask is a hash of
        (seed, batch, head, query position, key position), hence the same in every implementation.
      dropout_origin: the batch entry, head, query and key with which these arrays begin within larger ones, where the
        parts are to draw the mask of the whole; four integers, traced or not.
      key_offset: the key position that is aligned with query 0; a Python int.
      axis_name: the mesh axis over which the sequence is split, inside `jax.shard_map`, with the kernels one of
        `check_vma=False`. All arrays are this device's parts then, equally long on all devices, key's as long as
        query's, and in the order of the devices; band, offset and dropout are those of the whole. What the band reaches
        of other devices' keys is sent, of every head as far as the one with the largest dilation reaches, and a key
        mask.
      return_lse: whether to return the log-sum-exp of the scores too.
      implementation: how it is computed:
        - "reference": dense.
        - "xla": blockwise, with memory linear in T, on any device.
        - "pallas_triton": kernels for NVIDIA GPUs from Ampere on, head_dim up to 256; beside a shared key of up to
          256 numbers, up to 128 of key.
        - "pallas_mosaic_gpu": kernels for Hopper, bfloat16 and float16, head_dim up to 128; beside a shared key of up
          to 192 numbers.
        - "pallas_mosaic_mma", experimental: the same for any NVIDIA GPU from Ampere on.
        - one of the last three with "_interpret": the same kernels on any device, very slowly, for debugging. Mosaic's
          wait forever where XLA has too few threads: PJRT_NPROC=8 in the environment gives it enough.
        - None: what LONGFORMER_JAX_KERNELS in the environment says: xla, triton, hopper or mma. If it is auto or not
          set: the fastest that has been measured and found right on this kind of GPU, "xla" if none has.
        The kind of GPU is that of the arrays outside of jit, and under jit that of the mesh in use, else of
        `jax.default_device`.
        A name never falls back to another implementation; the environment's choice falls back to "xla" for dtypes,
        head_dims and shared keys that its kernels do not take.

    Returns:
      out [B, T, H, Dv] of value's dtype, or (out, lse) with lse float32 [B, T, H].

    Raises:
      InputError: an argument does not fit, or the environment names kernels that the device cannot run; the sentence
        says which.
      NotImplementedError: the named implementation is not available here.
    """
    _check_arrays(query, key, value, shared_key)
    for name, flag in (("causal", causal), ("return_lse", return_lse)):
        if not isinstance(flag, bool | np.bool_):
            raise InputError(f"{name} is {flag!r}; expected True or False")
    B, T, H, query_dim = query.shape
    S = key.shape[1]
    if shared_key is not None and shared_key.ndim == 2:
        shared_key = shared_key[None]
    band = make_band(window, dilation, causal, key_offset, H)
    parts = 1 if axis_name is None else _count_parts(axis_name, T, S)
    # What is farther is beyond all keys, too, and would not fit int32, or memory where lengths are padded to a step.
    beyond = parts * (T + S) + abs(band.key_offset)
    steps = tuple(min(step, beyond) for step in band.dilation)
    band = dataclasses.replace(band, left=min(band.left, beyond), right=min(band.right, beyond), dilation=steps)
    if key_mask is not None:
        key_mask = _array("key_mask", key_mask)
        if key_mask.shape != (B, S) or key_mask.dtype != jnp.bool_:
            raise InputError(
                f"key_mask is {key_mask.dtype} {list(key_mask.shape)}; expected booleans [batch, keys] = [{B}, {S}]"
            )
    if segment_ids is not None:
        both = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        both = tuple(_array("segment_ids", ids) for ids in both)
        shapes = [list(ids.shape) for ids in both]
        if shapes != [[B, T], [B, S]] or not all(jnp.issubdtype(ids.dtype, jnp.integer) for ids in both):
            found = ", ".join(f"{ids.dtype} {list(ids.shape)}" for ids in both)
            raise InputError(
                f"segment_ids is {found}; expected integers [{B}, {T}] for the queries and [{B}, {S}] for the keys "
                "(one array will do where both lengths are equal)"
            )
        query_ids, key_ids = (jnp.maximum(ids.astype(jnp.int32), NO_ID + 1) for ids in both)
        segment_ids = query_ids, key_ids
    scale = _number("scale", query_dim**-0.5 if scale is None else scale)
    if not math.isfinite(scale):
        raise InputError(f"scale is {scale}; expected a finite number")
    dropout_rate = _number("dropout_rate", dropout_rate)
    if not 0 <= dropout_rate < 1:
        raise InputError(f"dropout_rate is {dropout_rate}; expected a number in [0, 1)")
    if dropout_rate and dropout_seed is None:
        raise InputError(f"dropout_seed is None while dropout_rate is {dropout_rate}; expected an integer scalar")
    if dropout_rate:
        dropout_seed = _array("dropout_seed", dropout_seed, np.uint32)
        if dropout_seed.shape != () or not jnp.issubdtype(dropout_seed.dtype, jnp.integer):
            raise InputError(
                f"dropout_seed is {dropout_seed.dtype} {list(dropout_seed.shape)}; expected an integer scalar"
            )
    origin = None if dropout_origin is None else Origin(*_check_origin(dropout_origin))
    if axis_name is not None:
        before, behind = halo_sizes(band, T, axis_name)
        if before or behind:  # beyond the ends of the sequence nothing is seen
            key_mask = jnp.ones((B, S), bool) if key_mask is None else key_mask
        fetch = functools.partial(with_halo, before=before, behind=behind, axis_name=axis_name)
        key, value, key_mask = fetch(key), fetch(value), None if key_mask is None else fetch(key_mask)
        shared_key = None if shared_key is None else fetch(shared_key)
        segment_ids = None if segment_ids is None else (segment_ids[0], fetch(segment_ids[1]))
        band = dataclasses.replace(band, key_offset=band.key_offset + before)
        first, within = jax.lax.axis_index(axis_name) * T, origin or Origin()
        origin = dataclasses.replace(within, query=within.query + first, key=within.key + first - before)
    streams = Streams.of(dropout_seed, B, origin) if dropout_rate else None
    dims = key.shape[-1], value.shape[-1], 0 if shared_key is None else shared_key.shape[-1]
    with at_home(query):
        out, lse = _select(implementation, str(query.dtype), *dims)(
            query,
            key,
            value,
            shared_key=shared_key,
            band=band,
            key_mask=key_mask,
            segment_ids=segment_ids,
            scale=scale,
            dropout_rate=dropout_rate,
            dropout=streams,
        )
    return (out, lse) if return_lse else out


def _count_parts(axis_name: object, T: int, S: int) -> int:
    """Of how many devices each holds a part of the sequence."""
    try:
        parts = jax.lax.axis_size(axis_name if isinstance(axis_name, str) else "")
    except (NameError, TypeError, ValueError):
        raise InputError(
            f"axis_name is {axis_name!r}; expected an axis of the mesh that jax.shard_map is over, here"
        ) from None
    if T != S:
        raise InputError(f"key has {S} positions on a device; expected query's {T}, as axis_name is {axis_name!r}")
    return parts


def _check_origin(origin: object) -> tuple[jax.Array, ...]:
    found = tuple(_array("dropout_origin", x) for x in origin) if isinstance(origin, tuple | list) else ()
    if len(found) != 4 or not all(x.shape == () and jnp.issubdtype(x.dtype, jnp.integer) for x in found):
        raise InputError(f"dropout_origin is {origin!r}; expected four integers: batch entry, head, query, key")
    return found


def _number(name: str, value: object) -> float:
    try:
        if not isinstance(value, str | bytes):
            return float(value)  # type: ignore
    except (OverflowError, TypeError, ValueError):  # what is traced raises a TypeError, too
        pass
    raise InputError(f"{name} is {value!r}; expected a number known when the call is traced")


def _array(name: str, values: object, widest: type[np.integer] = np.int32) -> jax.Array:
    """An array of JAX, of int32 or of `widest` where it holds integers; raises InputError where there can be none."""
    try:
        check_mesh(name, values)
        return jnp.asarray(_within(name, values, widest))
    except (OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is {values!r}; expected an array, or what makes one") from None


def _within(name: str, values: object, widest: type[np.integer]) -> object:
    """The same, unless they are integers of NumPy or Python that JAX would cut."""
    if not isinstance(values, jax.Array):
        found = np.asarray(values)
        int32, others = np.iinfo(np.int32), "" if widest is np.int32 else f" or {np.dtype(widest)}"
        # Python integers beyond int64 make arrays of objects.
        if found.size and (np.issubdtype(found.dtype, np.integer) or found.dtype == object and _all_integers(found)):
            for value in (found.min(), found.max()):
                if not int32.min <= value <= np.iinfo(widest).max:
                    raise InputError(f"{name} holds {value}; expected integers that fit int32{others}")
            if found.max() > int32.max:
                return found.astype(widest)
    return values


def _all_integers(values: np.ndarray) -> bool:
    return all(as_integer(value) is not None for value in values.flat)


def _select(name: str | None, dtype: str, key_dim: int, value_dim: int, shared_dim: int):
    if name is None:
        name = choose(dtype, key_dim, value_dim, shared_dim)
    if not isinstance(name, str):
        raise InputError(f"implementation is {name!r}; expected None or one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"implementation is {name!r}, which this version does not have; expected None or one of "
            + ", ".join(map(repr, IMPLEMENTATIONS))
        )
    return IMPLEMENTATIONS[name]


def _check_arrays(query, key, value, shared_key) -> None:
    arrays = {"query": query, "key": key, "value": value}
    if shared_key is not None:
        arrays["shared_key"] = shared_key
    for name, x in arrays.items():
        ranks, expected = (4,), "[batch, length, heads, head_dim]"
        if name == "shared_key":
            ranks, expected = (2, 3), "[keys, head_dim] or [batch, keys, head_dim]"
        if getattr(x, "ndim", None) not in ranks:
            found = list(x.shape) if hasattr(x, "shape") else type(x).__name__
            raise InputError(f"{name} is {found}; expected an array {expected}")
        if any(size < 1 for size in x.shape):  # one by one, as sizes may be symbols
            raise InputError(f"{name} has the shape {list(x.shape)}; expected every dimension to be at least 1")
        if str(x.dtype) not in _DTYPES:
            raise InputError(f"{name} has the dtype {x.dtype}; expected one of {', '.join(_DTYPES)}")
        if x.dtype != query.dtype:
            raise InputError(f"{name} has the dtype {x.dtype}; expected query's, {query.dtype}")
        check_mesh(name, x)
    B, _, H, Dk = query.shape
    S = key.shape[1]
    beside = ""
    if shared_key is not None:
        R = shared_key.shape[-1]
        if shared_key.shape not in ((S, R), (B, S, R)):
            raise InputError(
                f"shared_key has the shape {list(shared_key.shape)}; expected [{S}, any] or [{B}, {S}, any] to go with "
                "query and key"
            )
        if Dk <= R:
            raise InputError(f"shared_key has {R} numbers a key; expected fewer than query's head_dim, {Dk}")
        Dk, beside = Dk - R, " and shared_key"
    if key.shape != (B, S, H, Dk):
        raise InputError(
            f"key has the shape {list(key.shape)}; expected [{B}, keys, {H}, {Dk}] to go with query{beside}"
        )
    if value.shape[:3] != (B, S, H):
        raise InputError(f"value has the shape {list(value.shape)}; expected [{B}, {S}, {H}, any] to go with key")
