"""The backward kernels, which recompute the probabilities from lse: dq, whose items are blocks of queries, and dk and
dv, whose items are blocks of keys, as are those of the shared key's gradient.

Nothing is added up across items, so there are no atomics, and results repeat bit for bit.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic.items import OwnRows
from pallas_kernels.mosaic.kernel import Kernel, Sum, query_key_pairs
from pallas_kernels.mosaic.launch import launch
from pallas_kernels.mosaic.tiles import across, down, in_place, load_per_column, load_per_row, load_tile
from pallas_kernels.mosaic.tiling import Gpu, MmaTiling, Tiling
from pallas_kernels.spec import LOG2_E, Limits, Spec
from pallas_kernels.walk import Walk


def row_terms(out: jax.Array, dout: jax.Array, lse: jax.Array, dlse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What both kernels know of every row, float32 [B, T, H]: lse in bits, and what the softmax's gradient takes off.

    Of a row that sees nothing they are inf, which makes its probabilities 0, and 0.
    """
    # Where dout was float32 before, XLA may compute delta with that; the kernels' products have what was rounded.
    dout, bits = lax.optimization_barrier(dout), _bits(lse)
    return bits, _delta(out, dout, bits, dlse)


def _bits(lse: jax.Array) -> jax.Array:
    return jnp.where(lse == -jnp.inf, jnp.inf, lse * LOG2_E)


def _delta(out: jax.Array, dout: jax.Array, bits: jax.Array, dlse: jax.Array) -> jax.Array:
    """Of whole arrays, or inside a kernel of 64 rows."""
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1) - dlse
    return jnp.where(bits == jnp.inf, 0.0, delta)


