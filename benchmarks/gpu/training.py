"""The training step of the paper's small character model, and a real run of some minutes."""

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import prepare_jax
from configs.char_lm import paper
from longformer_jax import banded_attention
from longformer_jax.models.sub_bands import cut_window
from longformer_jax.training.char_lm import CharLMExperiment, CharLMPhase
from longformer_jax.training.flops import peak_flops, training_flops_per_character
from longformer_jax.training.parts import OptimizerConfig
from longformer_jax.training.sharding import accumulation_steps, make_mesh, put_batch
from longformer_jax.training.step import compile_train_step, init_state, make_eval_step

STEPS = 7
ROWS = 20  # of the curve of a real run


def experiment(
    variant: str, implementation: str | None, *, remat: bool | None = None, every: int = 1
) -> CharLMExperiment:
    """enwik8_small, or of its layers every so many-th, with its own remat where that is None; the numbers of steps play
    no part here."""
    windows, dilations = paper.SMALL_WINDOWS[::every], paper.SMALL_DILATIONS[::every]
    config = paper.experiment("enwik8", windows, dilations, (1,) * 5, dropout_rate=0.2)
    config = paper.variant(config, variant)
    remat = config.model.remat if remat is None else remat
    model = dataclasses.replace(config.model, implementation=implementation, remat=remat)
    return dataclasses.replace(config, model=model)


