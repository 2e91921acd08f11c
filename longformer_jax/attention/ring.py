"""The walk of blockwise attention: tiles of one side's rows, beside a ring buffer of the other side's tiles.

A ring that would be as long as the other side gives way to all of it, which each tile then meets once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.attention.pallas import default_device
from longformer_jax.attention.varying import vary_as


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk over `length` rows in tiles beside a ring of tiles of the other side, `ring_length` rows.

    Row i sees rows i + lower ... i + upper of the other side. Tiles may stick out of either array: such a tile is
    loaded from the nearest place inside, and only the rows that belong to it count. The last tile of the walk ends
    with the array, so that what an overlapping first tile stores wrongly is overwritten by the next.

    Lanes are walks over as many parts of the rows, in step: their tiles lie side by side on the leading axis, where
    arrays are [lanes * N, rows, ...].
    """

    length: int
    ring_length: int
    lower: int
    upper: int
    tile: int
    lanes: int = 1

    @property
    def steps(self) -> int:
        return -(-self.length // (self.tile * self.lanes))

    @property
    def slots(self) -> int:
        return -(-(self.tile + self.upper - self.lower) // self.tile)

    @property
    def holds_all(self) -> bool:
        """Whether all of the other side is there at every step, loaded once, in place of a ring."""
        return self.slots * self.tile >= self.ring_length

    @property
    def first_load(self) -> int:
        """Rows of the other side that `run` begins with: all, or a tile, which the ring is made for."""
        return self.ring_length if self.holds_all else self.tile

    def tile_start(self, step):
        """First row of each lane's tile of this step, [lanes]; the tile is loaded from max(0, this)."""
        first = jnp.arange(self.lanes) * self.steps
        return self.length - (self.lanes * self.steps - first - step) * self.tile

    def ring_start(self, tile):
        """First rows of tiles of the ring, and the rows they are loaded from, [lanes] or, for tiles [n], [lanes, n].

        Step s sees the tiles s ... s + slots - 1.
        """
        start = jnp.add.outer(self.tile_start(0) + self.lower, tile * self.tile)
        return start, jnp.clip(start, 0, self.ring_length - self.tile)

    def tile_rows(self, step) -> tuple[jax.Array, jax.Array]:
        """Row numbers of the loaded tiles, [lanes, tile], and which of them belong to them."""
        start = self.tile_start(step)[:, None]
        rows = jnp.maximum(start, 0) + jnp.arange(self.tile)[None]
        return rows, rows < start + self.tile

    def ring_rows(self, step) -> tuple[jax.Array, jax.Array]:
        """Row numbers that are held at this step, [lanes, slots * tile] or [lanes, ring_length], and which count."""
        if self.holds_all:
            rows = jnp.broadcast_to(jnp.arange(self.ring_length), (self.lanes, self.ring_length))
            return rows, jnp.ones_like(rows, bool)
        newest = step + self.slots - 1
        tile = newest - (newest - jnp.arange(self.slots)) % self.slots
        start, loaded = (x[..., None] for x in self.ring_start(tile))
        rows = loaded + jnp.arange(self.tile)[None, None]
        counts = (rows >= start) & (rows < start + self.tile)
        return rows.reshape(self.lanes, -1), counts.reshape(self.lanes, -1)

    def run(self, load, step, first, carry):
        """ring, carry = load(ring, carry, slot, tile) for each tile, then ring, carry = step(...) for each step.

        The ring is made for rows like those of `first`, `first_load` of them; if these are all, nothing is loaded.
        """
        # What depends on the step alone, such as the mask, JAX would hoist out of a differentiated scan over layers and
        # keep for all steps at once, T * window numbers: make the step depend on the data.
        zero, _ = lax.optimization_barrier((jnp.int32(0), first))
        if self.holds_all:
            return lax.fori_loop(0, self.steps, lambda s, c: step(*c, s + zero), (first, carry))
        ring = _empty_ring(first, self.slots)
        ring_and_carry = lax.fori_loop(0, self.slots - 1, lambda t, c: load(*c, t % self.slots, t), (ring, carry))

        def body(s, ring_and_carry):
            s += zero
            t = s + self.slots - 1
            return step(*load(*ring_and_carry, t % self.slots, t), s)

        return lax.fori_loop(0, self.steps, body, ring_and_carry)


def tile_size(shortest: int, width: int, backward: bool) -> int:
    """Rows in a tile: small beside the band, as its edges are computed in vain, but large enough for the matrix units.

    Measured on CPU (benchmarks/attention.py); elsewhere larger ones, as launching a step costs more there.
    """
    if shortest <= 256:
        return shortest
    if default_device().platform == "cpu":
        tile = 32 if width < 64 else 64 if width < (512 if backward else 1024) else 128
    else:
        tile = 256 if width <= 2048 else 128
    return min(tile, shortest)


def count_lanes(sequences: int, tiles: int) -> int:
    """Two where a step has few matrices to multiply: XLA's CPU backend shares them badly between threads.

    A lane must be longer than a tile that sticks out of the array, lest it overwrite rows of the next lane. Of a batch
    whose size is a symbol there may be many.
    """
    few = isinstance(sequences, int) and sequences <= 16
    return 2 if default_device().platform == "cpu" and few and tiles >= 16 else 1


def _empty_ring(tile: dict[str, jax.Array], slots: int) -> dict[str, jax.Array]:
    ring = {n: jnp.zeros((x.shape[0], slots * x.shape[1], *x.shape[2:]), x.dtype) for n, x in tile.items()}
    return vary_as(ring, *tile.values())


def load_tile(ring: dict[str, jax.Array], new: dict[str, jax.Array], row) -> dict[str, jax.Array]:
    return {name: lax.dynamic_update_slice_in_dim(x, new[name], row, 1) for name, x in ring.items()}
