"""Implementations that fail where the band looks left only: the tests of the GPU bench let its processes import it."""

import os
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from longformer_jax.attention import api
from longformer_jax.attention.xla import xla_attention


def _where_causal(fault: Callable[[jax.Array], jax.Array]) -> Callable:
    def attention(query, key, value, *, band, **options):
        out, lse = xla_attention(query, key, value, band=band, **options)
        return (fault(out), lse) if band.right == 0 else (out, lse)

    return attention


def _hang(out: jax.Array) -> jax.Array:
    jax.debug.callback(lambda: time.sleep(1e6))
    return out


def _die(out: jax.Array) -> jax.Array:
    jax.debug.callback(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    return out


def _abort_the_compiler(out: jax.Array) -> jax.Array:
    time.sleep(0.2)  # another task has begun to run
    os.abort()


def _hang_while_compiling(out: jax.Array) -> jax.Array:
    time.sleep(1e6)
    return out


api.IMPLEMENTATIONS["hangs_while_compiling"] = _where_causal(_hang_while_compiling)
api.IMPLEMENTATIONS["hangs"] = _where_causal(_hang)
api.IMPLEMENTATIONS["dies"] = _where_causal(_die)
api.IMPLEMENTATIONS["does_not_compile"] = _where_causal(_abort_the_compiler)
api.IMPLEMENTATIONS["gives_nan"] = _where_causal(lambda out: out * jnp.nan)
