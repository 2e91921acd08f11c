"""The quickstart beside nanoGPT's published CPU recipe: same text, same split, same two threads, one after the other.

    python benchmarks/char_lm.py --torch-python=PATH

PATH is the Python of an environment with torch. The recipe (peers/nanogpt_recipe.py) is timed without its imports. Our
runs are timed as a user meets them: the whole process of train.py with imports, compilation, evaluations, checkpoints
and the plot. One is the quickstart as it stands; the other is its variant `minute` with as many steps as fit into the
recipe's time, over which its learning rate decays. Prints a table and writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import jax

from longformer_jax.evaluation import evaluate
from side_by_side import cpu_model

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def train(workdir: Path, variant: str, *overrides: str) -> float:
    """Wall seconds of the process, which finds nothing that another one has compiled."""
    config = f"--config=configs/char_lm/quickstart.py:{variant}"
    command = [sys.executable, "train.py", config, f"--workdir={workdir}", *overrides]
    with tempfile.TemporaryDirectory() as empty:
        start = time.perf_counter()
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": empty}
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, env=environment)
        return time.perf_counter() - start


def quickstart(workdir: Path, variant: str, *overrides: str) -> dict:
    """Trains, then scores every character of validation with its full context."""
    seconds = train(workdir, variant, *overrides)
    result = evaluate(workdir, split="validation", protocol="stream")
    return {"steps": result.step, "seconds": seconds, "bpc": result.bits_per_character}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path, required=True, help="Python of an environment with torch")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "char_lm_cpu.json")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

    recipe = [options.torch_python, HERE / "peers" / "nanogpt_recipe.py"]
    peer = json.loads(subprocess.run(recipe, stdout=subprocess.PIPE, text=True, check=True).stdout)
    with tempfile.TemporaryDirectory() as folder:
        whole = quickstart(Path(folder, "whole"), "")
        minute = quickstart(Path(folder, "minute"), "minute")
        fixed = train(Path(folder, "one_step"), "minute", "--config.phases[0].steps=1")
        steps = int((peer["seconds"] - fixed) / (minute["seconds"] - fixed) * minute["steps"])
        equal = quickstart(Path(folder, "equal"), "minute", f"--config.phases[0].steps={steps}")

    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": {"jax": jax.__version__, "torch": peer["torch"]},
        "nanogpt_recipe": peer,
        "quickstart": whole,
        "minute": minute,
        "minute_in_the_same_time": equal,
    }
    bpc = peer["validation_bpc"]
    rows = [
        ("nanoGPT's recipe, 240 random blocks as published", peer["seconds"], bpc["sampled"]),
        ("nanoGPT's recipe, blocks of 64", peer["seconds"], bpc["blocks"]),
        ("nanoGPT's recipe, context 48 to 64", peer["seconds"], bpc["context_48_to_64"]),
        (f"quickstart:minute in the same time, {equal['steps']} steps", equal["seconds"], equal["bpc"]),
        (f"quickstart:minute, {minute['steps']} steps", minute["seconds"], minute["bpc"]),
        (f"quickstart, {whole['steps']} steps", whole["seconds"], whole["bpc"]),
    ]
    print("| | seconds | validation BPC |\n|---|---|---|")
    for name, seconds, value in rows:
        print(f"| {name} | {seconds:.0f} | {value:.3f} |")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
