"""Blockwise banded attention in plain JAX: any backend, time and memory linear in T, forward and backward.

The rows of one side are walked tile by tile, beside a ring buffer that holds the tiles of the other side which the band
reaches. Each step loads one new tile over the oldest, so every row is read from the [B, T, H, D] arrays once; the order
of the keys in the ring does not matter to the softmax, only the mask has to know it. The forward walks over queries
beside a ring of keys and values. The backward walks over keys beside a ring of queries: dk and dv come out complete,
dq is summed in the ring and leaves it with its tile. Where the band reaches everything, there is no ring.

Shapes: a head group with dilation d views [B, T, H, D] as [B, T/d, d, H, D]. Its rows, "row r of every sequence of the
group", are [N, D] with N = B * d * heads; the band is undilated there. No copy is made for it. Rows of what all heads
share, such as a shared key or a mask, are [G, D] with G = B * d.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from longformer_jax.attention.band import Band, HeadGroup
from longformer_jax.attention.ring import Walk, count_lanes, load_tile, tile_size
from longformer_jax.attention.varying import vary_as, varying_alike
from pallas_kernels.dropout import Streams, keep_mask


# Outside of jit one program, not one for each operation; inside it is as if this were not here.
@functools.partial(jax.jit, static_argnames=("band", "scale", "dropout_rate"), inline=True)
def xla_attention(
    query,
    key,
    value,
    *,
    shared_key,
    band: Band,
    key_mask,
    segment_ids,
    scale: float,
    dropout_rate: float,
    dropout: Streams | None,
) -> tuple[jax.Array, jax.Array]:
    """Shapes as in `banded_attention`, but shared_key [B or 1, S, R]; returns (out, lse)."""
    if math.lcm(*band.dilation) > max(band.dilation):  # to which lengths would be filled up
        parts = []
        for group in band.head_groups:
            heads = slice(group.start, group.stop)
            part = xla_attention(
                *(x[:, :, heads] for x in (query, key, value)),
                shared_key=shared_key,
                band=dataclasses.replace(band, dilation=band.dilation[heads]),
                key_mask=key_mask,
                segment_ids=segment_ids,
                scale=scale,
                dropout_rate=dropout_rate,
                dropout=None if dropout is None else dropout.from_head(group.start),
            )
            parts.append(part)
        out, lse = (jnp.concatenate(each, axis=2) for each in zip(*parts, strict=True))
        return out, lse
    arrays = query, key, value, shared_key, key_mask, segment_ids, dropout
    query, key, value, shared_key, key_mask, segment_ids, dropout = varying_alike(arrays)
    T = query.shape[1]
    queries, keys = _in_reach(band, T, key.shape[1])
    # Dilated views need lengths and an offset that every dilation divides.
    multiple = math.lcm(*band.dilation)
    offset = band.key_offset + queries.start - keys.start
    front = -offset % multiple
    end = -(len(keys) + front) % multiple
    if front or end:
        key_mask = jnp.ones(key.shape[:2], bool) if key_mask is None else key_mask
    take_keys = functools.partial(_take, rows=keys, front=front, end=end)
    take_queries = functools.partial(_take, rows=queries, front=0, end=-len(queries) % multiple)
    side = _Side(
        key_mask=None if key_mask is None else take_keys(key_mask),
        query_segment=None if segment_ids is None else take_queries(segment_ids[0]),
        key_segment=None if segment_ids is None else take_keys(segment_ids[1]),
        dropout=dropout,
    )
    spec = _Spec(
        band=dataclasses.replace(band, key_offset=offset + front),
        scale=scale,
        dropout_rate=dropout_rate,
        first_query=-queries.start,
        first_key=front - keys.start,
    )
    shared_key = None if shared_key is None else take_keys(shared_key)
    out, lse = _attention(spec, take_queries(query), take_keys(key), take_keys(value), shared_key, side)
    blind = [(0, 0), (queries.start, T - queries.stop), (0, 0)]
    out, lse = out[:, : len(queries)], lse[:, : len(queries)]
    return jnp.pad(out, [*blind, (0, 0)]), jnp.pad(lse, blind, constant_values=-jnp.inf)


def _in_reach(band: Band, T: int, S: int) -> tuple[range, range]:
    """The queries that see a key and the keys that a query sees, by the widest of the heads; all where none does."""
    left, right = (side * max(band.dilation) for side in (band.left, band.right))
    queries = range(max(0, -band.key_offset - right), min(T, S - band.key_offset + left))
    keys = range(max(0, band.key_offset - left), min(S, T + band.key_offset + right))
    return (queries, keys) if queries and keys else (range(T), range(S))


def _take(x: jax.Array, rows: range, front: int, end: int) -> jax.Array:
    """Some rows [B, T, …], with padding around them."""
    x = x[:, rows.start : rows.stop]
    return jnp.pad(x, [(0, 0), (front, end)] + [(0, 0)] * (x.ndim - 2)) if front or end else x


@dataclasses.dataclass(frozen=True)
class _Spec:
    band: Band
    scale: float
    dropout_rate: float
    first_query: int  # rows of the caller's query 0 and key 0, before what was left out and behind the padding
    first_key: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Side:
    """What limits a query's view besides the band; None where it does not apply."""

    key_mask: jax.Array | None  # [B, S]
    query_segment: jax.Array | None  # [B, T]
    key_segment: jax.Array | None  # [B, S]
    dropout: Streams | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(spec: _Spec, query, key, value, shared_key, side: _Side):
    return _forward(spec, query, key, value, shared_key, side)[0]


