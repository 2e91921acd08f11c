"""What each device holds, computes and sends where a character model's sequence is spread over many.

    python -m benchmarks.scaling --config=enwik8_small --sequence=1048576 --devices=64
    python -m benchmarks.scaling --config=enwik8_small --table       the lengths and devices of docs/scaling.md
    python -m benchmarks.scaling --check                             the estimate of memory beside compiled steps
    python -m benchmarks.scaling --million --devices=8               a small model at 1,048,576 characters, run here

The figures are of one training step of one sequence with remat and without dropout, which needs no memory of its own,
in the windows of the configuration's last phase.
Nothing of the first two is run or compiled: memory and messages are counted in the traced program, FLOPs by
`training_flops_per_character`, and times follow from the peaks of an H100 and of its links.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType

from benchmarks.side_by_side import cpu_model
from longformer_jax.attention.split import SEQUENCE_AXIS
from longformer_jax.command_line import one_line_for_errors
from longformer_jax.errors import InputError
from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.scripts.configurations import known_configurations
from longformer_jax.training import CharLMExperiment
from longformer_jax.training.flops import training_flops_per_character

MEMORY = 80e9  # bytes of an H100
PEAK = 989e12  # its dense bfloat16 FLOP/s
# Of that, model FLOPs with remat: what steps of enwik8_small's first phase reached on an H200.
UTILISATION = 0.19
# Bytes/s of a device in one direction: between the 8 of a machine, and (NDR) between machines.
NVLINK, INFINIBAND = 450e9, 50e9
TABLE = ((32_768, 1), (262_144, 8), (1_048_576, 64), (10_485_760, 512))
_SHORT, _LONG = 1 << 14, 1 << 15  # lengths between which memory is counted to grow in proportion


@dataclasses.dataclass(frozen=True)
class Plan:
    """One device's share of a step; bytes, FLOPs and seconds.

    Attributes:
      state: parameters, the optimizer's moments and gradients, in float32.
      activations: the most that is held at once besides.
      flops: the model's, without what remat computes again.
      edges: of keys and values that are sent to neighbours, forward, recomputed and backward.
      gradients: what a ring that sums the gradients sends.
    """

    length: int
    devices: int
    state: float
    activations: float
    flops: float
    edges: float
    gradients: float

    @property
    def compute_seconds(self) -> float:
        return self.flops / (PEAK * UTILISATION)

    def sent_seconds(self, bandwidth: float) -> float:
        return (self.edges + self.gradients) / bandwidth

    def row(self) -> str:
        total = self.state + self.activations
        fits = "yes" if total < MEMORY else "no"
        times = (self.compute_seconds, self.sent_seconds(NVLINK), self.sent_seconds(INFINIBAND))
        return (
            f"| {self.length:,} | {self.devices} | {self.state / 1e9:.2f} | {self.activations / 1e9:.2f} | {fits} | "
            f"{self.flops / 1e12:.1f} | {self.edges / 1e6:.1f} | {self.gradients / 1e6:.1f} | "
            + " | ".join(f"{1000 * seconds:.3g}" for seconds in times)
            + " |"
        )


HEAD = (
    "| characters | devices | state, GB | activations, GB | fits 80 GB | TFLOP | edges, MB | gradients, MB | ms of "
    "computing | ms of NVLink | ms of InfiniBand |\n|" + "---|" * 11
)


def model_of(name: str) -> CharLMConfig:
    """That of a configuration's last phase, with remat; NAME or NAME:VARIANT."""
    module, _, variant = name.partition(":")
    known = sorted(name for name, path in known_configurations().items() if path.parent.name == "char_lm")
    if module not in known:
        raise InputError(f"--config is {name!r}; expected one of {', '.join(known)}, with :VARIANT or not")
    config = importlib.import_module(f"configs.char_lm.{module}").get_config(variant)
    experiment: Any = CharLMExperiment.from_config_dict(config)
    return dataclasses.replace(experiment.model_in_phase(len(experiment.phases) - 1), remat=True)


def plan(config: CharLMConfig, length: int, devices: int) -> Plan:
    """One device's share where the sequence is split over all of them."""
    part, parameters = length // devices, _parameters(config)
    return Plan(
        length=length,
        devices=devices,
        state=16.0 * parameters,
        activations=activation_bytes(config) * part + _halo_bytes(config, part, devices),
        flops=training_flops_per_character(config, abstract_params(config), length) * part,
        edges=edge_bytes(config, length, devices),
        gradients=2 * 4 * parameters * (devices - 1) / devices,
    )


def abstract_params(config: CharLMConfig) -> Any:
    return jax.eval_shape(lambda: CharLM(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])


