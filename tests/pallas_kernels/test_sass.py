"""The reading of Hopper's machine code, on short programs that are right and on ones with one fault each."""

import re

import pytest

from benchmarks.sass import Code, exponentials_beside_products, registers_beyond, touched_in_flight


def sass(*lines: str) -> str:
    """As nvdisasm prints them; a label is a line that begins with a dot."""
    addresses = iter(range(0, 16 * len(lines), 16))
    return "\n".join(
        f"{x}:" if x.startswith(".") else f"   -:-:-:Y:01        /*{next(addresses):04x}*/   {x} " for x in lines
    )


SCORES = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT, gsb0"  # R24..R55
SUMS = "HGMMA.64x64x16.F32.BF16 R56, R88, gdesc[UR8].tnspB, R56"  # R56..R87, of R88..R91
MORE_SUMS = "HGMMA.64x64x16.F32.BF16 R56, R92, gdesc[UR8].tnspB, R56, gsb0"
WAIT_SCORES, WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x1", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
USE_SCORES, USE_SUMS = "FADD R2, R55, -R3.reuse", "FMUL R56, R56, R4"

# A loop as ours: sums are in flight beside the exponentials, and once more across the branch back.
LOOP = [
    "F2FP.BF16.F32.PACK_AB R88, R5, R6",
    SCORES,
    WAIT,
    ".L_x_1",
    SUMS,
    MORE_SUMS,
    WAIT_SCORES,
    USE_SCORES,
    "MUFU.EX2 R7, R2",
    WAIT,
    "F2FP.BF16.F32.PACK_AB R88, R7, R6",
    USE_SUMS,
    SCORES,
    "@P1 BRA `(.L_x_1)",
    WAIT,
    "STSM.16.M88.4 [R1], R84",
    "EXIT",
]


def test_a_loop_that_waits_is_right() -> None:
    assert touched_in_flight(sass(*LOOP)) == []
    assert exponentials_beside_products(sass(*LOOP)) == 1


def test_a_product_that_nobody_uses_adds_to_nothing() -> None:
    unused = "HGMMA.64x8x16.F16 RZ, gdesc[URZ], RZ, !UPT, gsb0"
    assert touched_in_flight(sass(unused, SCORES, WAIT, USE_SCORES, "EXIT")) == []
    # But it counts where a wait leaves one in flight: that is the second.
    assert "touches R24..R55" in touched_in_flight(sass(unused, SCORES, WAIT_SCORES, USE_SCORES, "EXIT"))[0]


