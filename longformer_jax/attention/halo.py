"""A sequence that is split over devices: each holds an equal part, and has its neighbours' edges sent for its band.

Everything here runs inside `jax.shard_map` over the axis of that name.
"""

import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.attention.band import Band


def halo_sizes(band: Band, length: int, axis_name: str) -> tuple[int, int]:
    """How many rows before and behind its own part a device's queries see, at most all of the others'.

    Args:
      band: of the whole sequence.
      length: of a part.
    """
    others = (lax.axis_size(axis_name) - 1) * length
    farthest = max(band.dilation)
    before, behind = band.left * farthest - band.key_offset, band.right * farthest + band.key_offset
    return min(max(before, 0), others), min(max(behind, 0), others)


def with_halo(x: jax.Array, before: int, behind: int, axis_name: str) -> jax.Array:
    """A device's part between the rows of its neighbours; zeros where the sequence has none.

    Args:
      x: [B, T, …], the part.
      before, behind: how many rows, which may be more than a neighbour has: then they come from farther ones, too.

    Returns:
      [B, before + T + behind, …].
    """
    size, length = lax.axis_size(axis_name), x.shape[1]

    def sent(hop: int, rows: slice) -> jax.Array:
        """Those rows of the device that is `hop` places before, or behind where negative."""
        pairs = [(source, source + hop) for source in range(size) if 0 <= source + hop < size]
        return lax.ppermute(x[:, rows], axis_name, pairs)

    parts = [sent(hop, slice(length - rows, length)) for hop, rows in _hops(before, length)][::-1]
    parts.append(x)
    parts += [sent(-hop, slice(0, rows)) for hop, rows in _hops(behind, length)]
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else x


def _hops(rows: int, length: int) -> list[tuple[int, int]]:
    """(distance in devices, rows from there), the nearest first."""
    return [(hop, min(length, rows - (hop - 1) * length)) for hop in range(1, -(-rows // length) + 1)]
