"""The geometry of the kernels' loops, against the band's definition."""

import numpy as np
import pytest

from pallas_kernels.walk import Walk
from tests.attention.oracle import visible_keys

WALKS = {
    "bidirectional": Walk(200, 200, 30, 30, 0, (1, 1), 32, 16),
    "causal": Walk(257, 257, 64, 0, 0, (1,), 64, 32),
    "window_0": Walk(100, 100, 0, 0, 0, (1,), 16, 16),
    "one_row": Walk(1, 1, 5, 5, 0, (1,), 64, 64),
    "wider_than_everything": Walk(70, 50, 500, 500, 3, (1, 2), 32, 16),
    "dilated": Walk(203, 197, 7, 12, 0, (3, 1, 5), 16, 32),
    "dilated_ahead": Walk(101, 140, 9, 4, 38, (2, 3), 16, 16),
    "dilated_behind": Walk(140, 101, 4, 9, -38, (2, 7), 32, 16),
    "out_of_reach": Walk(64, 64, 5, 5, 1000, (1, 3), 16, 16),
    "dilation_beyond_everything": Walk(20, 30, 3, 3, 2, (50,), 16, 16),
    "few_keys": Walk(300, 5, 40, 40, -100, (1,), 64, 16),
}
every_walk = pytest.mark.parametrize("walk", [pytest.param(walk, id=name) for name, walk in WALKS.items()])


def visible(walk: Walk, head: int) -> np.ndarray:
    """Booleans [own positions, the other side's]."""
    seen = np.zeros((walk.length, walk.other_length), bool)
    band = {"window": (walk.left, walk.right), "dilation": walk.dilations, "key_offset": walk.offset}
    for i in range(walk.length):
        seen[i, visible_keys(i, head, walk.other_length, **band)] = True
    return seen


def visits(walk: Walk, head: int) -> list[tuple[np.ndarray, list[tuple[np.ndarray, bool]]]]:
    """(own positions, [(the other side's positions, whether the block is taken to need no mask)]) of each program."""
    found = []
    for program in range(walk.programs):
        block = walk.block(program, head)
        if not block.live:
            continue
        rows = np.arange(block.first, min(block.first + walk.rows, block.end))
        blocks = []
        for n in range(block.count):
            start = block.start + n * walk.columns
            others = np.arange(start, min(start + walk.columns, block.stop))
            blocks.append((others * block.dilation + block.other_residue, block.interior <= n < block.edge))
        found.append((rows * block.dilation + block.residue, blocks))
    return found


@every_walk
@pytest.mark.parametrize("side", ["own", "other"])
def test_every_visible_pair_is_visited_once(walk: Walk, side: str) -> None:
    walk = walk if side == "own" else walk.transposed(walk.columns, walk.rows)
    for head in range(len(walk.dilations)):
        seen, visited = visible(walk, head), np.zeros((walk.length, walk.other_length), int)
        for own, blocks in visits(walk, head):
            for others, _ in blocks:
                visited[np.ix_(own, others)] += 1
        assert visited.max() <= 1
        assert (visited[seen] == 1).all()


@every_walk
def test_every_row_has_one_program(walk: Walk) -> None:
    for head in range(len(walk.dilations)):
        own = np.concatenate([own for own, _ in visits(walk, head)])
        assert np.array_equal(np.sort(own), np.arange(walk.length))


@every_walk
def test_no_more_blocks_than_the_band_fills(walk: Walk) -> None:
    for head in range(len(walk.dilations)):
        seen = visible(walk, head)
        for own, blocks in visits(walk, head):
            reached = np.flatnonzero(seen[own].any(0))
            if len(own) == walk.rows and len(reached):
                rows = (reached[-1] - reached[0]) // walk.dilations[head] + 1
                assert len(blocks) == -(-rows // walk.columns)
            elif not len(reached):
                # A block of fewer rows than it has room for may look a block too far, never a block of others.
                assert len(blocks) <= -(-walk.rows // walk.columns)


@every_walk
def test_blocks_without_a_mask_are_visible_as_a_whole(walk: Walk) -> None:
    for head in range(len(walk.dilations)):
        seen = visible(walk, head)
        for own, blocks in visits(walk, head):
            for others, unmasked in blocks:
                if unmasked:
                    assert len(others) == walk.columns
                    assert seen[np.ix_(own, others)].all()


def test_only_the_edges_are_masked() -> None:
    """At 256 to either side, in the middle: one block of 64 keys at either end, seven without a mask."""
    walk = Walk(4096, 4096, 256, 256, 0, (1,), 64, 64)
    block = walk.block(20, 0)
    assert (block.count, block.interior, block.edge) == (9, 1, 8)


def test_work_is_linear() -> None:
    def blocks(length: int) -> int:
        walk = Walk(length, length, 256, 0, 0, (1,), 128, 64)
        return sum(walk.block(program, 0).count for program in range(walk.programs))

    assert blocks(8192) - blocks(4096) == blocks(12288) - blocks(8192) == 4096 // 128 * 6
