"""Banded attention as its contract reads, with loops and float64: shares no code with the library."""

import numpy as np


def visible_keys(
    i: int, head: int, num_keys: int, *, window, dilation=1, causal: bool = False, key_offset: int = 0
) -> list[int]:
    """The keys that the band shows to query i: i + key_offset + m * dilation for -left <= m <= right."""
    left, right = (window, 0 if causal else window) if isinstance(window, int) else window
    step = dilation if isinstance(dilation, int) else dilation[head]
    distances = ((j, j - i - key_offset) for j in range(num_keys))
    return [j for j, m in distances if m % step == 0 and -left * step <= m <= right * step]


def visibility(B: int, T: int, S: int, H: int, *, key_mask=None, segment_ids=None, **band) -> np.ndarray:
    """Booleans [B, H, T, S]."""
    visible = np.zeros((B, H, T, S), bool)
    for h in range(H):
        for i in range(T):
            visible[:, h, i, visible_keys(i, h, S, **band)] = True
    if key_mask is not None:
        visible &= np.asarray(key_mask)[:, None, None, :]
    if segment_ids is not None:
        ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        visible &= np.asarray(ids[0])[:, None, :, None] == np.asarray(ids[1])[:, None, None, :]
    return visible


def with_shared(key, shared_key):
    """[B, S, H, Dk] and [S, R] or [B, S, R] -> [B, S, H, Dk + R], of NumPy or JAX: a copy for every head."""
    xp = key.__array_namespace__()
    shared = shared_key[..., None, :]
    return xp.concat([key, xp.broadcast_to(shared, (*key.shape[:3], shared.shape[-1]))], axis=-1)


def dense_attention(
    query, key, value, shared_key=None, *,
    visible: np.ndarray, scale: float | None = None, keep=None, dropout_rate: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A softmax for each row on its own, over what `visible` [B, H, T, S] shows it.

    Returns (out, lse), float64 [B, T, H, Dv] and [B, T, H]. `keep` [B, H, T, S] is the dropout mask.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    if shared_key is not None:
        key = with_shared(key, np.asarray(shared_key, np.float64))
    B, T, H, Dk = query.shape
    out, lse = np.zeros((B, T, H, value.shape[-1])), np.full((B, T, H), -np.inf)
    for b, h, i in np.ndindex(B, H, T):
        seen = np.flatnonzero(visible[b, h, i])
        if not len(seen):
            continue
        scores = key[b, seen, h] @ query[b, i, h] * (Dk**-0.5 if scale is None else scale)
        lse[b, i, h] = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        probabilities = np.exp(scores - lse[b, i, h])
        if keep is not None:
            probabilities *= keep[b, h, i, seen] / (1 - dropout_rate)
        out[b, i, h] = probabilities @ value[b, seen, h]
    return out, lse
