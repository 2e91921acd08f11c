"""Transformer-XL's positions in the basis of each band, beside all of the sinusoid's frequencies: errors and times.

    python benchmarks/positions.py errors   against the dense model in float64, at the windows of each phase
    python benchmarks/positions.py times    the training step of the paper's small model, both forms call by call

Writes benchmarks/results/positions_PART_cpu.json and prints it.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import cpu_model
from configs.char_lm import paper
from longformer_jax.models import CharLM, CharLMConfig, char_lm, positions
from tests.models import dense
from tests.models.small import error, random_cotangent, random_params

LENGTH = 1024  # of the comparison with float64, whose scores are dense
STEPS = ((1, 2048), (3, 2048), (3, 8192))  # phase, length
ROUNDS = 5


def uncompressed() -> contextlib.AbstractContextManager:
    """What is traced within computes with all frequencies of the sinusoid."""

    def everything(width: int, reach: int) -> positions.Basis:
        return positions.Basis(positions.frequencies(width), None)

    return mock.patch.object(char_lm, "band_basis", everything)


def model_in_phase(phase: int, **changes: Any) -> CharLMConfig:
    windows = tuple(window * 2 ** (phase - 1) for window in paper.SMALL_WINDOWS)
    config = paper.experiment("enwik8", windows, paper.SMALL_DILATIONS, (1,), dropout_rate=0.0).model
    return dataclasses.replace(config, **changes)


def value_and_gradients(config: CharLMConfig, cotangent: np.ndarray) -> Any:
    def both(params: Any, tokens: Any) -> Any:
        logits, pullback = jax.vjp(lambda p: CharLM(config).apply({"params": p}, tokens), params)
        return logits, pullback(jnp.asarray(cotangent))[0]

    return jax.jit(both)


def errors() -> list[dict]:
    """Relative errors (norms) of logits and gradients in both forms and dtypes."""
    records = []
    tokens = np.random.default_rng(1).integers(256, size=(1, LENGTH)).astype(np.int32)
    for phase in range(1, 6):
        config = model_in_phase(phase)
        params, cotangent = random_params(config), random_cotangent(config, tokens)
        truth = _in_float64(config, params, tokens, cotangent)
        for dtype in ("float32", "bfloat16"):
            record: dict[str, Any] = {"phase": phase, "dtype": dtype}
            for name, form in (("compressed", contextlib.nullcontext), ("uncompressed", uncompressed)):
                with form():
                    found = value_and_gradients(dataclasses.replace(config, dtype=dtype), cotangent)(params, tokens)
                record[name] = {"logits": error(found[0], truth[0]), "gradients": error(found[1], truth[1])}
            records.append(record)
            print(json.dumps(record), flush=True)
    return records


def _in_float64(config: CharLMConfig, params: Any, tokens: np.ndarray, cotangent: np.ndarray) -> Any:
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        forward = lambda p: dense.forward(config, p, tokens, xp=jnp)  # noqa: E731
        logits, pullback = jax.vjp(forward, wide)
        return jax.tree.map(np.asarray, (logits, pullback(cotangent.astype(np.float64))[0]))


def times() -> list[dict]:
    """Medians of forward and backward of one sequence, both forms call by call."""
    records = []
    for phase, length in STEPS:
        config = model_in_phase(phase, dtype="float32")
        tokens = np.random.default_rng(1).integers(256, size=(1, length)).astype(np.int32)
        params, cotangent = random_params(config), random_cotangent(config, tokens)
        compiled = {}
        for name, form in (("compressed", contextlib.nullcontext), ("uncompressed", uncompressed)):
            with form():
                compiled[name] = value_and_gradients(config, cotangent).lower(params, tokens).compile()
        seconds: dict[str, list[float]] = {name: [] for name in compiled}
        for _ in range(ROUNDS + 1):
            for name, call in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(call(params, tokens))
                seconds[name].append(time.perf_counter() - start)
        record: dict[str, Any] = {"phase": phase, "length": length}
        for name, call in compiled.items():
            record[name] = {"seconds": statistics.median(seconds[name][1:])}
            record[name]["temporary_bytes"] = call.memory_analysis().temp_size_in_bytes
        record["times_as_fast"] = record["uncompressed"]["seconds"] / record["compressed"]["seconds"]
        records.append(record)
        print(json.dumps(record), flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("errors", "times"))
    part = parser.parse_args().part
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    records = {"errors": errors, "times": times}[part]()
    about = {"date": datetime.now(UTC).date().isoformat(), "device": cpu_model(), "jax": jax.__version__}
    output = Path(__file__).resolve().parent / "results" / f"positions_{part}_cpu.json"
    output.write_text(json.dumps(about | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