def _parameters(config: CharLMConfig) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)))


def loss(config: CharLMConfig, params: Any, tokens: jax.Array) -> jax.Array:
    """Mean nats of tokens [B, T], the first of which follows the last: a length that splits evenly."""
    logits: Any = CharLM(config).apply({"params": params}, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.roll(tokens, -1, axis=1)).mean()


# ---- Memory ----------------------------------------------------------------------------------------------------------


def activation_bytes(config: CharLMConfig) -> float:
    """Of the most that is held at once for each character, in training.

    It is while the attention of the hungriest layer is differentiated: what the forward pass has saved of all layers,
    with remat what is computed again of that layer, and the gradients of its queries. Beside what XLA's compiler plans
    it is 0.92 to 1.06 times as much (`--check`).
    """
    layers = {(group.window, group.dilation) for group in config.layer_groups}
    within = max(_extra_of_layer(config, *layer) for layer in layers)
    return _saved(config) + within


def _extra_of_layer(config: CharLMConfig, window: int, dilation: int) -> float:
    def added(remat: bool) -> float:
        one, two = (
            dataclasses.replace(config, num_layers=n, windows=window, dilations=dilation, remat=remat) for n in (1, 2)
        )
        return _saved(two) - _saved(one)

    in_place = 0.0
    if config.remat:
        in_place = added(False) - added(True)
        if dilation > 1 and 0 < config.dilated_heads < config.num_heads:  # queries, keys and values by dilation, copied
            in_place += 4 * config.embed_dim * jnp.dtype(config.dtype).itemsize
    return in_place + _query_gradients(config, window, dilation)


@functools.cache
def _saved(config: CharLMConfig) -> float:
    """Bytes for each character that the forward pass leaves for the backward pass."""

    def residuals(length: int) -> int:
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        vjp = jax.eval_shape(
            lambda params, tokens: jax.vjp(lambda params: loss(config, params, tokens), params)[1],
            abstract_params(config),
            tokens,
        )
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(vjp))

    return (residuals(_LONG) - residuals(_SHORT)) / (_LONG - _SHORT)


def _query_gradients(config: CharLMConfig, window: int, dilation: int) -> float:
    """Bytes for each character of the gradients of one layer's queries, with the sinusoid's half, of all sub-bands."""
    from longformer_jax.models.sub_bands import cut_window

    itemsize = jnp.dtype(config.dtype).itemsize
    if config.positions == "rotary":
        return config.embed_dim * itemsize
    dilations = (dilation,) * config.dilated_heads + (1,) * (config.num_heads - config.dilated_heads)
    cut = cut_window(config.sinusoid_dim, config.head_dim, window, dilations, _LONG - 1)
    return sum(
        (heads.stop - heads.start) * len(heads.sub_bands) * (config.head_dim + heads.basis.dim) * itemsize
        for heads in cut
    )


def _halo_bytes(config: CharLMConfig, part: int, devices: int) -> float:
    """Of the neighbours' keys and values beside a device's own, and of their gradients, in the widest layer."""
    reach = min(max(group.reach for group in config.layer_groups), part * (devices - 1))
    return 4 * reach * config.embed_dim * jnp.dtype(config.dtype).itemsize


# ---- Messages --------------------------------------------------------------------------------------------------------