def backward_dq(
    spec: Spec,
    walk: Walk,
    tiling: Tiling | MmaTiling,
    query: dict[str, jax.Array],
    keys: dict[str, jax.Array],
    rows: dict[str, jax.Array],
    limits: Limits,
    gpu: Gpu,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The gradients of the query's arrays, and what `backward_dkdv` has to know of its rows: `row_terms`.

    Where the tiling says so, the kernel computes delta, and a launch no more than so many columns of the gradients.
    The walk is over queries; arrays as `forward`'s, and of the rows "out" and "dout" [B, T, H, Dv], "lse" and "dlse"
    [B, T, H].
    """
    dout, lse = rows["dout"], rows["lse"]
    if tiling.delta_inside:
        terms = {"bits": _bits(lse), "dlse": rows["dlse"]}
    else:
        terms = dict(zip(("bits", "delta"), row_terms(rows["out"], dout, lse, rows["dlse"]), strict=True))

    def run(kernel: Kernel, outputs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[jax.Array, ...]:
        own = query | {"dout": dout} | terms
        if "delta" in terms:
            return launch(kernel, spec, walk, tiling, own, keys, limits, outputs, gpu, own_is_query=True)
        own["out"] = rows["out"]
        kernel = kernel._replace(start=_start_dq_and_delta, finish=functools.partial(_finish_with_delta, kernel.finish))
        outputs = *outputs, jax.ShapeDtypeStruct(lse.shape, jnp.float32)
        *results, delta = launch(kernel, spec, walk, tiling, own, keys, limits, outputs, gpu, own_is_query=True)
        terms["delta"] = delta
        del terms["dlse"]
        return tuple(results)

    pairs = query_key_pairs(query, keys)
    kernel = Kernel("dq", (pairs, (("dout", "value"),)), (), _start_dq, _weigh_dq, _finish)
    sums = [Sum(0, theirs, 0, query[mine].shape[-1]) for mine, theirs in pairs]
    gradients = _gradients(kernel, sums, tiling, query["query"], run)
    return {mine: gradients[theirs] for mine, theirs in pairs}, terms


def backward_dkdv(
    spec: Spec,
    walk: Walk,
    tiling: Tiling | MmaTiling,
    query: dict[str, jax.Array],
    keys: dict[str, jax.Array],
    rows: dict[str, jax.Array],
    limits: Limits,
    gpu: Gpu,
) -> tuple[jax.Array, jax.Array]:
    """dk and dv. The walk is over keys; arrays as `forward`'s, and of the rows "dout" and `row_terms`."""

    def run(kernel: Kernel, outputs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[jax.Array, ...]:
        return launch(kernel, spec, walk, tiling, keys, query | rows, limits, outputs, gpu, own_is_query=False)

    sums = [Sum(0, "query", 0, keys["key"].shape[-1]), Sum(1, "dout", 0, keys["value"].shape[-1])]
    gradients = _gradients(_of_keys("dkdv", query, keys), sums, tiling, keys["key"], run)
    return gradients["query"], gradients["dout"]


def backward_dshared(
    spec: Spec,
    walk: Walk,
    tiling: Tiling | MmaTiling,
    query: dict[str, jax.Array],
    keys: dict[str, jax.Array],
    rows: dict[str, jax.Array],
    limits: Limits,
    gpu: Gpu,
) -> jax.Array:
    """The gradient of the shared key for each batch entry, float32 [B, S, 1, R]; the rest as in `backward_dkdv`.

    A launch for each head, one after the other, whose results are added up: no array has one for every head.
    """
    width = keys["shared_key"].shape[-1]
    kernel, sums = _of_keys("dshared", query, keys), [Sum(0, "query_shared", 0, width)]

    def add_head(group: Walk, total: jax.Array, head: jax.Array) -> tuple[jax.Array, None]:
        def run(kernel: Kernel, outputs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[jax.Array, ...]:
            other = query | rows
            return launch(kernel, spec, group, tiling, keys, other, limits, outputs, gpu, own_is_query=False, head=head)

        of_head = _gradients(kernel, sums, tiling, keys["key"][:, :, :1], run)["query_shared"]
        return total + of_head.astype(jnp.float32), None

    total = jnp.zeros((*keys["key"].shape[:2], 1, width), jnp.float32)
    for dilation, heads in itertools.groupby(range(len(walk.dilations)), lambda head: walk.dilations[head]):
        group = dataclasses.replace(walk, dilations=(dilation,))
        step, numbers = functools.partial(add_head, group), jnp.array(list(heads), jnp.int32)[:, None]
        if spec.interpret:  # one kernel at a time has the threads that the interpreter needs
            total = functools.reduce(lambda total, head: step(total, head)[0], numbers, total)
        else:
            total, _ = lax.scan(step, total, numbers)
    return total


def _of_keys(name: str, query: dict[str, jax.Array], keys: dict[str, jax.Array]) -> Kernel:
    """Transposed, scores [keys, queries], as the sums need them."""
    scores = query_key_pairs(keys, query), (("value", "dout"),)
    return Kernel(name, scores, (), _start_dkdv, _weigh_dkdv, _finish)


def _gradients(
    kernel: Kernel, sums: list[Sum], tiling: Tiling | MmaTiling, own: jax.Array, run: Callable
) -> dict[str, jax.Array]:
    """Every sum by its array, [*own.shape[:3], its size] of own's dtype, from as many launches as the tiling wants.

    `run` launches a kernel with some outputs; its finish gets its sums first.
    """
    pieces: dict[str, list[jax.Array]] = {each.array: [] for each in sums}
    for part in _cut(sums, tiling.sum_columns):
        outputs = tuple(jax.ShapeDtypeStruct((*own.shape[:3], each.size), own.dtype) for each in part)
        results = run(kernel._replace(sums=part, finish=functools.partial(kernel.finish, part)), outputs)
        for each, result in zip(part, results, strict=True):
            pieces[each.array].append(result)
    return {name: x[0] if len(x) == 1 else jnp.concatenate(x, axis=-1) for name, x in pieces.items()}


def _cut(sums: list[Sum], most: int | None) -> list[tuple[Sum, ...]]:
    """The same for launches of at most so many columns each, of whole sums where possible."""
    if most is None:
        return [tuple(sums)]
    launches, room = [], 0
    for each in sums:
        for start in range(0, each.size, most):
            piece = each._replace(start=start, size=min(most, each.size - start))
            if piece.size > room:
                launches.append([])
                room = most
            launches[-1].append(piece)
            room -= piece.size
    return [tuple(launch) for launch in launches]


def _start_dq(own: dict[str, Any]):
    return load_per_row(own["bits"]), load_per_row(own["delta"])


def _start_dq_and_delta(own: dict[str, Any]):
    bits, dlse = load_per_row(own["bits"]), load_per_row(own["dlse"])
    return bits, _delta(load_tile(own["out"]), load_tile(own["dout"]), bits, dlse)


def _weigh_dq(
    rows: OwnRows,
    own: dict[str, Any],
    other: dict[str, Any],
    n: Any,
    is_edge: bool,
    scores: tuple[Callable, ...],
    state,
):
    bits, delta = state
    s, dp = scores
    p = _probabilities(rows, s(), down(bits, rows.columns), n, is_edge, own, other)
    p, _, dp = _dropped(rows, p, dp())
    return (p * (dp - down(delta, rows.columns)),), state, None


def _finish(part: tuple[Sum, ...], rows: OwnRows, sums: tuple[jax.Array, ...], state):
    """Of the scores' gradients the scale is still missing, and of the probabilities what dropout makes of them."""
    spec = rows.spec
    return tuple(x / (1 - spec.dropout_rate) if y.weights else x * spec.scale for y, x in zip(part, sums, strict=True))


def _finish_with_delta(finish: Callable, rows: OwnRows, sums: tuple[jax.Array, ...], state):
    return *finish(rows, sums, state), state[1]


def _start_dkdv(own: dict[str, Any]):
    return ()


def _weigh_dkdv(
    rows: OwnRows,
    own: dict[str, Any],
    other: dict[str, Any],
    n: Any,
    is_edge: bool,
    scores: tuple[Callable, ...],
    state,
):
    s, dp = scores
    bits = in_place(load_per_column(other["bits"]))  # beside the products, so it has to come before their wait
    p = _probabilities(rows, s(), across(bits), n, is_edge, own, other)
    p, kept, dp = _dropped(rows, p, dp())
    return (p * (dp - across(load_per_column(other["delta"]))), kept), state, None


def _probabilities(
    rows: OwnRows, s: jax.Array, bits: jax.Array, n: Any, is_edge: bool, own: dict[str, Any], other: dict[str, Any]
) -> jax.Array:
    """Negative where dropout drops them: to remember that otherwise would take a register for each."""
    s = rows.hide(s * (rows.spec.scale * LOG2_E), n, is_edge, own.get("ids"), other.get("ids"))
    p = jnp.exp2(s - bits)
    keep = rows.keep(n)
    return p if keep is None else in_place(jnp.where(keep, p, -p))


def _dropped(rows: OwnRows, p: jax.Array, dp: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The probabilities, those that are kept, not scaled up, and the gradient of the former."""
    if rows.item.dropout is None:
        return p, p, dp
    return jnp.maximum(p, -p), jnp.maximum(p, 0.0), jnp.where(p > 0, dp / (1 - rows.spec.dropout_rate), 0.0)
