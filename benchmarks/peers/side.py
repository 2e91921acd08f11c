"""One side of a benchmark: a process that makes single calls on request, so that a driver can alternate the sides.

A side is a dictionary from a name to `make(work, length)`, where `work` is "forward" or "both" (forward and backward)
and `length` is T. `make` builds the inputs, compiles what can be compiled, and returns `prepare`; `prepare()` does what
a call needs but must not be timed, and returns the call. Used by scripts of different environments, so this file needs
nothing but the standard library and Python 3.11.

    python SCRIPT NAME --work=forward --length=4096     prints {"milliseconds": median, …}
    python SCRIPT NAME --serve                          answers lines of standard input, one JSON object a line:
        forward 4096          one timed call            {"milliseconds": 57.1}
        memory forward 4096   one call, its peak        {"bytes": 55000000}
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache

WORKS = ("forward", "both")
QUICK = "--quick" in sys.argv  # a rehearsal, for which a model may have fewer layers
Prepare = Callable[[], Callable[[], object]]


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def milliseconds(prepare: Prepare) -> float:
    """Wall time of one call; its result is freed outside the clock."""
    call = prepare()
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed * 1e3


def peak_bytes(prepare: Prepare) -> int:
    """Peak resident memory of one call above what was resident before it (the inputs are; the result is not).

    Free heap goes back to the system first: under any allocator setting the call then pays for all it touches.
    """
    call = prepare()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as clear_refs:
        clear_refs.write("5")  # forgets the peak so far
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    del result
    return peak - before


def main(makers: dict[str, Callable[[str, int], Prepare]], **versions: str) -> None:
    """Runs the command line described above for the sides `makers`; `versions` are printed with the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=makers)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", choices=WORKS, default="forward")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    @cache
    def warm(work: str, length: int) -> Prepare:
        prepare = makers[options.name](work, length)
        milliseconds(prepare)
        return prepare

    if not options.serve:
        prepare = warm(options.work, options.length)
        median = statistics.median(milliseconds(prepare) for _ in range(options.repeats))
        print(json.dumps(vars(options) | {"milliseconds": median, "bytes": peak_bytes(prepare)} | versions))
        return
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        *memory, work, length = line.split()
        prepare = warm(work, int(length))
        answer = {"bytes": peak_bytes(prepare)} if memory else {"milliseconds": milliseconds(prepare)}
        print(json.dumps(answer), flush=True)
