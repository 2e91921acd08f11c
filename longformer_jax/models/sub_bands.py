"""How the window of a layer with Transformer-XL's positions is cut into calls of the attention op.

The longer a band, the more of the sinusoid's frequencies it takes to tell its distances apart, and every one widens the
heads. But distances a + m, for m from 0 to n, need no more than 0 to n do (`positions.further`). So a long window
becomes several sub-bands, each with a short band's dimensions, whose results merge exactly by their log-sum-exp.
"""

import bisect
import dataclasses
import functools
import itertools

from longformer_jax.models.positions import Basis, band_basis

# What the sinusoid may add to a head: the GPU kernels take no more beside a head_dim of 128.
LARGEST_DIM = 192
# The cost of a sub-band in training, in multiplications for one query of one head, with a head_dim D and R dimensions
# of the sinusoid. Counted: a pair of query and key takes D + R (scores) and D (values) forward, 2 (D + R) and 3 D
# backward; kernels that compute dq and dk apart take D + R and D more. Measured on a CPU, in windows of 512 to 2,048
# steps: a sub-band takes as long as if it had _EDGE steps more, for the blocks that are partly masked, and as long as
# D * _MERGE multiplications more, for what is read, merged and added up once in each.
_EDGE = 64
_MERGE = 800
# Sub-bands cost memory and time to compile, too: the fewest are taken whose cost is that near to the least.
_NEAR = 1.05
_MOST = 64  # sub-bands; where they would not be enough, there is one, with all frequencies that it takes


@dataclasses.dataclass(frozen=True)
class SubBand:
    """Steps `first` to `first + window` of a window: what is seen from `first * dilation` positions back."""

    first: int
    window: int


@dataclasses.dataclass(frozen=True, eq=False)
class Heads:
    """Heads [start, stop), the basis of their sub-bands, and these, which hold every step of the window once."""

    start: int
    stop: int
    dilations: tuple[int, ...]  # of each head; all the same where there is more than one sub-band
    basis: Basis
    sub_bands: tuple[SubBand, ...]

    @property
    def reach(self) -> int:
        """How many positions back they see."""
        last = self.sub_bands[-1]
        return (last.first + last.window) * max(self.dilations)

    def distance(self, sub_band: SubBand) -> int:
        """From the query to the nearest key of the sub-band, in positions."""
        return sub_band.first * self.dilations[0]


@functools.lru_cache(maxsize=1024)
def cut_window(width: int, head_dim: int, window: int, dilations: tuple[int, ...], longest: int) -> tuple[Heads, ...]:
    """The cheapest calls for a causal window, by the cost of training; the heads of each dilation have their own.

    Args:
      width: of the sinusoid.
      head_dim: of query, key and value, without positions.
      window: how many steps back a query sees, besides itself.
      dilations: for each head, the distance between steps, in positions.
      longest: the largest distance between a query and a key.
    """
    apart, start = [], 0
    for dilation, run in itertools.groupby(dilations):
        stop = start + len(list(run))
        apart.append(_cut_heads(width, head_dim, start, stop, dilation, min(window, longest // dilation) + 1))
        start = stop
    options = [tuple(apart)]
    if len(apart) > 1 and all(len(heads.sub_bands) == 1 for heads in apart):
        basis = band_basis(width, min(window * max(dilations), longest))
        if basis.dim <= LARGEST_DIM:
            options.append((Heads(0, start, dilations, basis, (SubBand(0, window),)),))
    return _cheapest(options, head_dim)


def _cut_heads(width: int, head_dim: int, start: int, stop: int, dilation: int, steps: int) -> Heads:
    """The same for heads of one dilation: as few sub-bands as `LARGEST_DIM` allows, or 2, 4, 8, … times as many."""

    def cut(count: int) -> Heads:
        length = -(-steps // count)
        sub_bands = tuple(SubBand(first, min(length, steps - first) - 1) for first in range(0, steps, length))
        basis = band_basis(width, (length - 1) * dilation)
        return Heads(start, stop, (dilation,) * (stop - start), basis, sub_bands)

    counts = range(1, _MOST + 1)
    fewest = bisect.bisect_left(counts, True, key=lambda count: cut(count).basis.dim <= LARGEST_DIM) + 1
    options: list[tuple[Heads, ...]] = [(cut(fewest if fewest in counts else 1),)]
    while options[-1][0].sub_bands[0].window > _EDGE:
        options.append((cut(2 * len(options[-1][0].sub_bands)),))
    return _cheapest(options, head_dim)[0]


def _cheapest(options: list[tuple[Heads, ...]], head_dim: int) -> tuple[Heads, ...]:
    costs = [sum(_cost(heads, head_dim) for heads in option) for option in options]
    near = [option for option, cost in zip(options, costs, strict=True) if cost <= _NEAR * min(costs)]
    return min(near, key=lambda option: sum(len(heads.sub_bands) for heads in option))


def _cost(heads: Heads, head_dim: int) -> int:
    """Multiplications for one query in training."""
    R, count = heads.basis.dim, len(heads.sub_bands)
    pairs = sum(sub_band.window + 1 for sub_band in heads.sub_bands) + count * _EDGE
    other = count * (3 * head_dim * R + _MERGE * head_dim)  # what makes the query's half, and what comes after
    return (heads.stop - heads.start) * (pairs * (7 * head_dim + 3 * R) + other)