def edge_bytes(config: CharLMConfig, length: int, devices: int) -> float:
    """What a device sends of edges in a step, counted in the traced program."""
    if devices == 1:
        return 0.0
    mesh = AbstractMesh((devices,), (SEQUENCE_AXIS,), (AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(jax.value_and_grad(functools.partial(loss, config)))(
            abstract_params(config), jax.ShapeDtypeStruct((1, length), jnp.int32)
        )
    return _sent(traced.jaxpr)


def _sent(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "ppermute":
            total += sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in equation.outvars)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                total += times * _sent(getattr(inner, "jaxpr", inner))
    return total


# ---- Beside what compiles and runs here ------------------------------------------------------------------------------


SMALL = CharLMConfig(
    embed_dim=64, num_layers=4, num_heads=4, mlp_dim=256, windows=(32, 64, 128, 256), dilations=(1, 1, 1, 2),
    dilated_heads=2, dropout_rate=0.0, dtype="float32", remat=True,
)  # fmt: skip
MILLION = dataclasses.replace(
    SMALL, embed_dim=32, num_layers=3, num_heads=2, mlp_dim=64, windows=(32, 64, 256), dilations=1
)
CHECKS = {
    "small, remat": (SMALL, 8192),
    "small": (dataclasses.replace(SMALL, remat=False), 8192),
    "one window": (dataclasses.replace(SMALL, embed_dim=128, mlp_dim=512, windows=64, dilations=1), 8192),
    "sub-bands": (dataclasses.replace(SMALL, embed_dim=256, mlp_dim=1024, windows=(64, 64, 512, 2000)), 8192),
    "rotary": (dataclasses.replace(SMALL, embed_dim=128, mlp_dim=512, positions="rotary"), 8192),
}


def compiled_step(config: CharLMConfig, length: int, devices: int) -> Any:
    """Forward and backward pass, compiled for that many devices of this machine."""
    mesh = jax.make_mesh((devices,), (SEQUENCE_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    whole = jax.NamedSharding(mesh, jax.P())
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(functools.partial(loss, config)), in_shardings=whole, out_shardings=(whole, whole)
        )
        return step.lower(abstract_params(config), jax.ShapeDtypeStruct((1, length), jnp.int32)).compile()


def cases(most: int) -> list[tuple[str, int, int]]:
    """Of CHECKS: equal parts on one device and on `most`; then one sequence on 1, 2, 4, … devices."""
    grown = [(name, part * devices, devices) for name, (_, part) in CHECKS.items() for devices in sorted({1, most})]
    name, (_, part) = next(iter(CHECKS.items()))
    powers = (2**i for i in range(most.bit_length()))
    return list(dict.fromkeys(grown + [(name, part * most, devices) for devices in powers]))


def check(name: str, length: int, devices: int) -> dict[str, Any]:
    """Estimated and compiled temporary memory of a device."""
    config, part = CHECKS[name][0], length // devices
    compiled = compiled_step(config, length, devices).memory_analysis().temp_size_in_bytes
    estimate = activation_bytes(config) * part + _halo_bytes(config, part, devices)
    return {
        "case": name,
        "devices": devices,
        "length": length,
        "compiled_bytes": compiled,
        "estimated_bytes": round(estimate),
        "ratio": round(estimate / compiled, 3),
    }


def million(devices: int, length: int = 1 << 20) -> dict[str, Any]:
    """Forward and backward pass of a small model, run: the loss, seconds and the process's peak memory."""
    config = MILLION
    start = time.perf_counter()
    step = compiled_step(config, length, devices)
    compiled = time.perf_counter()
    params = CharLM(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    text = (Path(__file__).resolve().parents[1] / "longformer_jax" / "data" / "tiny_shakespeare.txt").read_bytes()
    tokens = np.frombuffer(text, np.uint8)[:length].astype(np.int32)[None]
    value, gradients = step(*jax.device_put((params, tokens), step.input_shardings[0]))
    norm = float(optax.tree.norm(gradients))
    return {
        "length": length,
        "devices": devices,
        "loss": float(value),
        "gradient_norm": norm,
        "compile_seconds": round(compiled - start, 1),
        "seconds": round(time.perf_counter() - compiled, 1),
        "temporary_bytes_of_a_device": step.memory_analysis().temp_size_in_bytes,
        "peak_bytes_of_the_process": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _write(part: str, records: list[dict[str, Any]], key: str | None = None) -> None:
    """To the part's file, which keeps its records with other values of `key`."""
    about = {"date": datetime.now(UTC).date().isoformat(), "device": cpu_model(), "jax": jax.__version__}
    output = Path(__file__).resolve().parent / "results" / f"scaling_{part}_cpu.json"
    others = []
    if key is not None and output.exists():
        new = [record[key] for record in records]
        others = [record for record in json.loads(output.read_text())["records"] if record[key] not in new]
    output.write_text(json.dumps(about | {"records": others + records}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="enwik8_small", help="NAME or NAME:VARIANT of configs/char_lm")
    parser.add_argument("--sequence", type=int, default=1 << 20, help="characters")
    parser.add_argument("--devices", type=int, default=8)
    for part in ("table", "check", "million"):
        parser.add_argument(f"--{part}", action="store_true")
    options = parser.parse_args()
    if options.devices < 1:
        raise InputError(f"--devices is {options.devices}; expected at least 1")
    if options.sequence < 1 or options.sequence % options.devices:
        raise InputError(f"--sequence is {options.sequence}; expected a multiple of --devices, {options.devices}")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if options.check or options.million:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.check:
        records = []
        for case in cases(options.devices):
            records.append(check(*case))
            print(json.dumps(records[-1]), flush=True)
        _write("memory", records)
    elif options.million:
        record = million(options.devices)
        print(json.dumps(record))
        _write("million", [record], key="devices")
    else:
        model = model_of(options.config)
        print(HEAD)
        for length, devices in TABLE if options.table else ((options.sequence, options.devices),):
            print(plan(model, length, devices).row(), flush=True)


if __name__ == "__main__":
    with one_line_for_errors():
        main()
