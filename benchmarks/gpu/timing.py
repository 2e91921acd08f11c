"""Time and memory of a call on a GPU, without what it costs the host to launch it."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

REPEATS = 7
SECONDS = 0.35  # for all repeats together
LONG = 2.0  # seconds, which repeats of long calls do not exceed by much
CHAIN = 10  # calls in a loop whose length XLA knows: the host launches them ahead, without asking the device each time


class RefusedError(Exception):
    """The compiler does not take a program, such as one that needs too much shared memory."""


def measure_jax(f: Callable, *arguments: Any, chain: int = CHAIN) -> dict[str, float]:
    """{"milliseconds": median of a call, "bytes": what it needs beside its arguments: results and scratch memory}."""
    return prepare_jax(f, *arguments, chain=chain)(*arguments)


def prepare_jax(f: Callable, *shapes: Any, chain: int = CHAIN) -> Callable[..., dict[str, float]]:
    """Compiles f for arguments of these shapes; returns the measuring function of the arguments.

    Calls are repeated by a loop on the device, each waiting for the one before; `chain` of them at least.

    Raises:
      RefusedError: the compiler does not take it. What f itself raises, while it is traced, comes through as it is.
    """
    traced = jax.jit(partial(repeated, f, chain)).trace(shapes, jax.ShapeDtypeStruct((), jnp.int32))
    try:
        loop = traced.lower().compile()
    except Exception as error:  # compilers have no class in common
        raise RefusedError(f"{type(error).__name__}: {error}") from error

    def measure(*arguments: Any) -> dict[str, float]:
        def seconds_of_call(chains: int) -> float:
            return _seconds(loop, arguments, jnp.int32(chains)) / (chains * chain)

        seconds_of_call(1)
        estimate = seconds_of_call(1)
        if estimate * chain > LONG:  # as of interpreted kernels
            return result(estimate)
        estimate = min(estimate, seconds_of_call(1))
        chains = max(1, min(500, int(SECONDS / REPEATS / estimate)) // chain)
        repeats = max(3, min(REPEATS, int(LONG / (estimate * chains * chain))))
        return result(statistics.median(seconds_of_call(chains) for _ in range(repeats)))

    def result(seconds: float) -> dict[str, float]:
        return {"milliseconds": seconds * 1e3, "bytes": loop.memory_analysis().temp_size_in_bytes}  # type: ignore

    return measure


def repeated(f: Callable, chain: int, arguments: tuple, chains: Any) -> jax.Array:
    """Calls f `chain` times for each of the chains, each time after the last; a sum of something of every result."""

    def once(_, carry):
        arguments, probe = carry
        # XLA leaves out whatever no one uses, behind a barrier too: one entry of every result is summed up, behind a
        # barrier that the whole result has to reach first.
        results = lax.optimization_barrier(f(*arguments))
        probe += sum(x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(results))
        return lax.optimization_barrier((arguments, probe))

    def calls(_, carry):
        return lax.fori_loop(0, chain, once, carry)

    return lax.fori_loop(0, chains, calls, (arguments, jnp.float32(0)))[1]


def _seconds(f: Callable, *arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(f(*arguments))
    return time.perf_counter() - start


def measure_torch(f: Callable[[], Any]) -> dict[str, float]:
    """The same for a call of PyTorch's, by device events; a CUDA graph of many calls where one can be recorded."""
    import torch

    for _ in range(3):
        f()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = f()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result

    estimate = min(_torch_milliseconds(f) for _ in range(3))
    calls = max(1, min(100, int(SECONDS / REPEATS / (estimate / 1e3))))
    run, graph_calls = f, 1
    graph: Any = None
    if calls > 1:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    f()
            run, graph_calls = graph.replay, calls
        except Exception:  # not everything can be recorded
            graph = None
            torch.cuda.synchronize()

            def run() -> None:
                for _ in range(calls):
                    f()

            graph_calls = calls
    _torch_milliseconds(run)
    median = statistics.median(_torch_milliseconds(run) for _ in range(REPEATS)) / graph_calls
    recorded = graph is not None
    del run, graph
    torch.cuda.empty_cache()  # JAX needs the room
    return {"milliseconds": median, "bytes": peak, "graph": recorded}


def _torch_milliseconds(f: Callable[[], Any]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    f()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
