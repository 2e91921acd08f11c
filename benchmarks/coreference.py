"""Memory of the coreference task: forward and backward pass of one document of 4,096 tokens, all its spans scored.

    python -m benchmarks.coreference                   compiled for this CPU, and run once
    python -m benchmarks.coreference --target=sm_90a   compiled for an H100, with the extra `aot`; not run
    … --variant=large                                  in place of base

Prints the bytes of forward and backward pass besides parameters and gradients, with and without the head on top of the
encoder, and, if it is run, its seconds and the process's peak memory.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.aot import TARGETS, compile_for, in_process
from benchmarks.side_by_side import cpu_model
from configs.tasks import coreference
from longformer_jax import Longformer
from longformer_jax.training import TaskExperiment


def step(config: TaskExperiment) -> tuple[Callable, Any, Any]:
    """Loss and gradients of a document, and the shapes of parameters and document."""

    def loss(params: Any, batch: Any) -> jax.Array:
        return config.loss(0, params, batch, jax.random.key(0))[0]

    return jax.value_and_grad(loss), jax.eval_shape(config.init_params), config.batch_spec(0)


def encoder_alone(config: TaskExperiment) -> tuple[Callable, Any, Any]:
    """The same of the encoder, with a sum in place of the head."""
    encoder, length = Longformer(config.model, add_pooling_layer=False), config.phases[0].sequence_length

    def loss(params: Any, ids: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        output: Any = encoder.apply({"params": params}, ids, deterministic=False, rngs=rngs)
        return output.last_hidden_state.astype(jnp.float32).sum()

    def init() -> Any:
        return encoder.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    return jax.value_and_grad(loss), jax.eval_shape(init), jax.ShapeDtypeStruct((1, length), jnp.int32)


def document(config: TaskExperiment, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Words of one token in sentences of 20, without mentions."""
    rng, fields = np.random.default_rng(0), config.task.fields()
    tokens = np.arange(config.phases[0].sequence_length)
    values: dict[str, Any] = {name: fields[name].fill for name in config.task.targets}
    values |= {"input_ids": rng.integers(5, config.model.vocab_size, tokens.shape), "sentence": tokens // 20}
    values |= {"may_start": True, "may_end": True, "speaker": 0, "genre": 0, "weight": 1}
    return {name: np.broadcast_to(values[name], x.shape).astype(x.dtype) for name, x in spec.items()}


STEPS = {"with_head": step, "encoder": encoder_alone}


def experiment(variant: str) -> Any:
    return TaskExperiment.from_config_dict(coreference.get_config(variant))


def temporary_bytes(target: str, variant: str, name: str) -> int:
    """Of one of the STEPS, compiled for a GPU."""
    return compile_for(target, *STEPS[name](experiment(variant))).memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--variant", choices=("base", "large"), default="base")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # also where there is a plugin for GPUs, and none
    config = experiment(options.variant)
    record: dict[str, Any] = {"target": options.target or "cpu", "variant": options.variant, "jax": jax.__version__}
    record |= {"tokens": config.phases[0].sequence_length, "date": datetime.now(UTC).date().isoformat()}
    compiled: dict[str, Any] = {}
    for name, of in STEPS.items():
        gradients, params, batch = of(config)
        record[f"parameters_{name}"] = sum(x.size for x in jax.tree.leaves(params))
        if options.target:
            record[f"temporary_bytes_{name}"] = in_process(temporary_bytes, options.target, options.variant, name)
        else:
            compiled[name] = jax.jit(gradients).lower(params, batch).compile()
            record[f"temporary_bytes_{name}"] = compiled[name].memory_analysis().temp_size_in_bytes
    if not options.target:
        params = jax.jit(config.init_params)()
        batch = document(config, config.batch_spec(0))
        began = time.perf_counter()
        value, found = jax.block_until_ready(compiled["with_head"](params, batch))
        record |= {
            "loss": float(value),
            "gradient_norm": float(optax.tree.norm(found)),
            "seconds": round(time.perf_counter() - began, 1),
            "peak_bytes_of_the_process": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "threads": len(os.sched_getaffinity(0)),
            "cpu": cpu_model(),
        }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
