"""What long context is worth to a character model: bits per character against how much text it sees before them.

    python -m benchmarks.context RUN [--positions=200]

At positions all over validation, the 512 characters before each are scored as the paper's protocol scores them: at the
end of a sequence of 512, 1,024, … 32,256 characters, the same ones at every length. The windows are those of the phase
that RUN has come to. Writes results/context_cpu.json and prints it; `benchmarks.plot` draws it.
"""

import argparse
import functools
import itertools
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.side_by_side import cpu_model
from longformer_jax import CharLM, CharLMConfig, load_char_lm
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.errors import InputError
from longformer_jax.evaluation.protocols import PAPER_LENGTH, PAPER_STEP
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.settings import pinned
from longformer_jax.training import CharLMExperiment

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, PAPER_LENGTH)
RESULT = Path(__file__).parent / "results" / "context_cpu.json"


def sequences(text: np.ndarray, length: int, positions: int) -> np.ndarray:
    """The characters before each position, and the one there, uint8 [positions, length + 1]."""
    ends = np.linspace(PAPER_LENGTH, len(text) - 1, positions).astype(int)
    return text[ends[:, None] + np.arange(-length, 1)]


@functools.partial(jax.jit, static_argnums=0)
def scores(config: CharLMConfig, params: Any, sequence: jax.Array) -> jax.Array:
    """The bits of the last 512 characters of a sequence [length + 1], the last one's among them."""
    logits: Any = CharLM(config).apply({"params": params}, sequence[None, :-1])
    targets = sequence[-PAPER_STEP:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits[0, -PAPER_STEP:], targets) / math.log(2)


@pinned()
def measure(config: CharLMConfig, params: Any, text: np.ndarray, positions: int) -> list[dict[str, Any]]:
    """A row for each length, with the deviation of the mean's change, by position, from the length before."""
    found: dict[int, np.ndarray] = {}
    for length in LENGTHS:
        each = [scores(config, params, sequence) for sequence in sequences(text, length, positions)]
        found[length] = np.array([float(jnp.mean(bits)) for bits in each])
        print(f"{length:,}: {found[length].mean():.4f}", file=sys.stderr, flush=True)
    rows = [{"length": length, "bpc": float(bits.mean())} for length, bits in found.items()]
    for row, (before, after) in zip(rows[1:], itertools.pairwise(found.values()), strict=True):
        row["change"] = float(np.mean(after - before))
        row["deviation"] = float(np.std(after - before, ddof=1) / math.sqrt(positions))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of train.py")
    parser.add_argument("--positions", type=int, default=200)
    options = parser.parse_args()
    if options.positions < 2:
        parser.error(f"--positions is {options.positions}; expected at least 2")
    reuse_freed_memory()  # as train.py
    with one_line_for_errors():
        config, params = load_char_lm(options.run)
        text = CharLMExperiment.load(options.run).open_data(options.run).split("validation")
        if len(text) <= PAPER_LENGTH:
            raise InputError(f"validation has {len(text):,} characters; expected more than {PAPER_LENGTH:,}")
        rows = measure(config, params, text, options.positions)
    machine = {"cpu": cpu_model(), "jax": jax.__version__, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    result = machine | {"windows": config.windows, "positions": options.positions, "context": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
