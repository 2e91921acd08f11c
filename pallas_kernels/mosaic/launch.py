"""A launch of a kernel: what goes in and out, and the grid."""

import dataclasses
import itertools
from collections import OrderedDict

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.batching import over_batches
from pallas_kernels.mosaic import hopper, mma
from pallas_kernels.mosaic.items import Scalars, Schedule
from pallas_kernels.mosaic.kernel import Arrays, Kernel
from pallas_kernels.mosaic.tiling import ROWS, Gpu, MmaTiling, Tiling
from pallas_kernels.mosaic.views import merged_shape, unview, view, view_of_output
from pallas_kernels.spans import visible_spans
from pallas_kernels.spec import Limits, Spec
from pallas_kernels.walk import Walk


def launch(
    kernel: Kernel,
    spec: Spec,
    walk: Walk,
    tiling: Tiling | MmaTiling,
    own: dict[str, jax.Array],
    other: dict[str, jax.Array],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    gpu: Gpu,
    *,
    own_is_query: bool,
    head: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Runs the kernel for every block of the walk, every head of it and batch entry; or for one head, int32 [1].

    Arrays and outputs are [B, length, H, head_dim] ("tiles") or [B, length, H] ("lines"); the outputs have the own
    side's length, and the walk's heads. What all heads share has 1 in place of H, what the whole batch shares 1 in
    place of B. Neighbouring heads with the same dilation are one launch.
    """
    # Shared memory is laid out in their order, on which depends how many registers a kernel takes; JAX sorts dicts.
    own, other = OrderedDict(own), OrderedDict(other)

    def call(*operands: jax.Array) -> tuple[jax.Array, ...]:
        own, other, limits, head = jax.tree.unflatten(tree, operands)
        parts, first_head, batch = [], 0, len(operands[0])
        for dilation, heads in itertools.groupby(walk.dilations):
            count = len(list(heads))
            part = dataclasses.replace(walk, dilations=(dilation,) * count)
            schedule = Schedule(spec, part, tiling, own_is_query, first_head, batch, gpu)
            parts.append(_launch(kernel, schedule, own, other, limits, outputs, head))
            first_head += count
        return tuple(x[0] if len(x) == 1 else jnp.concatenate(x, axis=2) for x in zip(*parts, strict=True))

    operands, tree = jax.tree.flatten((own, other, limits, head))
    if spec.interpret:  # the interpreter's side effects cannot be partitioned
        return call(*operands)
    # The first is the own side's query or key, which has the whole batch.
    common = frozenset(i for i, x in enumerate(operands) if len(x) < len(operands[0]))
    return over_batches(call, [x.ndim for x in operands], [len(x.shape) for x in outputs], common)(*operands)


def _launch(
    kernel: Kernel,
    schedule: Schedule,
    own: dict[str, jax.Array],
    other: dict[str, jax.Array],
    limits: Limits,
    outputs: tuple[jax.ShapeDtypeStruct, ...],
    head: jax.Array | None,
) -> tuple[jax.Array, ...]:
    walk, tiling = schedule.walk, schedule.tiling
    heads, dilation = len(walk.dilations), walk.dilations[0]
    own_ids, other_ids = limits.ids(schedule.own_is_query)
    spans = None
    if own_ids is not None:
        own, other = own | {"ids": own_ids}, other | {"ids": other_ids}
        spans = visible_spans(walk, own_ids, other_ids)
    scalars = Scalars(limits.dropout, spans, head)
    arrays = Arrays(
        own=jax.tree.map(lambda x: view(x, dilation, ROWS), own),
        other=jax.tree.map(lambda x: view(x, dilation, tiling.columns), other),
        outputs=tuple(view_of_output(x, schedule.batch, heads, dilation, schedule.own_rows) for x in outputs),
    )

    pipeline = mma if isinstance(tiling, MmaTiling) else hopper

    def body(own, other, scalars, *refs) -> None:
        *outputs, shared = refs
        pipeline.run(kernel, schedule, Arrays(own, other, tuple(outputs)), scalars, shared)

    results = plgpu.kernel(
        body,
        out_type=tuple(map(merged_shape, arrays.outputs)),
        scratch_types=[pipeline.Shared.of(schedule, arrays)],
        grid=(schedule.programs,),
        grid_names=("program",),
        num_threads=tiling.threads,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=plgpu.InterpretGPUParams(detect_races=True) if schedule.spec.interpret else None,
        kernel_name=f"banded_attention_{kernel.name}",
    )(*(jax.tree.map(lambda x: x.reshape(merged_shape(x).shape), side) for side in (arrays.own, arrays.other)), scalars)
    return tuple(unview(x.reshape(v.shape), walk.length) for x, v in zip(results, arrays.outputs, strict=True))
