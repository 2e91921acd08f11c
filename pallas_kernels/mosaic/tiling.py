"""How the kernels are cut into items, blocks and stages, and for what."""

import dataclasses
from typing import ClassVar, NamedTuple

ROWS = 64  # of a warpgroup's product


class Gpu(NamedTuple):
    """What the kernels use of a GPU.

    Attributes:
      num_cores: streaming multiprocessors.
      has_tma: copies are TMA's; else cp.async's.
      has_wgmma: products are those of a warpgroup; else mma.sync's.
      overlap: tilings may overlap products with softmaxes; without, the kernels give the same bits, more slowly.
    """

    num_cores: int
    has_tma: bool = True
    has_wgmma: bool = True
    overlap: bool = True


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a kernel is cut for Hopper.

    Attributes:
      warpgroups: that compute, 64 own rows each.
      columns: of a block of the other side.
      stages: blocks of the other side in the ring: the one at work, the next, so that loading goes on meanwhile, and
        with `overlap` the one before, without which warpgroups would wait for each other for ever.
      own_stages: items whose own rows are in shared memory at the same time.
      overlap: products of a block run while the next block's scores become weights, which takes registers.
      scores_together: without `overlap`, all score products of a block start at once, which takes registers, too.
      persistent: a program for each core of the GPU goes through several items; else each item has its own.
      unmasked_loop: blocks inside the band have a loop of their own, without masks, which takes registers.
      own_in_registers: own rows go into the score products from registers, which spares shared memory a third to half
        of its reads, in place of from shared memory.
      delta_inside: dq computes delta, from `out` in shared memory, in place of XLA; no matter to other kernels.
      sum_columns: launches of the backward kernels compute at most so many columns each of the gradients, which takes
        fewer registers, and the scores once for each launch; None is all.
      turns: warpgroups start the products of a block one after the other, so that they are not all busy with their
        softmax at the same time; only with `overlap`.
    """

    warpgroups: int
    columns: int
    stages: int
    own_stages: int = 1
    overlap: bool = True
    scores_together: bool = False
    persistent: bool = True
    unmasked_loop: bool = True
    own_in_registers: bool = False
    delta_inside: bool = False
    sum_columns: int | None = None
    turns: bool = False

    def __post_init__(self) -> None:
        if self.warpgroups not in (1, 2, 3, 4):
            raise ValueError(f"warpgroups is {self.warpgroups}; 1 to 4 were expected")
        if self.columns <= 0 or self.columns % 64:
            raise ValueError(f"columns is {self.columns}; a multiple of 64 was expected")
        if self.own_stages < 1:
            raise ValueError(f"own_stages is {self.own_stages}; at least 1 was expected")
        if self.stages < (least := 3 if self.overlap else 2):
            raise ValueError(f"stages is {self.stages}; with overlap={self.overlap} at least {least} are needed")
        if self.turns and not (self.overlap and self.warpgroups > 1):
            raise ValueError("turns is True; overlap and several warpgroups were expected with it")
        if self.scores_together and self.overlap:
            raise ValueError("scores_together is True; overlap=False was expected with it")

    @property
    def rows(self) -> int:
        return ROWS * self.warpgroups

    @property
    def threads(self) -> int:
        """Warpgroups of a program: those that compute and one that loads."""
        return self.warpgroups + 1


@dataclasses.dataclass(frozen=True)
class MmaTiling:
    """How a kernel is cut where products are mma.sync's: a program is one warpgroup and has one item.

    Attributes:
      columns: of a block of the other side.
      unmasked_loop, sum_columns: as `Tiling`'s.
    """

    columns: int
    unmasked_loop: bool = True
    sum_columns: int | None = None
    rows: ClassVar[int] = ROWS
    threads: ClassVar[int] = 1
    persistent: ClassVar[bool] = False
    delta_inside: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.columns <= 0 or self.columns % 16:
            raise ValueError(f"columns is {self.columns}; a multiple of 16 was expected")


# The fastest on an H200 of those that compile without spills and fit into shared memory with all limits at once.
_TILINGS = {
    ("forward", 64, 64, 0): Tiling(4, columns=64, stages=4, own_stages=2, overlap=False),
    ("forward", 128, 64, 0): Tiling(3, columns=64, stages=4, own_stages=2),
    ("forward", 128, 128, 0): Tiling(2, columns=64, stages=3),
    ("dq", 64, 64, 0): Tiling(2, columns=64, stages=4, own_stages=2, own_in_registers=True, delta_inside=True),
    ("dq", 128, 64, 0): Tiling(2, columns=64, stages=4, delta_inside=True),
    ("dq", 128, 128, 0): Tiling(2, columns=64, stages=3, overlap=False, own_in_registers=True),
    ("dkdv", 64, 64, 0): Tiling(3, columns=64, stages=4, own_stages=2, overlap=False),
    ("dkdv", 128, 64, 0): Tiling(2, columns=64, stages=4, overlap=False, unmasked_loop=False),
    ("dkdv", 128, 128, 0): Tiling(2, columns=64, stages=2, overlap=False, persistent=False, unmasked_loop=False),
    # With a shared key: not measured.
    ("forward", 64, 64, 64): Tiling(4, columns=64, stages=3, overlap=False),
    ("forward", 64, 64, 128): Tiling(2, columns=64, stages=3),
    ("forward", 64, 64, 192): Tiling(2, columns=64, stages=3, persistent=False),
    ("forward", 128, 128, 64): Tiling(2, columns=64, stages=3),
    ("forward", 128, 128, 128): Tiling(2, columns=64, stages=2, overlap=False),
    ("forward", 128, 128, 192): Tiling(1, columns=64, stages=2, overlap=False),
    ("dq", 64, 64, 64): Tiling(2, columns=64, stages=3, overlap=False, delta_inside=True),
    ("dq", 64, 64, 128): Tiling(2, columns=64, stages=2, overlap=False, unmasked_loop=False),
    ("dq", 64, 64, 192): Tiling(2, columns=64, stages=2, overlap=False, unmasked_loop=False, sum_columns=128),
    ("dq", 128, 128, 64): Tiling(2, columns=64, stages=2, overlap=False, unmasked_loop=False, sum_columns=128),
    ("dq", 128, 128, 128): Tiling(1, columns=64, stages=2, overlap=False, sum_columns=128),
    ("dq", 128, 128, 192): Tiling(1, columns=64, stages=2, overlap=False, sum_columns=128),
    ("dkdv", 64, 64, 64): Tiling(2, columns=64, stages=3, overlap=False, unmasked_loop=False),
    ("dkdv", 64, 64, 128): Tiling(2, columns=64, stages=2, overlap=False, unmasked_loop=False),
    ("dkdv", 64, 64, 192): Tiling(2, columns=64, stages=2, overlap=False, unmasked_loop=False),
    ("dkdv", 128, 128, 64): Tiling(1, columns=64, stages=2, overlap=False, persistent=False, unmasked_loop=False),
    ("dkdv", 128, 128, 128): Tiling(1, columns=64, stages=2, overlap=False, persistent=False, unmasked_loop=False),
    ("dkdv", 128, 128, 192): Tiling(
        1, columns=64, stages=2, overlap=False, persistent=False, unmasked_loop=False, sum_columns=128
    ),
    **{
        ("dshared", dim, dim, shared): Tiling(
            1, columns=64, stages=2, overlap=False, persistent=False, unmasked_loop=False, sum_columns=128
        )
        for dim in (64, 128)
        for shared in (64, 128, 192)
    },
}


# Without spills for A100, H100 and B200; other tilings have not been measured.
_MMA_TILINGS = {
    ("forward", 64, 64, 0): MmaTiling(64),
    ("forward", 128, 64, 0): MmaTiling(64),
    ("forward", 128, 128, 0): MmaTiling(64),
    ("dq", 64, 64, 0): MmaTiling(64),
    ("dq", 128, 64, 0): MmaTiling(32),
    ("dq", 128, 128, 0): MmaTiling(32),
    ("dkdv", 64, 64, 0): MmaTiling(32),
    ("dkdv", 128, 64, 0): MmaTiling(32),
    ("dkdv", 128, 128, 0): MmaTiling(16),
    **{("forward", 64, 64, shared): MmaTiling(64) for shared in (64, 128, 192)},
    **{("forward", 128, 128, shared): MmaTiling(32) for shared in (64, 128, 192)},
    **{("dq", 64, 64, shared): MmaTiling(32, sum_columns=128) for shared in (64, 128, 192)},
    **{("dq", 128, 128, shared): MmaTiling(32, sum_columns=128) for shared in (64, 128, 192)},
    **{("dkdv", 64, 64, shared): MmaTiling(32) for shared in (64, 128, 192)},
    **{("dkdv", 128, 128, shared): MmaTiling(32, sum_columns=128) for shared in (64, 128, 192)},
    **{("dshared", d, d, shared): MmaTiling(32, sum_columns=128) for d in (64, 128) for shared in (64, 128, 192)},
}


def hopper_tiling(kernel: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> Tiling:
    """Of one of the kernels "forward", "dq", "dkdv" and "dshared", for an entry of HEAD_DIMS or SHARED_HEAD_DIMS."""
    return _TILINGS[kernel, key_dim, value_dim, shared_dim]


def mma_tiling(kernel: str, key_dim: int, value_dim: int, shared_dim: int = 0) -> MmaTiling:
    """As `hopper_tiling`."""
    return _MMA_TILINGS[kernel, key_dim, value_dim, shared_dim]