def _forward(spec: _Spec, query, key, value, shared_key, side: _Side):
    B, T, H, _ = query.shape
    outputs = jnp.zeros((B, T, H, value.shape[-1]), value.dtype), jnp.zeros((B, T, H, 1), jnp.float32)
    outputs = vary_as(outputs, query)
    walk = functools.partial(_forward_group, query=query, key=key, value=value, shared_key=shared_key)
    out, lse = _each_group(walk, spec, side, outputs)
    # Named so that a rematerialised layer can keep them: the backward then recomputes the projections only.
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse[..., 0], "attention")
    return (out, lse), (query, key, value, shared_key, side, out, lse)


def _backward(spec: _Spec, residuals, cotangents):
    query, key, value, shared_key, side, out, lse = residuals
    dout, dlse = cotangents
    # Where dout was float32 before, XLA may compute delta with that, beside products of what was rounded.
    dout = lax.optimization_barrier(dout)
    # A row that sees nothing has lse = -inf and takes no part; keep its infinities out of the products.
    live = lse > -jnp.inf
    delta = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1) - dlse
    rows = query, dout, jnp.where(live, lse, 0.0)[..., None], jnp.where(live, delta, 0.0)[..., None]
    grads = jnp.zeros_like(query, jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    if shared_key is not None:
        # Summed over heads. Where nobody asks for it, the compiler leaves it out.
        grads += (jnp.zeros_like(shared_key[:, :, None], jnp.float32),)
    grads = vary_as(grads, query)
    walk = functools.partial(_backward_group, rows=rows, key=key, value=value, shared_key=shared_key)
    dquery, dkey, dvalue, *dshared = _each_group(walk, spec, side, grads)
    dshared = dshared[0][:, :, 0].astype(shared_key.dtype) if dshared else None
    return dquery.astype(query.dtype), dkey, dvalue, dshared, None


_attention.defvjp(_forward, _backward)


def _each_group(walk, spec: _Spec, side: _Side, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """results [B, T, H, D] with what walk(mask, views of them) stores for every head group."""
    for group in spec.band.head_groups:
        B, _, H, _ = results[0].shape
        # Viewed as the group sees them for all of its walk: XLA copies a buffer that a step reshapes.
        views = walk(_GroupMask(spec, group, side, B, H), tuple(_view(x, group) for x in results))
        results = tuple(view.reshape(x.shape) for view, x in zip(views, results, strict=True))
    return results


# ---- One head group --------------------------------------------------------------------------------------------------


def _rows(x: jax.Array, group: HeadGroup, starts, size: int) -> jax.Array:
    """[B, T, H, D] -> `size` rows of the group's sequences from each of the starts on, [lanes * N, size, D]."""
    view, d, heads = _view(x, group), group.dilation, group.stop - group.start
    B, D = x.shape[0], x.shape[-1]
    lanes = [lax.dynamic_slice(view, (0, start, 0, group.start, 0), (B, size, d, heads, D)) for start in starts]
    lanes = [lane.transpose(0, 2, 3, 1, 4).reshape(B * d * heads, size, D) for lane in lanes]
    return jnp.concatenate(lanes) if len(lanes) > 1 else lanes[0]


def _view(x: jax.Array, group: HeadGroup) -> jax.Array:
    """[B, T, H, D] -> [B, T/d, d, H, D]"""
    B, T, *rest = x.shape
    return x.reshape(B, T // group.dilation, group.dilation, *rest)


def _shared_rows(x: jax.Array, group: HeadGroup, starts, size: int, batch: int) -> jax.Array:
    """As `_rows`, of what all heads share, and perhaps the batch: [B or 1, T, D] -> [lanes * G, size, D]."""
    rows = _rows(x[:, :, None], _one_head(group), starts, size)
    if x.shape[0] == batch:
        return rows
    rows = rows.reshape(len(starts), 1, group.dilation, size, -1)
    return jnp.broadcast_to(rows, (len(starts), batch, *rows.shape[2:])).reshape(-1, *rows.shape[3:])


def _one_head(group: HeadGroup) -> HeadGroup:
    """What `_rows` and `_store` take for an array that has one head for all of the group's."""
    return dataclasses.replace(group, start=0, stop=1)


def _store(view: jax.Array, group: HeadGroup, starts, rows: jax.Array, add: bool = False) -> jax.Array:
    """The inverse of `_rows`, into a view [B, T/d, d, H, D], lane after lane."""
    B, _, d, _, D = view.shape
    heads = group.stop - group.start
    lanes = rows.reshape(len(starts), B, d, heads, -1, D).transpose(0, 1, 4, 2, 3, 5).astype(view.dtype)
    for start, lane in zip(starts, lanes, strict=True):
        index = (0, start, 0, group.start, 0)
        if add:
            lane += lax.dynamic_slice(view, index, lane.shape)
        view = lax.dynamic_update_slice(view, lane, index)
    return view


class _GroupMask:
    """Band, visibility and dropout of one head group, over row numbers of its undilated view."""

    def __init__(self, spec: _Spec, group: HeadGroup, side: _Side, batch: int, num_heads: int):
        self.group, self.spec, self.side = group, spec, side
        self.batch_size, self.heads = batch, group.stop - group.start
        self.sequences = batch * group.dilation * self.heads  # N
        offset = spec.band.key_offset // group.dilation
        self.lower, self.upper = offset - spec.band.left, offset + spec.band.right
        # What is stored for a key or query besides its vectors: [B, T, 1] integers, row-loaded like the rest.
        vectors = (side.key_mask, side.query_segment, side.key_segment)
        self.key_mask, self.query_segment, self.key_segment = (
            None if x is None else x[:, :, None].astype(jnp.int32) for x in vectors
        )
        b, r, h = jnp.meshgrid(
            jnp.arange(batch), jnp.arange(group.dilation), jnp.arange(group.start, group.stop), indexing="ij"
        )
        entries, self.residue, self.head = (x.reshape(1, -1, 1, 1) for x in (b, r, h))
        self.streams = jax.tree.map(lambda x: x[entries], side.dropout)

    def clip(self, query_length: int, key_length: int) -> tuple[int, int]:
        """The band's (lower, upper) without what no query of these lengths can reach; lower > upper where empty."""
        return max(self.lower, 1 - query_length), min(self.upper, key_length - 1)

    def shared_rows(self, x: jax.Array, starts, size: int) -> jax.Array:
        return _shared_rows(x, self.group, starts, size, self.batch_size)

    def limits(self, names: tuple[str, ...], starts, size: int) -> dict[str, jax.Array]:
        """Rows of the per-position limits that apply: name -> [lanes * G, size]."""
        arrays = {name: getattr(self, name) for name in names}
        return {name: self.shared_rows(x, starts, size)[..., 0] for name, x in arrays.items() if x is not None}

    def visible(self, i, j, valid, limits: dict[str, jax.Array]) -> jax.Array:
        """Booleans [1 or lanes * N, ...] for rows i and j that broadcast to [lanes, queries, keys] or transposed."""
        mask = valid & (j - i >= self.lower) & (j - i <= self.upper)
        if len(mask) == 1 and not limits:
            return mask
        mask = jnp.repeat(mask, self.sequences // self.heads, axis=0)
        if "key_mask" in limits:
            mask &= _outer(limits["key_mask"], j) != 0
        if "key_segment" in limits:
            mask &= _outer(limits["key_segment"], j) == _outer(limits["query_segment"], i)
        return jnp.repeat(mask, self.heads, axis=0)

    def keep(self, i, j) -> jax.Array | None:
        """Which probabilities dropout keeps, [lanes * N, ...]; None where there is no dropout."""
        streams = self.streams
        if streams is None:
            return None
        d = self.group.dilation
        query, key = (x[:, None] * d + self.residue for x in (i, j))
        query, key = query - self.spec.first_query, key - self.spec.first_key
        if streams.first_key is not None:
            key = key + streams.first_key
        keep = keep_mask(self.spec.dropout_rate, streams.rows, self.head, query, key)
        return keep.reshape(-1, *keep.shape[2:])


def _outer(x: jax.Array, like: jax.Array) -> jax.Array:
    """[G, n] -> [G, n, 1] or [G, 1, n], as the row numbers `like` lie, [lanes, n, 1] or [lanes, 1, n]."""
    return x[:, :, None] if like.shape[-1] == 1 else x[:, None, :]


def _forward_group(mask: _GroupMask, outputs, query, key, value, shared_key):
    group = mask.group
    T, S = query.shape[1] // group.dilation, key.shape[1] // group.dilation
    lower, upper = mask.clip(T, S)
    if lower > upper:
        out, lse = outputs
        return out, lse.at[:, :, :, group.start : group.stop].set(-jnp.inf)

    def load_keys(starts, size):
        keys = {"key": _rows(key, group, starts, size), "value": _rows(value, group, starts, size)}
        if shared_key is not None:
            keys["shared_key"] = mask.shared_rows(shared_key, starts, size)
        return keys | mask.limits(_KEY_LIMITS, starts, size)

    def attend(outputs, starts, i, keys, j, valid):
        limits = {n: x for n, x in keys.items() if n in _KEY_LIMITS} | mask.limits(_QUERY_LIMITS, starts, i.shape[1])
        visible = mask.visible(i, j, valid, limits)
        q = _rows(query, group, starts, i.shape[1])
        k, v, shared = keys["key"], keys["value"], keys.get("shared_key")
        rows = _attend(q, k, v, shared, visible, mask.keep(i, j), mask.spec)
        return tuple(_store(buffer, group, starts, x) for buffer, x in zip(outputs, rows, strict=True))

    tile = tile_size(min(T, S), upper - lower, backward=False)
    if tile == min(T, S):
        first, last = max(0, lower), min(S, T + upper)
        i, j = jnp.arange(T)[None, :, None], jnp.arange(first, last)[None, None]
        return attend(outputs, [0], i, load_keys([first], last - first), j, True)

    walk = Walk(T, S, lower, upper, tile, count_lanes(mask.sequences, T // tile))

    def load(ring, outputs, slot, t):
        return load_tile(ring, load_keys(walk.ring_start(t)[1], tile), slot * tile), outputs

    def step(ring, outputs, s):
        i, _ = walk.tile_rows(s)
        j, valid = walk.ring_rows(s)
        starts = jnp.maximum(walk.tile_start(s), 0)
        return ring, attend(outputs, starts, i[:, :, None], ring, j[:, None], valid[:, None])

    return walk.run(load, step, load_keys([0] * walk.lanes, walk.first_load), outputs)[1]


def _backward_group(mask: _GroupMask, grads, rows, key, value, shared_key):
    group = mask.group
    T, S = rows[0].shape[1] // group.dilation, key.shape[1] // group.dilation
    lower, upper = mask.clip(T, S)
    if lower > upper:
        return grads
    names = ("query", "dout", "lse", "delta")

    def load_queries(starts, size):
        loaded = {name: _rows(x, group, starts, size) for name, x in zip(names, rows, strict=True)}
        loaded |= {name: loaded[name][..., 0] for name in ("lse", "delta")}
        return loaded | mask.limits(_QUERY_LIMITS, starts, size)

    def attend(starts, j, queries, i, valid):
        size = j.shape[1]
        limits = {n: x for n, x in queries.items() if n in _QUERY_LIMITS} | mask.limits(_KEY_LIMITS, starts, size)
        k, v = (_rows(x, group, starts, size) for x in (key, value))
        shared = None if shared_key is None else mask.shared_rows(shared_key, starts, size)
        visible = mask.visible(i, j, valid, limits)
        q, dout, lse, delta = (queries[name] for name in names)
        return _attend_backward(q, dout, lse, delta, k, v, shared, visible, mask.keep(i, j), mask.spec)

    def store(grads, starts, dkeys):
        """Into views of dkey, dvalue and, if there is a shared key, its gradient, to which every group adds."""
        stored = [_store(grad, group, starts, x) for grad, x in zip(grads[:2], dkeys[:2], strict=True)]
        for grad, x in zip(grads[2:], dkeys[2:], strict=True):
            if len(grad) < mask.batch_size:
                x = x.reshape(mask.batch_size, -1, *x.shape[1:]).sum(0)
            stored.append(_store(grad, _one_head(group), starts, x, add=True))
        return stored

    tile = tile_size(min(T, S), upper - lower, backward=True)
    if tile == min(T, S):
        first, last = max(0, lower), min(S, T + upper)
        i, j = jnp.arange(T)[None, None], jnp.arange(first, last)[None, :, None]
        dq, *dkeys = attend([first], j, load_queries([0], T), i, True)
        return _store(grads[0], group, [0], dq.swapaxes(1, 2)), *store(grads[1:], [first], dkeys)

    walk = Walk(S, T, -upper, -lower, tile)

    def flush(dquery, ring_dq, t):
        """Adds the ring's dq of tile t to the result."""
        dq = lax.dynamic_slice_in_dim(ring_dq, t % walk.slots * tile, tile, 2)
        return _store(dquery, group, walk.ring_start(t)[1], dq.swapaxes(1, 2), add=True)

    def load(ring, sums, slot, t):
        return load_tile(ring, load_queries(walk.ring_start(t)[1], tile), slot * tile), sums

    def step(ring, sums, s):
        ring_dq, dquery, *dkeys_before = sums
        if not walk.holds_all:
            newest = s + walk.slots - 1
            dquery = flush(dquery, ring_dq, newest - walk.slots)
            is_new = jnp.arange(walk.slots * tile) // tile == newest % walk.slots
            ring_dq = jnp.where(is_new, 0.0, ring_dq)
        j, own = walk.tile_rows(s)
        i, valid = walk.ring_rows(s)
        starts = jnp.maximum(walk.tile_start(s), 0)
        dq, *dkeys = attend(starts, j[:, :, None], ring, i[:, None], valid[:, None] & own[:, :, None])
        return ring, (ring_dq + dq, dquery, *store(dkeys_before, starts, dkeys))

    first = load_queries([0], walk.first_load)
    N, _, D = first["query"].shape
    held = T if walk.holds_all else walk.slots * tile
    sums = vary_as(jnp.zeros((N, D, held), jnp.float32), first["query"]), *grads
    _, (ring_dq, dquery, *grads) = walk.run(load, step, first, sums)
    if walk.holds_all:
        return _store(dquery, group, [0], ring_dq.swapaxes(1, 2)), *grads
    # What is left in the ring after the last step.
    dquery = lax.fori_loop(walk.steps - 1, walk.steps + walk.slots - 1, lambda t, dq: flush(dq, ring_dq, t), dquery)
    return dquery, *grads


_MASKED = float(np.finfo(np.float32).min)  # no score is below; exp(_MASKED - score) is zero
_KEY_LIMITS = ("key_mask", "key_segment")
_QUERY_LIMITS = ("query_segment",)


# ---- One block of scores ---------------------------------------------------------------------------------------------


def _attend(q, k, v, shared, visible, keep, spec: _Spec) -> tuple[jax.Array, jax.Array]:
    """q [N, m, Dk + R], k and v [N, n, D], shared [G, n, R] or None; visible and keep [1 or N, m, n].

    Returns out [N, m, Dv] and lse [N, m, 1].
    """
    Dk = k.shape[-1]
    scores = jnp.einsum("nqd,nkd->nqk", q[..., :Dk], k, preferred_element_type=jnp.float32)
    if shared is not None:  # one product for all heads
        q_shared = q[..., Dk:].reshape(shared.shape[0], -1, shared.shape[-1])
        scores += jnp.einsum("gqr,gkr->gqk", q_shared, shared, preferred_element_type=jnp.float32).reshape(scores.shape)
    scores *= spec.scale
    # Finite, so that max, subtract and exp stay cheap; a row that sees nothing is blanked at the end.
    scores = jnp.where(visible, scores, _MASKED)
    maximum = scores.max(-1)
    p = jnp.exp(scores - maximum[..., None])
    total = p.sum(-1)
    if keep is not None:
        p = jnp.where(keep, p, 0.0)
    out = jnp.einsum("nqk,nkd->nqd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
    live = (maximum != _MASKED) | jnp.isnan(total)  # NaN must not be hidden, as some backends' maximum does
    norm = jnp.where(live, 1 / (total * (1 - spec.dropout_rate)), 0.0)
    lse = jnp.where(live, maximum + jnp.log(total), -jnp.inf)
    return out * norm[..., None], lse[..., None]


def _attend_backward(q, dout, lse, delta, k, v, shared, visible, keep, spec: _Spec) -> tuple[jax.Array, ...]:
    """Scores are [N, keys, queries] here; lse and delta [N, queries].

    Returns float32 dq [N, Dk + R, queries], dk, dv and, if there is a shared key, its gradient [G, keys, R].
    """
    dtype, Dk = q.dtype, k.shape[-1]
    if shared is not None:  # copied to every head, but for a tile only: products over all columns are the fastest
        k = jnp.concatenate([k, jnp.repeat(shared, len(k) // len(shared), axis=0)], axis=-1)
    scores = jnp.einsum("nkd,nqd->nkq", k, q, preferred_element_type=jnp.float32) * spec.scale
    # Before exp, which may overflow where a key is hidden; a derivative of this would then be NaN.
    p = jnp.exp(jnp.where(visible, scores - lse[:, None], _MASKED))
    dp = jnp.einsum("nkd,nqd->nkq", v, dout, preferred_element_type=jnp.float32)
    dropped = p
    if keep is not None:
        dropped = jnp.where(keep, p / (1 - spec.dropout_rate), 0.0)
        dp = jnp.where(keep, dp / (1 - spec.dropout_rate), 0.0)
    ds = (p * (dp - delta[:, None]) * spec.scale).astype(dtype)
    dv = jnp.einsum("nkq,nqd->nkd", dropped.astype(dtype), dout, preferred_element_type=jnp.float32)
    dk = jnp.einsum("nkq,nqd->nkd", ds, q[..., :Dk], preferred_element_type=jnp.float32)
    # A product of matrices that lie as they are: XLA's CPU backend is slow where the large one, ds, has to be read
    # transposed. The barrier keeps the small one's transposition out of the product.
    k_transposed = lax.optimization_barrier(k.swapaxes(1, 2))
    dq = jnp.einsum("ndk,nkq->ndq", k_transposed, ds, preferred_element_type=jnp.float32)
    if shared is None:
        return dq, dk, dv
    ds, q_shared = (x.reshape(len(shared), -1, *x.shape[1:]) for x in (ds, q[..., Dk:]))
    return dq, dk, dv, jnp.einsum("ghkq,ghqr->gkr", ds, q_shared, preferred_element_type=jnp.float32)
