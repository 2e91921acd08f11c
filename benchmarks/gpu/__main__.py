"""Checks and measures this library on a GPU; writes benchmarks/results/gpu_DEVICE.json.

    python -m benchmarks.gpu                                 all that 9 minutes allow, what tells most first
    python -m benchmarks.gpu --minutes=4.8                   the first contact: core cases, then speed beside the peers
    python -m benchmarks.gpu --only=core --only=headline     some stages, see below
    python -m benchmarks.gpu --retry                         what has failed, once more, then the rest
    python -m benchmarks.gpu --choose=FILE                   what None is to mean on that GPU, from what FILE holds
    python -m benchmarks.gpu --train=8 --data=FILE           a real run of eight minutes, all in all, on a file's bytes
    python -m benchmarks.gpu --sweep                         Mosaic's kernels with many tilings, as tables
    python -m benchmarks.gpu --sweep --head-dims=64,64,128   of these head_dims of key, value and shared key only
    python -m benchmarks.gpu --implementation=NAME           one of the kernels; default: all that the device can run
    python -m benchmarks.gpu --tiny --output=FILE            a rehearsal on any device: interpreted, small shapes

The stages are: core, the cases that a kernel meets first; training, steps of the character model; headline, the speed
at 32,768 tokens beside all peers; correctness, all cases of the kernels that come first for bfloat16 and float32;
shapes, the speed of other dtypes and head_dims; lengths, the speed from 1k to 1M tokens; profile, what ncu and
compute-sanitizer say, in the logs; fallbacks, all cases of the other kernels and of float16. After core all run
together, begun in this order; while one is timed, no other is timed or checked.

Each implementation and each peer is a process of its own, which is killed when it hangs and started anew behind what
failed. The file is written after every case, and the same command goes on from what it holds; what failed, hung or
crashed is tried again by --retry only, and so is what was not installed. What it holds of ours with other code of the
kernels or the op, or of training with other code of the library, or with another version of JAX, is forgotten, and so
is what it holds of peers of other versions. What the processes say is in a folder beside the file, gpu_DEVICE_logs.

A quarter of an hour on a GPU is used best in two calls, and what is left of it for a sweep:

    python -m benchmarks.gpu --minutes=4.8 --output=FILE             five minutes at most, whatever hangs
    python -m benchmarks.gpu --minutes=7 --retry --output=FILE       when what that found is mended

Needs jax, flax, optax and numpy. Peers that are not installed (torch, transformers, jax-linear-attention, tokamax,
flash-attn) are named and left out. Exit status 1: something failed.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
if "--tiny" in sys.argv:  # each warpgroup that is interpreted holds a thread of XLA while it waits for another
    os.environ.setdefault("PJRT_NPROC", "8")

from benchmarks.gpu import choose, plan, report, sweep  # noqa: E402
from benchmarks.gpu.results import OK, SKIPPED, Record, Results, default_path  # noqa: E402
from benchmarks.gpu.supervisor import Supervisor, ends_with_children  # noqa: E402
from longformer_jax.processes import digest  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "results"
_CHECKED = ("correctness", "same_bits", "speed", "training", "attention", "memcheck", "sweep")
SPARE = 4.0  # seconds of the time given, for killing what still runs, and the report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=plan.STAGES, action="append", help="one stage or some; default: all")
    parser.add_argument("--implementation", choices=plan.OURS, action="append", help="default: all")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together; default: 9")
    parser.add_argument("--retry", action="store_true", help="forget what failed or was not installed")
    parser.add_argument("--afresh", action="store_true", help="forget all that the file holds")
    parser.add_argument(
        "--choose", type=Path, metavar="FILE", help="writes longformer_jax/attention/choices/DEVICE.json"
    )
    parser.add_argument("--train", type=float, metavar="MINUTES", help="a real run in place of the stages")
    parser.add_argument("--data", type=Path, help="of the real run")
    parser.add_argument("--sweep", action="store_true", help="many tilings of Mosaic's kernels in place of the stages")
    parser.add_argument(
        "--head-dims", type=_head_dims, action="append", help="of key, value, shared key, of a sweep, as 64,64,128"
    )
    parser.add_argument("--tiny", action="store_true", help="small shapes and interpreted kernels, for any device")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_DEVICE.json")
    options = parser.parse_args()
    if options.head_dims and not options.sweep:
        parser.error("--head-dims goes with --sweep")
    if (options.train is None) != (options.data is None):
        parser.error("--train=MINUTES and --data=FILE go together")
    if options.data and not options.data.is_file():
        parser.error(f"--data is {options.data}, which is not a file")
    if options.choose:
        if not options.choose.is_file():
            parser.error(f"--choose is {options.choose}, which is not a file")
        measured = Results(options.choose)
        if "device" not in measured.values:
            parser.error(f"--choose is {options.choose}, which names no device; expected what this command has written")
        print(choose.write(measured))
        return 0
    implementations = tuple(options.implementation or plan.OURS)
    if options.train is not None:
        return _train(parser, options)

    deadline = STARTED + 60 * options.minutes - SPARE
    with tempfile.TemporaryDirectory() as folder:  # where the results go is known when the device is
        first = Supervisor(Results(Path(folder) / "device.json"), deadline, say=_say)
        first.run([plan.DEVICE])
    facts = first.facts
    if not facts:
        print("error: JAX does not start here", file=sys.stderr)
        return 1
    if not options.tiny and facts["platform"] != "gpu":
        parser.error(f"JAX sees no GPU but {facts['device']}; --tiny rehearses on any device")
    results = _opened(parser, options, facts)
    if rates := [record for record in first.results["rates"] if record["outcome"] == OK]:
        results.values["rates"] = rates
    if options.retry:
        results.forget_failures()
    results.write()

    if options.tiny:
        implementations = tuple(f"{name}_interpret" for name in implementations)
    elif not facts["is_hopper"]:
        implementations = tuple(name for name in implementations if name != "pallas_mosaic_gpu")
    supervisor = Supervisor(results, deadline, say=_say)
    try:
        names = [plan.SWEEP] if options.sweep else [n for n in plan.STAGES if n in (options.only or plan.STAGES)]
        # What follows depends on the core cases, and not on each other.
        for together in filter(None, (names[:1], names[1:]) if names[0] == "core" else (names,)):
            _say(f"{', '.join(together)}, {deadline - time.monotonic():.0f} s left")
            jobs = plan.jobs(together, implementations, results, tiny=options.tiny, head_dims=options.head_dims)
            supervisor.run(jobs, plan.TINY_AT_ONCE if options.tiny else plan.AT_ONCE)
    finally:  # when told to end, too
        print(sweep.tables(results) if options.sweep else report.summary(results), flush=True)
    print(f"written to {results.path}" + ("" if supervisor.complete else "; the same command goes on from there"))
    return int(any(_is_fault(part, record) for part in _CHECKED for record in results[part]))


def _opened(parser: argparse.ArgumentParser, options: argparse.Namespace, facts: dict[str, Any]) -> Results:
    """The file of the device, of which what is of other code or versions is forgotten."""
    results = Results(options.output or default_path(FOLDER, facts["device"]), afresh=options.afresh)
    if (before := results.values.get("device", facts["device"])) != facts["device"]:
        parser.error(f"{results.path} is of {before}, this is {facts['device']}; expected another --output or --afresh")
    now = facts | codes(facts["versions"])
    if count := results.forget(lambda part, record: _is_outdated(part, record, results.values, now)):
        _say(f"forgot {count} records of other code or versions in {results.path}")
    results.values |= now
    return results


def _head_dims(text: str) -> sweep.Dims:
    dims = tuple(int(dim) if dim.isdecimal() else -1 for dim in text.split(","))
    if dims not in sweep.ALL_DIMS:
        known = "; ".join(",".join(map(str, dims)) for dims in sweep.ALL_DIMS)
        raise argparse.ArgumentTypeError(f"{text} are not head_dims of Mosaic's kernels; expected one of {known}")
    return dims


def codes(versions: dict[str, str]) -> dict[str, str]:
    """Digests of what the figures of ours are of: "code" of the kernels, the op and JAX, and "training_code" of what
    else is in a step of training."""

    def code(*folders: str) -> str:
        files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
        return digest([versions["jax"].encode(), *(file.read_bytes() for file in files)])

    kernels = "pallas_kernels", "longformer_jax/attention"
    training = "longformer_jax/models", "longformer_jax/training", "configs/char_lm"
    return {"code": code(*kernels), "training_code": code(*kernels, *training)}


def _is_ours(part: str, record: Record) -> bool:
    return part != "speed" or record["side"].removesuffix("_interpret") in (*plan.OURS, "xla")


def _is_outdated(part: str, record: Record, before: dict[str, Any], now: dict[str, Any]) -> bool:
    if part == "rates":
        return False
    if not _is_ours(part, record):
        packages = plan.PACKAGES[record["side"]]
        return any(before.get("versions", {}).get(name) != now["versions"].get(name) for name in packages)
    code = "training_code" if part in ("training", "attention", "run") else "code"
    return before.get(code) != now[code]


def _is_fault(part: str, record: Record) -> bool:
    """Whether it is this library's: not what a peer cannot do, nor a tiling that holds or kills its process."""
    if part == "sweep":
        return record["outcome"] == "error"
    return _is_ours(part, record) and record["outcome"] not in (OK, SKIPPED)


def _train(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from benchmarks.gpu import device, training

    facts = device.facts()
    if not options.tiny and facts["platform"] != "gpu":
        parser.error(f"JAX sees no GPU but {facts['device']}; --tiny rehearses on any device")
    results = _opened(parser, options, facts)
    usual = "pallas_mosaic_gpu" if facts["is_hopper"] else "pallas_triton"
    config = training.experiment("smoke" if options.tiny else "", (options.implementation or [usual])[0])
    if options.tiny:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, implementation="xla"))
    training.train(results, STARTED + 60 * options.train - SPARE, options.data, config)
    return 0


def _say(line: str) -> None:
    print(f"{time.monotonic() - STARTED:4.0f} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(ends_with_children(main))
