"""What Hopper's machine code (SASS, as nvdisasm prints it) does with registers that warpgroup products are using.

A product (HGMMA) runs on after its instruction: it reads its left operand, where that is in registers, and adds to its
accumulators until a wait says that it is done. The hardware checks neither, and the assembler has been reported to
reuse registers too early. A product marked `gsb0` ends a group; `WARPGROUP.DEPBAR.LE gsb0, N` waits until at most the
last N groups are in flight. All paths through branches and loops are followed.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

_MOST_GROUPS = 8  # more in flight mean a loop that never waits
_NO_DESTINATION = ("BAR", "NANOSLEEP", "WARPSYNC", "R2UR", "R2P")  # and all whose first operand is no register
_UNFOLLOWED = ("BRX", "BRXU", "JMP", "JMX", "CALL", "RET", "BREAK", "YIELDTO")


class Span(NamedTuple):
    """Registers [first, stop)."""

    first: int
    stop: int

    def overlaps(self, other: "Span") -> bool:
        return self.first < other.stop and other.first < self.stop

    def __str__(self) -> str:
        return f"R{self.first}..R{self.stop - 1}"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `@P0 OPCODE operand, operand`."""

    address: str
    predicate: str
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.address}: {self.opcode} {', '.join(self.operands)}"

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_product(self) -> bool:
        return self.name in ("HGMMA", "IGMMA", "QGMMA", "BGMMA")

    @property
    def ends_group(self) -> bool:
        return self.is_product and "gsb0" in self.operands

    @property
    def left_in_flight(self) -> int | None:
        """Groups that a wait leaves in flight; None of what is no wait."""
        if not self.opcode.startswith("WARPGROUP.DEPBAR"):
            return None
        return int(self.operands[1], 0)

    @property
    def accumulators(self) -> Span | None:
        """Of a product; None where nobody wants the sums, and the assembler keeps it to wait for only."""
        return next(iter(self.written), None)

    @property
    def left_operand(self) -> Span | None:
        """Of a product; None where it is in shared memory."""
        return _span(self.operands[1], 4)

    @property
    def written(self) -> list[Span]:
        if self.name in _NO_DESTINATION:
            return []
        number = 1 if self.name == "SHFL" else 0  # SHFL's first result is a predicate
        spans = (_span(operand, self._width(number)) for operand in self.operands[number : number + 1])
        return [span for span in spans if span]

    @property
    def touched(self) -> list[Span]:
        """Registers that are read or written."""
        spans = []
        for number, operand in enumerate(self.operands):
            if span := _span(operand, self._width(number)):
                spans.append(span)
            elif "[" in operand:  # an address
                for register, is_pair in re.findall(r"(?<![A-Z])R(\d+)(\.64)?", operand):
                    spans.append(Span(int(register), int(register) + (2 if is_pair else 1)))
        return spans

    def _width(self, number: int) -> int:
        """Registers of an operand, by its number."""
        if self.is_product:
            columns = re.search(r"\.\d+x(\d+)x", self.opcode)
            assert columns is not None, self
            accumulators = int(columns[1]) // (4 if ".F16." in self.opcode.replace(".F32", "") + "." else 2)
            return 4 if number == 1 else accumulators
        if self.name == "CS2R":
            return 1 if ".32" in self.opcode else 2
        if "WIDE" in self.opcode:  # a product of two numbers that is twice as wide, and what is added to it
            return 2 if number in (0, 3) else 1
        if re.match(r"D(ADD|MUL|FMA|SETP|MMA)|.*\.F64", self.opcode):
            return 2
        wide = re.search(r"\.(64|128|M88\.2|M88\.4)\b", self.opcode) if self.name[:2] in ("LD", "ST", "AT") else None
        return {"64": 2, "128": 4, "M88.2": 2, "M88.4": 4}[wide[1]] if wide else 1


def _span(operand: str, width: int) -> Span | None:
    """Of an operand that is a register, whatever its signs and suffixes."""
    found = re.fullmatch(r"[-~!|]*R(\d+)(?:\.\w+)*\|?(?:\.\w+)*", operand)
    return Span(int(found[1]), int(found[1]) + width) if found else None


