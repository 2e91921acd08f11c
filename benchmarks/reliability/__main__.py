"""See __init__.py."""

import argparse
import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

PARTS = ("kills", "flips", "configurations", "endurance")


def main() -> int:
    package = importlib.import_module("benchmarks.reliability")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.reliability",
        description=inspect.getdoc(package),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("out", type=Path, help="a directory for the results, and for what the trials need")
    parser.add_argument("--trials", help="such as 0:50; all that docs/reliability.md speaks of where it is not given")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Nearly all of the time would be LLVM's, which optimises programs that run for milliseconds.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1")
    from benchmarks.reliability.trials import run

    part: Any = importlib.import_module(f"benchmarks.reliability.{options.part}")
    first, end = map(int, options.trials.split(":")) if options.trials else (0, part.TRIALS)
    return run(options.part, part, options.out.absolute(), range(first, end))


if __name__ == "__main__":
    sys.exit(main())
