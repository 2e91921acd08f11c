"""The paper's protocol at full length on a CPU, in bfloat16 and float32: what it costs, and how far the two agree.

    python -m benchmarks.long_evaluation RUN TEXT JOURNAL [--dtype=float32] [--minutes=100]

Each sequence of 32,256 characters takes minutes and stands for itself, so the work may be done in several sittings:
JOURNAL gets a line of JSON for each, and those that it has are not repeated. Without --dtype it only prints what
JOURNAL has: bits per character of the sequences that both dtypes have, their difference, the median of seconds, and the
peak memory of a process. The windows are those of the phase that RUN has come to; TEXT is a file.
"""

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.recipe import read_journal
from benchmarks.side_by_side import cpu_model
from longformer_jax import CharLMConfig, load_char_lm
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.evaluation.protocols import (
    PAPER_LENGTH,
    PAPER_STEP,
    BitsPerCharacter,
    overlapping_count,
    score_overlapping,
)
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.settings import keep_compiled, pinned

DTYPES = ("float32", "bfloat16")


@pinned()
def measure(
    config: CharLMConfig,
    params: Any,
    text: np.ndarray,
    journal: Path,
    seconds: float,
    *,
    sequence_length: int = PAPER_LENGTH,
    stride: int = PAPER_STEP,
) -> None:
    """Scores the sequences that the journal does not have in config.dtype, as long as there is time to begin one."""
    end, compiled = time.monotonic() + seconds, False
    done = {record["sequence"] for record in read_journal(journal) if record["dtype"] == config.dtype}
    machine = {"cpu": cpu_model(), "threads": len(os.sched_getaffinity(0)), "jax": jax.__version__}
    for index in range(overlapping_count(len(text), sequence_length, stride) // stride):
        if index in done or time.monotonic() > end:
            continue
        sequence, score = text[index * stride :][: sequence_length + 1], BitsPerCharacter()
        began = time.perf_counter()
        for piece in score_overlapping(
            config, params, sequence, sequence_length=sequence_length, stride=stride, batch_size=1
        ):
            score.add(np.asarray(piece.nats))
        record = {"sequence": index, "dtype": config.dtype, "nats": score.nats, "characters": score.characters}
        record |= {"seconds": round(time.perf_counter() - began, 2), "compiled_before": compiled}
        record |= {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}
        record |= machine | {"date": datetime.now(UTC).date().isoformat()}
        with journal.open("a") as file:
            print(json.dumps(record), file=file)
        print(json.dumps(record), file=sys.stderr, flush=True)
        compiled = True


def summary(records: list[dict[str, Any]]) -> str:
    """A row for each dtype, of the sequences that both have."""
    by_dtype = {dtype: {r["sequence"]: r for r in records if r["dtype"] == dtype} for dtype in DTYPES}
    both = set.intersection(*map(set, by_dtype.values()))
    lines = ["| | sequences | characters | BPC | seconds for one | GB |", "|---|---|---|---|---|---|"]
    bpc = []
    for dtype, found in by_dtype.items():
        score = BitsPerCharacter()
        for index in both:
            score.nats += found[index]["nats"]
            score.characters += found[index]["characters"]
        times = [record["seconds"] for record in found.values() if record["compiled_before"]]
        each = f"{statistics.median(times):.1f}" if times else ""
        peak = max((record["peak_gb"] for record in found.values()), default=math.nan)
        lines.append(f"| {dtype} | {len(both)} | {score.characters:,} | {score.value:.4f} | {each} | {peak:.1f} |")
        bpc.append(score.value)
    return "\n".join([*lines, f"difference {bpc[1] - bpc[0]:+.5f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of train.py")
    parser.add_argument("text", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--minutes", type=float, default=100)
    options = parser.parse_args()
    reuse_freed_memory()  # as train.py
    keep_compiled()
    with one_line_for_errors():
        if options.dtype is not None:
            options.journal.open("a").close()  # before any work
            config, params = load_char_lm(options.run)
            text = np.frombuffer(options.text.read_bytes(), np.uint8)
            config = dataclasses.replace(config, dtype=options.dtype)
            measure(config, params, text, options.journal, 60 * options.minutes)
        print(summary(read_journal(options.journal)))


if __name__ == "__main__":
    main()
