"""Checks and measures this library on a GPU; writes benchmarks/results/gpu_DEVICE.json.

    python -m benchmarks.gpu                                 correctness, speed and training, about 8 minutes in all
    python -m benchmarks.gpu --only=speed                    one part, going on from what the file holds
    python -m benchmarks.gpu --train=10 --data=FILE          a real run of ten minutes on a file's bytes
    python -m benchmarks.gpu --sweep                         the Hopper kernels with all tilings, as a table
    python -m benchmarks.gpu --implementation=NAME           one of the kernels; default: all that the device can run
    python -m benchmarks.gpu --tiny --output=FILE            a rehearsal on any device: interpreted, small shapes

Needs jax, flax, optax and numpy. Peers that are not installed (torch, transformers, tokamax, flash-attn) are named and
skipped. What the file holds already is not measured again, unless --afresh is given. Exit status 1: a case failed.
"""

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room beside JAX
if "--tiny" in sys.argv:  # each warpgroup that is interpreted holds a thread of XLA while it waits for another
    os.environ.setdefault("PJRT_NPROC", "8")

import jax  # noqa: E402

from benchmarks.gpu import correctness, speed, sweep, training  # noqa: E402
from benchmarks.gpu.results import Results, default_path  # noqa: E402
from longformer_jax.attention.pallas import hopper_missing  # noqa: E402
from tests.attention.cases import CASE, CASES  # noqa: E402

PARTS = ("correctness", "speed", "training")
MINUTES = {"correctness": 2.5, "speed": 4.0, "training": 1.5}
IMPLEMENTATIONS = ("pallas_triton", "pallas_mosaic_gpu", "pallas_mosaic_mma")
LAYERS = [
    speed.Layer(length, causal, dilation)
    for length in speed.LENGTHS
    for dilation in (1, 4)
    for causal in (False, True)
    if dilation == 1 or length in (4096, 32768)
]
TINY_CASES = tuple(CASE[name] for name in ("bidirectional", "dilation_walk", "segments"))
TINY_LAYERS = [speed.Layer(64, causal, 1, window=8, heads=2, head_dim=16, dtype="float32") for causal in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="one part or some; default: all three")
    parser.add_argument("--train", type=float, metavar="MINUTES", help="a real run in place of the parts")
    parser.add_argument("--data", type=Path, help="of the real run")
    parser.add_argument("--sweep", action="store_true", help="all tilings of Mosaic's kernels in place of the parts")
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, help="default: all that the device can run")
    parser.add_argument("--minutes", type=float, help="for each part; default: " + str(MINUTES))
    parser.add_argument("--tiny", action="store_true", help="small shapes and interpreted kernels, for any device")
    parser.add_argument("--afresh", action="store_true", help="forget what the file holds")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu_DEVICE.json")
    options = parser.parse_args()
    if (options.train is None) != (options.data is None):
        parser.error("--train=MINUTES and --data=FILE go together")
    if options.data and not options.data.is_file():
        parser.error(f"--data is {options.data}, which is not a file")
    if not options.tiny and jax.devices()[0].platform != "gpu":
        parser.error(f"JAX sees no GPU but {jax.devices()[0].device_kind}; --tiny rehearses on any device")

    default = default_path(Path(__file__).resolve().parents[1] / "results")
    results = Results(options.output or default, afresh=options.afresh)
    named = (options.implementation,) if options.implementation else IMPLEMENTATIONS
    if options.tiny:
        implementations = (f"{named[0]}_interpret",)
    else:
        on_hopper = hopper_missing("bfloat16", 64, 64) is None
        implementations = tuple(name for name in named if on_hopper or name != "pallas_mosaic_gpu")
    if options.sweep:
        for name in named:
            if name in sweep.TILINGS and (options.tiny or name in implementations):
                print(sweep.sweep(results, name, tiny=options.tiny))
        return
    if options.train is not None:
        config = training.experiment("smoke" if options.tiny else "fast", implementations[0])
        if options.tiny:
            model = dataclasses.replace(config.model, implementation="xla")
            config = dataclasses.replace(config, model=model)
        training.train(results, options.train, options.data, config)
        return

    passed = True
    for part in options.only or PARTS:
        print(f"{part}, on {results.values['device']}", file=sys.stderr)
        deadline = time.monotonic() + 60 * (options.minutes or MINUTES[part])
        if part == "correctness":
            cases = TINY_CASES if options.tiny else (*correctness.SHAPES, *CASES)
            for name in implementations:
                passed &= correctness.check(results, name, *correctness.supported(name, cases), deadline)
        elif part == "speed":
            speed.measure(results, implementations, TINY_LAYERS if options.tiny else LAYERS, deadline)
            print(speed.table(results))
        else:
            # Interpreted, a training step would take hours.
            if options.tiny:
                training.measure(results, (), ("smoke",), deadline, phases=(0,))
            else:
                training.measure(results, implementations, training.VARIANTS, deadline)
    print(f"written to {results.path}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