def without(*lines: str) -> list[str]:
    """The loop without the last of each."""
    left = LOOP[::-1]
    for line in lines:
        left.remove(line)
    return left[::-1]


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        # Behind the loop: the scores of the last round are not waited for when the program ends.
        (without(WAIT), "EXIT  ends before .*HGMMA.64x64x16.F32.BF16 R24"),
        # The wait in the loop is gone: a left operand is written, and sums are read, too early.
        ([x for x in LOOP if x != WAIT], "PACK_AB R88, R7, R6 writes R88..R91, which .* reads"),
        ([x for x in LOOP if x != WAIT], "FMUL R56, R56, R4 touches R56..R87, to which .* adds"),
        (without(WAIT_SCORES), "FADD R2, R55, -R3.reuse touches R24..R55, to which .* adds"),
        # Only the branch back leads there.
        ([*LOOP[:4], "MOV R30, R2", *LOOP[4:]], "MOV R30, R2 touches R24..R55"),
        # Pairs and fours of registers.
        ([SUMS, "LDS.64 R90, [R2+0x10]", MORE_SUMS, WAIT, "EXIT"], "LDS.64 R90, .* writes R88..R91"),
        ([SCORES, "IMAD.WIDE.U32 R22, R2, R3, R20", "CS2R R22, SRZ", WAIT, "EXIT"], None),
        ([SCORES, "IMAD.WIDE.U32 R2, R4, R5, R23", WAIT, "EXIT"], "IMAD.WIDE.U32 .* touches R24..R55"),
        ([SCORES, "CS2R R54, SRZ", WAIT, "EXIT"], "CS2R R54, SRZ touches R24..R55"),
        ([SCORES, "STS.128 [R2], R21", WAIT, "EXIT"], "STS.128 .* touches R24..R55"),
        ([SCORES, "STS.128 [R2], R20", "LDG.E.128 R56, desc[UR4][R22.64]", WAIT, "EXIT"], None),
        ([SCORES, "LDG.E R56, desc[UR4][R54.64+0x8]", WAIT, "EXIT"], "LDG.E R56, .* touches R24..R55"),
        # Another product with what is added to as its left operand, or with other accumulators in the same place.
        ([SCORES, "HGMMA.64x64x16.F32.BF16 R56, R40, gdesc[UR8], R56, gsb0", WAIT, "EXIT"], "touches R24..R55"),
        ([SCORES, "HGMMA.64x32x16.F32.BF16 R40, gdesc[UR8], R40, gsb0", WAIT, "EXIT"], "touches R24..R55"),
        # Reading a left operand is no fault, nor is what only one side of a branch waits for, on that side.
        ([SUMS, "MOV R2, R88", MORE_SUMS, WAIT, "EXIT"], None),
        ([SCORES, "@P0 BRA `(.L_x_2)", WAIT, USE_SCORES, "EXIT", ".L_x_2", WAIT, "EXIT"], None),
        ([SCORES, "@P0 BRA `(.L_x_2)", WAIT, ".L_x_2", USE_SCORES, WAIT, "EXIT"], "FADD .* touches R24..R55"),
        ([SCORES, "BRA UP0, `(.L_x_2)", WAIT, ".L_x_2", USE_SCORES, WAIT, "EXIT"], "FADD .* touches R24..R55"),
        # A wait that not all pass is none.
        ([SCORES, f"@P0 {WAIT}", USE_SCORES, WAIT, "EXIT"], "FADD .* touches R24..R55"),
    ],
)
def test_one_fault_is_seen(program: list[str], fault: str | None) -> None:
    found = touched_in_flight(sass(*program))
    assert not found if fault is None else any(re.search(fault, x) for x in found), found


def test_what_cannot_be_followed_is_not_passed() -> None:
    with pytest.raises(ValueError, match="a jump that cannot be followed: 0010: BRX R2"):
        touched_in_flight(sass(SCORES, "BRX R2 -0x10", "EXIT"))
    with pytest.raises(ValueError, match="more than 7 groups of products in flight"):
        touched_in_flight(sass(".L_x_0", *[SCORES] * 4, "BRA `(.L_x_0)"))
    with pytest.raises(ValueError, match="no instructions"):
        Code.parse("nothing")


ROLES = [
    "MOV R60, R2",
    "@P1 BRA `(.L_x_0)",
    "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xa0",
    "FADD R159, R2, R3",
    "EXIT",
    ".L_x_0",
    "USETMAXREG.DEALLOC.CTAPOOL 0x20",
    ".L_x_1",
    "IADD3 R31, R2, R3, RZ",
    "@P0 BRA `(.L_x_1)",
    "EXIT",
]


def test_registers_that_were_given_up() -> None:
    assert registers_beyond(sass(*ROLES)) == []
    for before, after, sentence in (
        ("IADD3 R31, R2, R3, RZ", "IADD3 R2, R31, R32, RZ", "IADD3 .* uses more than the 32 registers of .*DEALLOC"),
        ("IADD3 R31, R2, R3, RZ", "LDS.64 R31, [R2]", "LDS.64 .* uses more than the 32 registers of .*DEALLOC"),
        ("FADD R159, R2, R3", "FADD R160, R2, R3", "FADD .* uses more than the 160 registers of .*TRY_ALLOC"),
    ):
        (found,) = registers_beyond(sass(*(after if x == before else x for x in ROLES)))
        assert re.search(sentence, found)