@dataclasses.dataclass(frozen=True)
class Code:
    """A kernel: its instructions, and which of them each label is before."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> "Code":
        instructions: list[Instruction] = []
        labels = {}
        for line in text.splitlines():
            if label := re.match(r"\s*(\.L_\w+):", line):
                labels[label[1]] = len(instructions)
            elif found := re.search(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*)", line):
                operands = tuple(part.strip() for part in found[4].split(",") if part.strip())
                instructions.append(Instruction(found[1], (found[2] or "").strip(), found[3], operands))
        if not instructions:
            raise ValueError("no instructions")
        return cls(tuple(instructions), labels)

    def after(self, number: int) -> list[int]:
        """The instructions that may follow."""
        instruction = self.instructions[number]
        if instruction.name in _UNFOLLOWED:
            raise ValueError(f"a jump that cannot be followed: {instruction}")
        targets = [self.labels[label] for x in instruction.operands for label in re.findall(r"`\((\.L_\w+)\)", x)]
        if instruction.name == "BSYNC":  # goes on where the BSSY of the same register said
            return self._reconvergence(instruction.operands[0]) or [number + 1]
        if instruction.name not in ("BRA", "EXIT"):
            return [number + 1]
        # A branch may have its condition as an operand, too.
        always = not instruction.predicate and len(instruction.operands) == len(targets)
        return targets if always else [*targets, number + 1]

    def _reconvergence(self, register: str) -> list[int]:
        starts = (x for x in self.instructions if x.name == "BSSY" and x.operands[0] == register)
        return [self.labels[re.findall(r"\.L_\w+", x.operands[1])[0]] for x in starts]


Groups = tuple[tuple[int, ...], ...]  # numbers of the products in each group, oldest first; the last is not ended


def touched_in_flight(text: str) -> list[str]:
    """What is wrong with a kernel's use of registers while products are in flight, a sentence each; nothing if right.

    Accumulators may only be used by further products with the very same ones; left operands may not be written; a
    program does not end before its products.
    """
    code = Code.parse(text)
    faults: dict[str, None] = {}
    start: tuple[int, Groups] = (0, ((),))
    seen, waiting = {start}, [start]
    while waiting:
        number, groups = waiting.pop()
        instruction = code.instructions[number]
        running = [code.instructions[n] for group in groups for n in group]
        faults.update(dict.fromkeys(_faults(instruction, running)))
        groups = _groups_after(instruction, number, groups)
        if len(groups) > _MOST_GROUPS:
            raise ValueError(f"more than {_MOST_GROUPS - 1} groups of products in flight at {instruction}")
        for follower in code.after(number):
            if follower < len(code.instructions) and (follower, groups) not in seen:
                seen.add((follower, groups))
                waiting.append((follower, groups))
    return list(faults)


def _groups_after(instruction: Instruction, number: int, groups: Groups) -> Groups:
    *ended, last = groups
    if instruction.is_product:
        last = (*last, *(() if number in last else (number,)))
        return (*ended, last, ()) if instruction.ends_group else (*ended, last)
    left = instruction.left_in_flight
    if left is None or instruction.predicate:
        return groups
    return (*ended[max(0, len(ended) - left) :], last)


def _faults(instruction: Instruction, running: list[Instruction]) -> Iterator[str]:
    if instruction.name == "EXIT" and running:
        yield f"{instruction} ends before {running[0]}"
    for product in running:
        accumulators, left = product.accumulators, product.left_operand
        if instruction.is_product and accumulators is not None and instruction.accumulators == accumulators:
            touched = [instruction.left_operand] if instruction.left_operand else []  # which adds to it in order
        else:
            touched = instruction.touched
        if accumulators is not None and any(span.overlaps(accumulators) for span in touched):
            yield f"{instruction} touches {accumulators}, to which {product} adds"
        if left is not None and any(span.overlaps(left) for span in instruction.written):
            yield f"{instruction} writes {left}, which {product} reads"


def registers_beyond(text: str) -> list[str]:
    """Instructions that use a register which their warps gave up by USETMAXREG, or never asked for."""
    code = Code.parse(text)
    faults: dict[str, None] = {}
    for number, instruction in enumerate(code.instructions):
        if instruction.name != "USETMAXREG":
            continue
        kept = int(instruction.operands[-1], 0)
        for other in sorted(_reachable(code, number)):
            if any(span.stop > kept for span in code.instructions[other].touched):
                faults[f"{code.instructions[other]} uses more than the {kept} registers of {instruction}"] = None
    return list(faults)


def _reachable(code: Code, number: int) -> set[int]:
    """Instructions that may run after this one, up to another that changes how many registers there are."""
    seen: set[int] = set()
    waiting = code.after(number)
    while waiting:
        number = waiting.pop()
        if number in seen or number >= len(code.instructions):
            continue
        seen.add(number)
        waiting += code.after(number)
    return seen


def exponentials_beside_products(text: str) -> int:
    """Exponentials between a wait that leaves products in flight and the next that leaves none, in the code's order."""
    count, in_flight = 0, False
    for instruction in Code.parse(text).instructions:
        if instruction.left_in_flight is not None:
            in_flight = instruction.left_in_flight > 0
        count += instruction.opcode == "MUFU.EX2" and in_flight
    return count
