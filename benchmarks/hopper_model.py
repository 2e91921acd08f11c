"""What the Hopper kernels' pipelines have to do, counted and not measured, beside what an H100 could do at best.

python -m benchmarks.hopper_model                        B=1, H=12, T=32768, 256 keys a side, head_dim 64
python -m benchmarks.hopper_model --head-dim=128,64 --length=8192
"""

import argparse
import dataclasses
from typing import Any

from pallas_kernels.block_sizes import PASSES
from pallas_kernels.mosaic.attention import HEAD_DIMS
from pallas_kernels.mosaic.items import Item, Schedule, aligned
from pallas_kernels.mosaic.tiling import ROWS, Gpu, Tiling, hopper_tiling
from pallas_kernels.walk import Walk

# An H100 SXM: dense 16-bit products, memory, special function units, and what a core has for its programs.
FLOPS, BANDWIDTH, EXPONENTIALS = 990e12, 3.0e12, 132 * 16 * 1.755e9
SHARED_MEMORY, REGISTERS = 227 * 2**10, 65536

_PRODUCTS = {"forward": (1, 1), "dq": (2, 1), "dkdv": (2, 2)}  # over key_dim, over value_dim
_TILES = {  # (own, other, written) of query's or key's head_dim, of value's or dout's, and lines of one number a row
    "forward": ((1, 0, 0), (1, 1, 0), (0, 1, 1)),
    "dq": ((1, 1, 2), (1, 1, 0), (1, 0, 0)),
    "dkdv": ((1, 1, 0), (1, 1, 2), (1, 1, 0)),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """One pass, over all items of one head: counts, bytes, and of a program shared memory; see `table`."""

    kernel: str
    tiling: Tiling
    items: int  # blocks of own rows
    blocks: int  # that go through the ring
    computed: int  # pairs of rows in the blocks that warpgroups take part in
    band: int  # pairs that are visible
    products: float  # FLOPs for each pair
    moved: int  # bytes to and from shared memory
    least: int  # bytes of all arrays, once
    shared_memory: int

    @property
    def programs_per_core(self) -> int:
        """How many fit at once, by shared memory and registers."""
        threads = 128 * (self.tiling.warpgroups + 1)
        registers = threads * {1: 255, 2: 168, 3: 128, 4: 96}[self.tiling.warpgroups]
        return min(SHARED_MEMORY // self.shared_memory, REGISTERS // registers)


def model(kernel: str, dims: tuple[int, int], length: int, window: int) -> Model:
    """Counts for 16-bit inputs without limits; `window` keys to either side."""
    tiles = hopper_tiling(kernel, *dims)
    walk = Walk(length, length, window, window, 0, (1,), tiles.rows, tiles.columns)
    unused: Any = None
    schedule = Schedule(unused, walk, tiles, own_is_query=True, first_head=0, batch=1, gpu=Gpu(num_cores=1))
    blocks = computed = 0
    for number in range(walk.programs):
        block = aligned(walk.block(number, 0), tiles.columns)
        blocks += int(block.count)
        for warpgroup in range(tiles.warpgroups):
            rows = Item(schedule, 0, 0, 0, None, block).own_rows(warpgroup, numbers=unused)
            begin, _, _, end = rows.bounds
            computed += int(end - begin) * ROWS * tiles.columns

    def row_bytes(counts: tuple[int, int, int]) -> int:
        return 2 * (counts[0] * dims[0] + counts[1] * dims[1]) + 4 * counts[2]

    own, other, written = map(row_bytes, _TILES[kernel])
    over_key, over_value = _PRODUCTS[kernel]
    return Model(
        kernel=kernel,
        tiling=tiles,
        items=walk.programs,
        blocks=blocks,
        computed=computed,
        band=sum(max(0, length - abs(m)) for m in range(-window, window + 1)),
        products=2.0 * (over_key * dims[0] + over_value * dims[1]),
        moved=walk.programs * tiles.rows * own + blocks * tiles.columns * other + length * written,
        least=length * (own + other + written),
        shared_memory=tiles.rows * (tiles.own_stages * own + written) + tiles.stages * tiles.columns * other,
    )


def table(models: list[Model], heads: int) -> str:
    """Floors in microseconds: of the products in the exact band and as computed, exponentials, and bytes, if each array
    came from memory once and if none of TMA's loads were served by the second-level cache."""
    lines = [
        "| kernel | warpgroups, columns, stages | items | blocks | computed / band | KB shared | programs a core "
        "| products, band | products | exponentials | bytes, least | bytes, moved |",
        "|---" * 12 + "|",
    ]
    for m in models:
        t = m.tiling
        micros = [
            heads * x * 1e6
            for x in (
                m.band * m.products / FLOPS,
                m.computed * m.products / FLOPS,
                m.computed / EXPONENTIALS,
                m.least / BANDWIDTH,
                m.moved / BANDWIDTH,
            )
        ]
        lines.append(
            f"| {m.kernel} | {t.warpgroups}, {t.columns}, {t.stages} | {heads * m.items} | {heads * m.blocks} "
            f"| {m.computed / m.band:.3f} | {m.shared_memory / 1024:.0f} | {m.programs_per_core} | "
            + " | ".join(f"{x:.0f}" for x in micros) + " |"
        )  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {f"{k},{v}": (k, v) for k, v in HEAD_DIMS}
    parser.add_argument("--head-dim", choices=names, default="64,64", help="of key and value")
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--window", type=int, default=256, help="keys to either side")
    parser.add_argument("--heads", type=int, default=12)
    options = parser.parse_args()
    models = [model(kernel, names[options.head_dim], options.length, options.window) for kernel in PASSES]
    print(table(models, options.heads))


if __name__ == "__main__":
    main()
