"""Transformer-XL's positions in sub-bands with a basis each, beside all of the sinusoid's frequencies in one band.

    python benchmarks/positions.py errors   against the dense model in float64, at the windows of each phase
    python benchmarks/positions.py times    forward and backward of character models, both forms call by call
    python benchmarks/positions.py costs    counted, by phase: what the paper's small model computes and reads
    python benchmarks/positions.py memory   temporary memory of its compiled forward and backward, by phase

Writes benchmarks/results/positions_PART_cpu.json and prints it. `--only=0,2` measures these cases of a part; the file
keeps the others.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import cpu_model
from benchmarks.tracing import patched
from configs.char_lm import paper
from longformer_jax.models import CharLM, CharLMConfig, char_lm, positions
from longformer_jax.models.sub_bands import Heads, SubBand, cut_window
from longformer_jax.training import CharLMExperiment
from tests.models import dense
from tests.models.small import abstract_params, random_cotangent, random_params

LENGTH = 2048  # of the comparison with float64, whose scores are dense
# Experiment, variant, phase; rows and length. Fewer than in training where they would take too long on two cores.
STEPS = (
    ("enwik8_small", "", 1, 1, 2048),
    ("enwik8_small", "", 3, 1, 8192),
    ("enwik8_small", "smoke", 1, 4, 256),
    ("enwik8_small", "smoke", 3, 2, 1024),
    ("quickstart", "", 1, 8, 128),
    ("quickstart", "", 2, 4, 256),
)
SECONDS = 20  # of calls, for each form; at least three after the first


def uncut(width: int, head_dim: int, window: int, dilations: tuple[int, ...], longest: int) -> tuple[Heads, ...]:
    """As `cut_window`: one band with all frequencies of the sinusoid."""
    basis = positions.Basis(positions.frequencies(width), None)
    return (Heads(0, len(dilations), dilations, basis, (SubBand(0, window),)),)


def uncompressed() -> contextlib.AbstractContextManager:
    """What is traced within computes with all frequencies of the sinusoid."""
    return patched(char_lm, "cut_window", uncut)


FORMS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "compressed": contextlib.nullcontext,
    "uncompressed": uncompressed,
}


def model_in_phase(name: str, variant: str, phase: int, **changes: Any) -> CharLMConfig:
    config = importlib.import_module(f"configs.char_lm.{name}").get_config(variant)
    experiment: Any = CharLMExperiment.from_config_dict(config)
    return dataclasses.replace(experiment.model_in_phase(phase - 1), dropout_rate=0.0, **changes)


def value_and_gradients(config: CharLMConfig) -> Any:
    def both(params: Any, tokens: Any, cotangent: Any) -> Any:
        logits, pullback = jax.vjp(lambda p: CharLM(config).apply({"params": p}, tokens), params)
        return logits, pullback(cotangent)[0]

    return jax.jit(both)


# ---- Errors ----------------------------------------------------------------------------------------------------------


def errors(phases: Sequence[int]) -> Iterator[dict]:
    """Relative errors of logits and gradients, by the norm of each tensor; of the gradients the largest."""
    tokens = np.random.default_rng(1).integers(256, size=(1, LENGTH)).astype(np.int32)
    for phase in phases:
        config = model_in_phase("enwik8_small", "", phase)
        params, cotangent = random_params(config), random_cotangent(config, tokens)
        truth = _in_float64(config, params, tokens, cotangent)
        for dtype in ("float32", "bfloat16"):
            record: dict[str, Any] = {"phase": phase, "dtype": dtype}
            for name, form in FORMS.items():
                with form():
                    step = value_and_gradients(dataclasses.replace(config, dtype=dtype))
                    found = step(params, tokens, cotangent)
                of_leaf = jax.tree.map(_error, found, truth)
                worst, where = max(
                    (error, jax.tree_util.keystr(path))
                    for path, error in jax.tree_util.tree_leaves_with_path(of_leaf[1])
                )
                record[name] = {"logits": of_leaf[0], "gradients": worst, "of": where}
            yield record


def _error(x: Any, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x, np.float64) - truth) / np.linalg.norm(truth))


def _in_float64(config: CharLMConfig, params: Any, tokens: np.ndarray, cotangent: np.ndarray) -> Any:
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

        @jax.jit
        def both(params: Any) -> Any:
            forward = lambda p: dense.forward(config, p, tokens, xp=jnp, wrap=jax.checkpoint)  # noqa: E731
            logits, pullback = jax.vjp(forward, params)
            return logits, pullback(cotangent.astype(np.float64))[0]

        return jax.tree.map(np.asarray, both(wide))


# ---- Times -----------------------------------------------------------------------------------------------------------


def times(steps: Sequence[tuple[str, str, int, int, int]]) -> Iterator[dict]:
    """Medians of forward and backward in float32, both forms call by call."""
    for name, variant, phase, rows, length in steps:
        config = model_in_phase(name, variant, phase, dtype="float32")
        tokens = np.random.default_rng(1).integers(config.vocab_size, size=(rows, length)).astype(np.int32)
        arguments = random_params(config), tokens, random_cotangent(config, tokens)
        record: dict[str, Any] = {"config": name, "variant": variant, "phase": phase, "rows": rows, "length": length}
        compiled = {}
        for form, patch in FORMS.items():
            start = time.perf_counter()
            with patch():
                compiled[form] = value_and_gradients(config).lower(*arguments).compile()
            record[form] = {"compile_seconds": time.perf_counter() - start}
        seconds: dict[str, list[float]] = {form: [] for form in compiled}
        while len(seconds["compressed"]) < 4 or sum(map(sum, seconds.values())) < SECONDS * len(compiled):
            for form, call in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(call(*arguments))
                seconds[form].append(time.perf_counter() - start)
        for form, call in compiled.items():
            record[form]["seconds"] = statistics.median(seconds[form][1:])
            record[form]["calls"] = len(seconds[form]) - 1
            record[form]["temporary_bytes"] = call.memory_analysis().temp_size_in_bytes
        record["times_as_fast"] = record["uncompressed"]["seconds"] / record["compressed"]["seconds"]
        yield record


# ---- Costs -----------------------------------------------------------------------------------------------------------


def costs(phases: Sequence[int]) -> Iterator[dict]:
    """For each phase and form, of all layers together: columns of the scores, calls of the op, FLOPs of attention for a
    character in training (forward, backward, and what makes the query's half), and bytes of bfloat16 keys that a
    forward pass reads for one sequence."""
    for phase in phases:
        config, length = model_in_phase("enwik8_small", "", phase), paper.SEQUENCE_LENGTHS[phase - 1]
        cuts = {"compressed": cut_window, "uncompressed": uncut}
        yield {"phase": phase, "length": length} | {form: _counted(config, length, cut) for form, cut in cuts.items()}


def _counted(config: CharLMConfig, length: int, cut: Callable[..., tuple[Heads, ...]]) -> dict[str, Any]:
    D, H, itemsize = config.head_dim, config.num_heads, jnp.dtype(config.dtype).itemsize
    columns, calls, flops, key_bytes = set(), 0, 0.0, 0
    for group in config.layer_groups:
        layers = group.stop - group.start
        dilations = (group.dilation,) * config.dilated_heads + (1,) * (H - config.dilated_heads)
        for heads in cut(config.sinusoid_dim, D, group.window, dilations, length - 1):
            R, number = heads.basis.dim, heads.stop - heads.start
            columns.add(D + R)
            calls += layers * len(heads.sub_bands)
            for dilation in heads.dilations:
                pairs = np.minimum(np.arange(length) // dilation, group.window).mean() + 1  # of a character and head
                flops += layers * 2 * pairs * (7 * D + 3 * R)
            flops += layers * 2 * number * 3 * D * R * len(heads.sub_bands)
            # The sinusoid once for all heads; in the uncompressed form, as it was, a copy for each of them.
            row = number * D + R * (number if cut is uncut else 1)
            key_bytes += layers * itemsize * row * sum(length - heads.distance(sub) for sub in heads.sub_bands)
    return {"columns": sorted(columns), "calls": calls, "flops_per_character": flops, "key_bytes": key_bytes}


# ---- Memory ----------------------------------------------------------------------------------------------------------


def memory(phases: Sequence[int]) -> Iterator[dict]:
    """Temporary memory of forward and backward of one sequence of the phase's length, compiled and not run."""
    for phase in phases:
        config, length = model_in_phase("enwik8_small", "", phase, dtype="float32"), paper.SEQUENCE_LENGTHS[phase - 1]
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        cotangent = jax.ShapeDtypeStruct((1, length, config.vocab_size), jnp.float32)
        record: dict[str, Any] = {"phase": phase, "length": length, "dtype": config.dtype}
        for name, form in FORMS.items():
            with form():
                compiled = value_and_gradients(config).lower(abstract_params(config), tokens, cotangent).compile()
            record[name] = {"temporary_bytes": compiled.memory_analysis().temp_size_in_bytes}
        yield record


PHASES = range(1, 6)
PARTS: dict[str, tuple[Callable[..., Iterator[dict]], Sequence[Any]]] = {
    "errors": (errors, PHASES),
    "times": (times, STEPS),
    "costs": (costs, PHASES),
    "memory": (memory, PHASES),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--only", help="numbers of cases, from 0; default: all")
    arguments = parser.parse_args()
    measure, cases = PARTS[arguments.part]
    if arguments.only:
        cases = [cases[int(number)] for number in arguments.only.split(",")]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    about = {"date": datetime.now(UTC).date().isoformat(), "device": cpu_model(), "jax": jax.__version__}
    output = Path(__file__).resolve().parent / "results" / f"positions_{arguments.part}_cpu.json"
    records = json.loads(output.read_text())["records"] if arguments.only and output.exists() else []
    for record in measure(cases):
        print(json.dumps(record), flush=True)
        records = [other for other in records if _case(other) != _case(record)] + [about | record]
        output.write_text(json.dumps({"records": records}, indent=1) + "\n")


def _case(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ("config", "variant", "phase", "rows", "length", "dtype")}


if __name__ == "__main__":
    main()
