"""Compiles the GPU kernels for real GPUs on a machine without one, and prints the registers and memory they take.

    python -m benchmarks.aot                          every case for sm_80, sm_90a and sm_100a
    python -m benchmarks.aot --target=sm_90a --case=bfloat16-64-64

Needs the extra `aot` (XLA's CUDA compiler as a plugin, and ptxas). Every case is compiled, forward and backward, in a
process of its own, as a kernel that does not suit an architecture aborts the compiler.
"""

import argparse
import dataclasses
import itertools
import math
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import sass
from benchmarks.model_calls import EXPERIMENTS, ModelCase, model_cases

# What XLA wants to know of a GPU. Sizes in bytes, from NVIDIA's data sheets and CUDA's tables of compute capabilities.
TARGETS = {
    "sm_80": {
        "name": "NVIDIA A100-SXM4-80GB", "major": 8, "cores": 108, "clock_ghz": 1.41, "bandwidth": 2.04e12,
        "memory": 80 * 2**30, "l2": 40 * 2**20, "fpus": 64,
        "shared_per_core": 164 * 2**10, "shared_per_block": 163 * 2**10,
    },
    "sm_90a": {
        "name": "NVIDIA H100 80GB HBM3", "major": 9, "cores": 132, "clock_ghz": 1.98, "bandwidth": 3.35e12,
        "memory": 80 * 2**30, "l2": 50 * 2**20, "fpus": 128,
        "shared_per_core": 228 * 2**10, "shared_per_block": 227 * 2**10,
    },
    "sm_100a": {
        "name": "NVIDIA B200", "major": 10, "cores": 148, "clock_ghz": 1.97, "bandwidth": 8e12,
        "memory": 180 * 2**30, "l2": 126 * 2**20, "fpus": 128,
        "shared_per_core": 228 * 2**10, "shared_per_block": 227 * 2**10,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of banded_attention: H=12, 256 keys a side."""

    dtype: str
    key_dim: int
    value_dim: int
    options: tuple[str, ...] = ()  # among "causal", "dilation", "key_mask", "segment_ids", "dropout"
    implementation: str = "pallas_triton"
    batch: int = 1
    length: int = 4096
    shared_dim: int = 0  # of a key that all heads share

    @property
    def is_mosaic(self) -> bool:
        return self.implementation.startswith("pallas_mosaic")

    @property
    def name(self) -> str:
        short = {"pallas_triton": [], "pallas_mosaic_gpu": ["hopper"], "pallas_mosaic_mma": ["mma"]}
        backend = short.get(self.implementation, [self.implementation])
        size = [f"{self.batch}x{self.length}"] * ((self.batch, self.length) != (1, 4096))
        key_dim = f"{self.key_dim}+{self.shared_dim}" if self.shared_dim else str(self.key_dim)
        return "-".join([*backend, self.dtype, key_dim, str(self.value_dim), *self.options, *size])


CASES = (
    *(Case("bfloat16", d, d) for d in (32, 48, 64, 80, 96, 128, 192, 240, 256)),
    Case("bfloat16", 128, 64),
    Case("bfloat16", 64, 64, ("causal",)),
    Case("bfloat16", 64, 64, ("dilation",)),
    Case("bfloat16", 64, 64, ("key_mask", "segment_ids")),
    Case("bfloat16", 64, 64, ("dropout",)),
    Case("bfloat16", 128, 64, ("causal", "dilation", "key_mask", "segment_ids", "dropout")),
    *(Case("float16", d, d) for d in (64, 128, 256)),
    *(Case("float32", d, d) for d in (32, 64, 96, 128, 256)),
    # The positions of the paper's character model in windows of 32, 512, 1,024 and 4,096 steps, and what is largest.
    *(Case("bfloat16", 64, 64, shared_dim=R) for R in (22, 126, 166, 242)),
    *(Case("bfloat16", 128, 128, shared_dim=R) for R in (192, 256)),
    Case("bfloat16", 64, 64, ("causal", "dilation", "key_mask", "segment_ids", "dropout"), shared_dim=166),
    Case("float32", 64, 64, shared_dim=126),
)
# Each block size once, at the head_dim that takes most registers, and all limits at once.
EACH_BLOCK_SIZE = ("bfloat16-64-64", "bfloat16-256-256", "float32-32-32", "float32-64-64", "float32-256-256")
EACH_BLOCK_SIZE += ("bfloat16-128-64-causal-dilation-key_mask-segment_ids-dropout", "bfloat16-128+192-128")

# For sm_90a only. In 4096 rows a program has one item or two, and the compiler knows it; the others have several.
_ALL = "causal", "dilation", "key_mask", "segment_ids", "dropout"
_DIMS = (64, 64), (128, 128), (128, 64)
HOPPER_CASES = (
    Case("float16", 64, 64, ("causal",), "pallas_mosaic_gpu"),
    *(
        Case("bfloat16", *dims, options, "pallas_mosaic_gpu", *size)
        for dims, options, size in itertools.product(_DIMS, ((), _ALL), ((1, 4096), (2, 8000)))
    ),
)

# For all targets.
MMA_CASES = (
    Case("float16", 64, 64, ("causal",), "pallas_mosaic_mma"),
    *(Case("bfloat16", *dims, options, "pallas_mosaic_mma") for dims, options in itertools.product(_DIMS, ((), _ALL))),
)

# The positions of the paper's character model, and what is largest.
_BESIDE_SHARED = ((64, 22), (64, 126), (64, 166), (128, 192))
HOPPER_CASES += tuple(
    Case("bfloat16", dim, dim, _ALL, "pallas_mosaic_gpu", 2, 8000, shared_dim=R) for dim, R in _BESIDE_SHARED
)
MMA_CASES += tuple(Case("bfloat16", dim, dim, _ALL, "pallas_mosaic_mma", shared_dim=R) for dim, R in _BESIDE_SHARED[2:])

SPLIT_CASE = Case("bfloat16", 64, 64, ("segment_ids", "dropout"), "pallas_mosaic_gpu", batch=2)  # over two devices
ROUNDED_CASES = tuple(Case("bfloat16", 64, 64, (), name) for name in ("pallas_mosaic_gpu", "xla"))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A Hopper kernel, in bfloat16, with another tiling than its default: one of `python -m benchmarks.gpu --sweep`."""

    kernel: str
    dims: tuple[int, int]
    changes: dict[str, Any]
    implementation: ClassVar[str] = "pallas_mosaic_gpu"
    is_mosaic: ClassVar[bool] = True

    @property
    def name(self) -> str:
        changes = [f"{name}={value}" for name, value in self.changes.items()]
        return "-".join(["hopper", self.kernel, *map(str, self.dims), *changes])

    @property
    def tiling(self) -> Any:
        from pallas_kernels.mosaic.tiling import hopper_tiling

        return dataclasses.replace(hopper_tiling(self.kernel, *self.dims), **self.changes)


GPU_IMPLEMENTATIONS = "pallas_triton", "pallas_mosaic_gpu", "pallas_mosaic_mma"
AnyCase = Case | Variant | ModelCase
_TURNS = {"overlap": True, "turns": True}
VARIANTS = (
    Variant("forward", (64, 64), {"own_in_registers": True}),
    Variant("forward", (64, 64), {"warpgroups": 3}),
    Variant("forward", (64, 64), {"warpgroups": 3, "overlap": True, "own_in_registers": True}),
    Variant("forward", (64, 64), {"warpgroups": 3, **_TURNS}),
    Variant("forward", (128, 64), {"turns": True}),
    *(Variant("forward", (128, 128), {idea: True}) for idea in ("own_in_registers", "turns")),
    *(Variant("dq", (64, 64), {idea: False}) for idea in ("own_in_registers", "delta_inside")),
    Variant("dq", (64, 64), _TURNS),
    *(Variant("dq", dims, {"overlap": False, "scores_together": True}) for dims in ((64, 64), (128, 64))),
    *(Variant("dq", (128, 64), {idea: True}) for idea in ("own_in_registers", "turns")),
    Variant("dq", (128, 128), {"scores_together": True}),
    *(Variant("dkdv", (64, 64), {"warpgroups": 2, idea: True}) for idea in ("own_in_registers", "scores_together")),
    Variant("dkdv", (128, 64), {"own_in_registers": True}),
)


def target_config(target: str) -> str:
    gpu = TARGETS[target]
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
          shared_memory_per_block: 49152  shared_memory_per_block_optin: {gpu["shared_per_block"]}
          shared_memory_per_core: {gpu["shared_per_core"]}
          core_count: {gpu["cores"]}  fpus_per_core: {gpu["fpus"]}  clock_rate_ghz: {gpu["clock_ghz"]}
          block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
          memory_bandwidth: {gpu["bandwidth"]:.0f}  device_memory_size: {gpu["memory"]}  l2_cache_size: {gpu["l2"]}
          registers_per_core_limit: 65536  registers_per_block_limit: 65536
          cuda_compute_capability {{ major: {gpu["major"]} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{gpu["name"]}"
    """


def compile_for(target: str, f: Callable, *arguments: Any, devices: int = 1, axis: str = "batch") -> Any:
    """jit(f) compiled for the target, with the mesh of so many devices along one axis in use.

    If that is "batch", the arguments, trees of shapes, are split over the devices along their first axes.
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding, PartitionSpec

    config = target_config(target)
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x1x{devices}")
    mesh = topologies.make_mesh(topology, (devices,), (axis,))

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(axis) if axis == "batch" and devices > 1 and x.ndim else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    @dataclasses.dataclass(frozen=True)
    class Device(AbstractDevice):
        """One that tells what Mosaic GPU asks of a real one, and takes for a Hopper's where it does not."""

        compute_capability: str

    gpu = TARGETS[target]
    device = Device(gpu["name"], gpu["cores"], platform="gpu", compute_capability=f"{gpu['major']}.0")
    with jax.sharding.use_abstract_mesh(AbstractMesh((devices,), (axis,), (AxisType.Auto,), abstract_device=device)):
        return jax.jit(f).trace(*jax.tree.map(placed, arguments)).lower().compile()


def call_of(case: AnyCase) -> tuple[Callable, tuple[Any, ...]]:
    """The op with its gradients, or one of its kernels, and trees of its arguments' shapes."""
    if isinstance(case, Variant):
        from benchmarks.gpu import sweep

        return sweep.call_of(sweep.task_of(case.implementation, (*case.dims, 0), case.kernel, case.tiling))

    import jax

    from longformer_jax.attention import api, banded_attention

    if isinstance(case, ModelCase):
        return case.call.both(api.IMPLEMENTATIONS[case.implementation])
    B, T, H = case.batch, case.length, 12
    limits = {
        "key_mask": jax.ShapeDtypeStruct((B, T), "bool"),
        "segment_ids": jax.ShapeDtypeStruct((B, T), "int32"),
        "dropout_seed": jax.ShapeDtypeStruct((), "int32"),
    }
    wanted = {"dropout_seed" if option == "dropout" else option for option in case.options}

    def attend(query, key, value, shared_key, limits):
        return banded_attention(
            query, key, value, shared_key=shared_key, window=256, causal="causal" in case.options, return_lse=True,
            dilation=(4,) * 2 + (1,) * (H - 2) if "dilation" in case.options else 1,
            dropout_rate=0.1 if "dropout" in case.options else 0.0, implementation=case.implementation, **limits,
        )  # fmt: skip

    def both(query, key, value, shared_key, limits, cotangents):
        outputs, pullback = jax.vjp(lambda *x: attend(*x, limits=limits), query, key, value, shared_key)
        return outputs, pullback(cotangents)

    dims = case.key_dim + case.shared_dim, case.key_dim, case.value_dim
    query, key, value = (jax.ShapeDtypeStruct((B, T, H, dim), case.dtype) for dim in dims)
    shared_key = jax.ShapeDtypeStruct((T, case.shared_dim), case.dtype) if case.shared_dim else None
    cotangents = value, jax.ShapeDtypeStruct((B, T, H), "float32")
    return both, (query, key, value, shared_key, {n: x for n, x in limits.items() if n in wanted}, cotangents)


def compile_case(target: str, case: AnyCase) -> dict[str, dict[str, Any]]:
    """kernel -> registers of a thread, and its bytes that were spilled to memory.

    Of a Hopper kernel's machine code also the warpgroup products, the loads by TMA, the exponentials that are computed
    while products are in flight, how often the assembler had to make products wait for each other ("serialized"), and
    what `sass.py` finds wrong with the use of registers ("faults").
    """
    both, arguments = call_of(case)
    compile_for(target, both, *arguments)

    folder = Path(os.environ["MOSAIC_GPU_DUMP_TO"])
    if case.is_mosaic:
        # Heads with different dilations are launches of the same kernel: the worst counts.
        found: dict[str, dict[str, Any]] = {}
        for report in sorted(folder.glob("*.ptxas")):
            code = report.with_suffix(".sass_ctrl").read_text()
            for kernel, figures in _resources(report.read_text()).items():
                figures |= {name: code.count(name) for name in ("HGMMA", "HMMA", "UTMALDG", "LDGSTS")}
                if case.implementation == "pallas_mosaic_gpu":
                    figures["beside_products"] = sass.exponentials_beside_products(code)
                    figures["serialized"] = report.read_text().count("C75")
                    figures["faults"] = sass.touched_in_flight(code) + sass.registers_beyond(code)
                before = found.setdefault(kernel.removesuffix("_mosaic_gpu_kernel"), figures)
                for name, figure in figures.items():
                    worst = max if name in ("registers", "spilled", "serialized", "faults") else min
                    before[name] = worst(before[name], figure)
        return found
    found = {}
    for ptx in folder.glob("*.ptx"):
        command = [ptxas(), f"-arch={target}", "-v", str(ptx), "-o", "/dev/null"]
        for kernel, figures in _resources(
            subprocess.run(command, capture_output=True, text=True, check=True).stderr
        ).items():
            before = found.setdefault(re.sub(r"__\d+$", "", kernel), figures)  # here, too, the worst counts
            before |= {name: max(before[name], figure) for name, figure in figures.items()}
    return found


def compile_split(target: str, case: Case) -> dict[str, int]:
    """On as many devices as there are batch entries: the kernels, transfers between devices, and results that are not
    split."""
    import jax

    both, arguments = call_of(case)
    compiled = compile_for(target, both, *arguments, devices=case.batch)
    calls = [line for line in compiled.as_text().splitlines() if " custom-call(" in line]
    return {
        "kernels": sum("banded_attention" in line for line in calls),
        "transfers": len(re.findall(r"(?:all|collective)-[a-z-]+\(", compiled.as_text())),
        "whole_results": sum(x.spec[:1] != ("batch",) for x in jax.tree.leaves(compiled.output_shardings)),
    }


def compile_rounded(target: str, case: Case) -> dict[str, int]:
    """With a cotangent that is rounded from float32 in the same program: how many operations read it unrounded, and how
    many of these give anything else than 16 bits."""
    import jax

    both, (*arguments, (dout, dlse)) = call_of(case)
    exact = jax.ShapeDtypeStruct(dout.shape, "float32")

    def rounded(query, key, value, shared_key, limits, dout, dlse):
        return both(query, key, value, shared_key, limits, (dout.astype(query.dtype), dlse))

    text = compile_for(target, rounded, *arguments, exact, dlse).as_text()
    entry = text[text.index("\nENTRY") :]
    shape = ",".join(map(str, exact.shape))
    name = re.search(rf"%([\w.-]+) = f32\[{shape}\]\S* parameter\(", entry)[1]  # type: ignore
    results = re.findall(rf" = (.*) [\w-]+\([^()]*%{re.escape(name)}[,)]", entry)
    return {"readers": len(results), "inexact": sum("f32[" in result for result in results)}


def _resources(report: str) -> dict[str, dict[str, Any]]:
    """What ptxas says of our kernels."""
    found = {}
    for part in report.split("Compiling entry function '")[1:]:
        kernel = part.split("'")[0]
        if kernel.startswith("banded_attention"):
            registers = int(re.search(r"Used (\d+) registers", part)[1])  # type: ignore
            spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
            found[kernel] = {"registers": registers, "spilled": spilled}
    return found


def compile_training_step(target: str, length: int, devices: int = 1) -> dict[str, int]:
    """Of a character model like `enwik8_small` with a narrow sinusoid, one sequence over so many devices: the kernels
    in it, how many of their operands are copied or transposed first, bytes of a device's temporary memory, numbers
    in the largest array, and how often one that holds no integers is gathered.

    Few layers, a narrow MLP and a wide window, so that the largest array ought to be queries, keys and values, length x
    3 embed_dim, and even one head's scores in the window would be larger.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from longformer_jax import CharLM, CharLMConfig

    config = CharLMConfig(
        embed_dim=512, num_layers=4, num_heads=8, mlp_dim=512, windows=(2048,) * 4, dilations=(1, 1, 4, 4),
        dilated_heads=2, position_dim=64, dropout_rate=0.2, dtype="bfloat16", remat=True,
        implementation="pallas_triton",
    )  # fmt: skip
    model = CharLM(config)

    def gradients(params: Any, tokens: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits: Any = model.apply(
                {"params": params}, tokens, deterministic=False, rngs={"dropout": jax.random.key(0)}
            )
            targets = jnp.roll(tokens, -1, axis=1)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        return jax.value_and_grad(loss)(params)

    anywhere = CharLM(dataclasses.replace(config, implementation="reference"))  # the shapes do not depend on it
    params = jax.eval_shape(lambda: anywhere.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    tokens = jax.ShapeDtypeStruct((1, length), "int32")
    compiled = compile_for(target, gradients, params, tokens, devices=devices, axis="sequence")

    text = compiled.as_text()
    opcode = dict(re.findall(r"%?([\w.-]+) = \S+ ([\w-]+)\(", text))
    kernels = [line for line in text.splitlines() if "custom-call(" in line and "banded_attention" in line]
    operands = [
        name for line in kernels for name in re.findall(r"%([\w.-]+)", line.split("custom-call(")[1].split(")")[0])
    ]
    moved = [name for name in operands if opcode.get(name) in ("copy", "transpose") or "transpose" in name]
    shapes = re.findall(r"\b(?:bf16|f32|s32|u32|pred|u8)\[([\d,]+)\]", text)
    return {
        "kernels": len(kernels),
        "moved_operands": len(moved),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
        "largest_array": max(math.prod(map(int, shape.split(","))) for shape in shapes),
        "gathered": len(re.findall(r"= \(?(?:bf16|f32)\S* (?:\S+ )?(?:all-gather|all-to-all)", text)),
    }


def ptxas() -> str:
    import nvidia

    return next(str(file) for root in nvidia.__path__ for file in Path(root).rglob("bin/ptxas"))


# Has imported what every compilation needs, and no backend.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["longformer_jax", "benchmarks.gpu.sweep", "jax.experimental.topologies"])


def _send_result(sender: Connection, environment: dict[str, str], compile_it: Callable, arguments: tuple) -> None:
    os.environ |= environment
    import jax

    jax.config.update("jax_platforms", "cpu")
    sender.send(compile_it(*arguments))


def in_process(compile_it: Callable[..., Any], *arguments: Any) -> Any:
    """A compilation in a process of its own: what it returns. What it raises is printed there."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_gpu_autotune_level=0 --xla_dump_to={folder} --xla_dump_emitter_re=.*"
        mosaic = {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1"}
        # Else LLVM, where llvm-symbolizer is installed, starts it for each of its many diagnostics.
        environment = {"XLA_FLAGS": flags, **mosaic, "LLVM_DISABLE_SYMBOLIZATION": "1"}
        receiver, sender = _PROCESSES.Pipe(duplex=False)
        with receiver:
            process = _PROCESSES.Process(target=_send_result, args=(sender, environment, compile_it, arguments))
            process.start()
            sender.close()
            try:
                return receiver.recv()
            except EOFError:
                process.join()
                said = f"{compile_it.__name__}{arguments} ended with status {process.exitcode}"
                raise RuntimeError(said) from None
            finally:
                process.join()


def measure_all[OneCase: AnyCase](
    wanted: Sequence[tuple[str, OneCase]],
) -> Iterator[tuple[str, OneCase, dict[str, dict[str, Any]]]]:
    """(target, case, what `compile_case` says) for all of them, in order; a compilation on each processor at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found_in_order = pool.map(lambda both: in_process(compile_case, *both), wanted)
        for (target, case), found in zip(wanted, found_in_order, strict=True):
            yield target, case, found


TABLE_HEAD = "| target | case | kernel | registers | spilled bytes |\n|---|---|---|---|---|"


def table_rows(target: str, case: AnyCase, found: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"| {target} | {case.name} | {kernel} | {figures['registers']} | {figures['spilled']} |"
        for kernel, figures in sorted(found.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    named: dict[str, Any] = {
        case.name: case for case in (*CASES, *HOPPER_CASES, *MMA_CASES, SPLIT_CASE, *ROUNDED_CASES, *VARIANTS)
    }
    parser.add_argument("--case", choices=named, action="append", help="default: all, Hopper's for sm_90a only")
    parser.add_argument("--model", choices=EXPERIMENTS, help="what its training calls, in place of cases")
    parser.add_argument("--training-step", type=int, metavar="LENGTH", help="of the character model, in place of cases")
    parser.add_argument("--devices", type=int, default=1, help="over which the training step's sequence is split")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    if options.training_step:
        for target in targets:
            print(target, in_process(compile_training_step, target, options.training_step, options.devices))
        return
    print(TABLE_HEAD)
    cases: Sequence[AnyCase] = [named[name] for name in options.case or ()] or (*CASES, *HOPPER_CASES, *MMA_CASES)
    if options.model:
        cases = [case for name in GPU_IMPLEMENTATIONS for case in model_cases(options.model, name)]
    wanted = [
        (t, case) for t in targets for case in cases if t == "sm_90a" or case.implementation != "pallas_mosaic_gpu"
    ]
    for target, case, found in measure_all(wanted):
        print(table_rows(target, case, found), flush=True)


if __name__ == "__main__":
    main()