def prepare(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Compiles a phase; returns what measures characters per second, model FLOP utilisation and memory."""
    config = experiment(task["variant"], task["implementation"], remat=task["remat"], every=task["every"])
    phase = task["phase"] - 1
    mesh = make_mesh(config.mesh)
    accumulate = accumulation_steps(config, phase, mesh)
    step = compile_train_step(config, phase, accumulate, mesh)
    return partial(_measure, config, phase, accumulate, mesh, step, init_state(config, mesh))


def _measure(
    config: CharLMExperiment, phase: int, accumulate: int, mesh: Any, step: Callable, state: Any
) -> dict[str, Any]:
    settings, model = config.phases[phase], config.model_in_phase(phase)
    text = np.random.default_rng(0).integers(0, 256, (settings.batch_size, settings.sequence_length + 1), np.uint8)
    flops = training_flops_per_character(model, state["params"], settings.sequence_length)
    times = []
    for _ in range(STEPS + 1):
        batch = jax.block_until_ready(put_batch(text, accumulate, mesh))
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    memory = step.memory_analysis()  # type: ignore
    del state
    rate = settings.batch_size * settings.sequence_length / seconds
    peak = peak_flops()
    return {
        "milliseconds": seconds * 1e3,
        "characters_per_second": rate,
        "mfu": rate * flops / peak if peak else None,
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


def prepare_attention(task: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Compiles forward and backward of every layer's calls of the attention op in a phase; returns what measures their
    milliseconds in a step, each on its own."""
    config, phase = experiment(task["variant"], task["implementation"], every=task["every"]), task["phase"] - 1
    accumulate = accumulation_steps(config, phase, make_mesh(config.mesh))
    settings, model = config.phases[phase], config.model_in_phase(phase)
    batch, length = settings.batch_size // accumulate, settings.sequence_length
    dtype, parts, D = jnp.dtype(model.dtype), [], model.head_dim
    for group in model.layer_groups:
        dilations = (group.dilation,) * model.dilated_heads + (1,) * (model.num_heads - model.dilated_heads)
        for heads in cut_window(model.sinusoid_dim, D, group.window, dilations, length - 1):
            R = heads.basis.dim
            shapes = [(batch, length, len(heads.dilations), dim) for dim in (D + R, D, D, D)] + [(length, R)]
            arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
            for sub_band in heads.sub_bands:
                options: dict[str, Any] = {"window": (sub_band.window, 0), "dilation": heads.dilations}
                options |= {"key_offset": -heads.distance(sub_band), "implementation": model.implementation}

                def both(query, key, value, cotangent, shared_key, options=options):
                    attend = partial(banded_attention, shared_key=shared_key, **options)
                    out, pullback = jax.vjp(attend, query, key, value)
                    return out, pullback(cotangent)

                # No loop of many calls: each takes milliseconds, beside which the host's part is small.
                parts.append((group.stop - group.start, prepare_jax(both, *arrays, chain=1), arrays))

    def measure() -> dict[str, Any]:
        total = 0.0
        for layers, run, shapes in parts:
            arrays = [jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(shapes)]
            total += layers * run(*arrays)["milliseconds"]
        return {"milliseconds": accumulate * total}

    return measure


# ---- A real run ------------------------------------------------------------------------------------------------------


def train(results: Results, deadline: float, file: Path, config: CharLMExperiment) -> None:
    """Trains the first phase of `config` on the file up to a time of `time.monotonic()`, the rate decaying to the end.

    The last twentieth of the file is for validation. The curve is written after every row.
    """
    text = np.fromfile(file, np.uint8)
    phase = config.phases[0]
    validation = text[-max(len(text) // 20, phase.sequence_length + 1) :]
    training = text[: -len(validation)]
    if len(training) <= phase.sequence_length:
        raise ValueError(f"--data={file} has {len(text)} bytes; expected at least {3 * phase.sequence_length}")
    mesh = make_mesh(config.mesh)
    accumulate = accumulation_steps(config, 0, mesh)

    def batch_of(step: int) -> jax.Array:
        starts = np.random.default_rng((config.seed, step)).integers(
            len(training) - phase.sequence_length, size=phase.batch_size
        )
        return put_batch(training[starts[:, None] + np.arange(phase.sequence_length + 1)], accumulate, mesh)

    state, started = init_state(config, mesh), time.monotonic()
    probe = compile_train_step(config, 0, accumulate, mesh)
    times = []
    for step in range(4):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(probe(state, batch_of(step)))
        times.append(time.perf_counter() - start)
    optimizer = OptimizerConfig(clip_norm=1.0, decay="linear", final_fraction=0.05, warmup_fraction=0.05)
    evaluate = make_eval_step(config, 0, mesh)
    count = min(phase.batch_size, (len(validation) - 1) // phase.sequence_length)
    held_out = np.zeros((phase.batch_size, phase.sequence_length + 1), np.uint8)
    for i in range(count):
        held_out[i] = validation[i * phase.sequence_length :][: phase.sequence_length + 1]
    weights = (np.arange(phase.batch_size) < count).astype(np.float32)

    def held_out_nats(state: Any) -> float:
        return float(evaluate(state["params"], jnp.asarray(held_out), jnp.asarray(weights)))

    held_out_nats(state)  # compiles
    start = time.perf_counter()
    held_out_nats(state)
    evaluation = time.perf_counter() - start
    # What is left when the step is compiled again, which takes no longer than all that was since.
    left = deadline - time.monotonic() - (time.monotonic() - started) - (ROWS + 1) * evaluation
    total = max(10, int(0.95 * left / min(times)))
    phases = (CharLMPhase(**{**dataclasses.asdict(phase), "steps": total, "learning_rate": 1e-3}),)
    config = dataclasses.replace(config, phases=phases, optimizer=optimizer)
    step_fn = compile_train_step(config, 0, accumulate, mesh)
    state, curve, losses = init_state(config, mesh), [], []
    start = time.perf_counter()
    for step in range(1, total + 1):
        state, metrics = step_fn(state, batch_of(step))
        losses.append(metrics["loss"])
        if step % max(1, total // ROWS) == 0 or step == total:
            nats = held_out_nats(state) / (count * phase.sequence_length)
            row = {
                "step": step,
                "seconds": time.perf_counter() - start,
                "train_bpc": float(jnp.stack(losses).mean()) / math.log(2),
                "validation_bpc": nats / math.log(2),
            }
            losses = []
            curve.append(row)
            print(f"  step {step}/{total}: " + str(row), file=sys.stderr)
            record = {
                "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
                "steps": total,
                "characters": step * phase.batch_size * phase.sequence_length,
                "validation_characters": count * phase.sequence_length,
                "curve": curve,
            }
            results.add("run", record, file=file.name, implementation=config.model.implementation)
