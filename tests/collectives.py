"""What a compiled program sends between devices."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_CALL = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\((.*)")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def bytes_sent(text: str) -> dict[str, int]:
    """The bytes that the collectives in a compiled module's text give a device, by what they are, as "all-reduce f32".

    What stands in a loop counts once; what is "sent" within groups of one device is not.
    """
    found: dict[str, int] = collections.Counter()
    for shapes, kind, rest in _CALL.findall(text):
        if kind != "collective-permute" and _group_size(rest) == 1:
            continue
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            found[f"{kind} {dtype}"] += _SIZES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
    return dict(found)


def _group_size(attributes: str) -> int:
    """In any of the three forms that XLA writes: {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'b'}."""
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", groups[2]))
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(groups[1])
    groups = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    assert groups, attributes
    return len(groups[1].split(","))
