"""The calls of the op that training a character model makes, without training it."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.tracing import patched
from longformer_jax.attention import api
from longformer_jax.attention.band import Band
from longformer_jax.models import CharLM
from longformer_jax.training.char_lm import CharLMExperiment
from longformer_jax.training.parts import MeshConfig
from longformer_jax.training.sharding import accumulation_steps, make_mesh
from pallas_kernels.dropout import Streams

EXPERIMENTS = ("enwik8_small", "enwik8_large", "text8_small")
PHASES = range(5)


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """What an implementation is called with; shapes [B, T or S, H, D], and [B or 1, S, R] of a shared key."""

    dtype: str
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    shared_key: tuple[int, ...] | None
    band: Band
    scale: float
    dropout_rate: float

    @property
    def dims(self) -> tuple[int, int, int]:
        """head_dims of key, value and shared key."""
        return self.key[-1], self.value[-1], self.shared_key[-1] if self.shared_key else 0

    def both(self, implementation: Callable) -> tuple[Callable, tuple[Any, ...]]:
        """The call with its gradients, as in training: none for the shared key; and its arguments' shapes."""
        shapes = self.query, self.key, self.value, self.shared_key
        arrays = [None if shape is None else jax.ShapeDtypeStruct(shape, self.dtype) for shape in shapes]
        options = {"band": self.band, "key_mask": None, "segment_ids": None, "scale": self.scale}
        seed = jax.ShapeDtypeStruct((), "uint32") if self.dropout_rate else None

        def both(query, key, value, shared_key, dropout_seed, cotangents):
            streams = Streams.of(dropout_seed, len(query)) if self.dropout_rate else None
            dropout = {"dropout_rate": self.dropout_rate, "dropout": streams}
            attend = functools.partial(implementation, shared_key=shared_key, **options, **dropout)
            outputs, pullback = jax.vjp(attend, query, key, value)
            return outputs, pullback(cotangents)

        rows = jax.ShapeDtypeStruct(self.query[:3], "float32")
        out = jax.ShapeDtypeStruct((*self.query[:3], self.value[-1]), self.dtype)
        return both, (*arrays, seed, (out, rows))


@functools.cache
def model_calls(experiment: str, phase: int) -> tuple[ModelCall, ...]:
    """The different calls of configs/char_lm/EXPERIMENT.py in a phase, counted from 0, on one device."""
    module = importlib.import_module(f"configs.char_lm.{experiment}")
    config = CharLMExperiment.from_config_dict(module.get_config())
    settings, model = config.phases[phase], config.model_in_phase(phase)
    rows = settings.batch_size // accumulation_steps(config, phase, make_mesh(MeshConfig()))
    calls: dict[ModelCall, None] = {}

    def note(query, key, value, *, shared_key, band, scale, dropout_rate, **_) -> tuple[jax.Array, jax.Array]:
        shared = None if shared_key is None else shared_key.shape
        calls[ModelCall(str(query.dtype), query.shape, key.shape, value.shape, shared, band, scale, dropout_rate)] = (
            None
        )
        return jnp.zeros((*query.shape[:3], value.shape[-1]), value.dtype), jnp.zeros(query.shape[:3], jnp.float32)

    def apply(tokens: jax.Array) -> Any:
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return CharLM(model).init_with_output(rngs, tokens, deterministic=False)[0]

    with patched(api, "_select", lambda *_: note):
        jax.eval_shape(apply, jax.ShapeDtypeStruct((rows, settings.sequence_length), "int32"))
    return tuple(call for call in calls if call.query[1] > 1)  # the parameters' shapes need no more than a character


@dataclasses.dataclass(frozen=True)
class ModelCase:
    """A call that training one of the paper's character models makes: number `number` of `model_calls`."""

    experiment: str
    phase: int
    number: int
    implementation: str
    call: ModelCall

    @property
    def is_mosaic(self) -> bool:
        return self.implementation.startswith("pallas_mosaic")

    @property
    def name(self) -> str:
        return f"{self.experiment},{self.phase},{self.number},{self.implementation}"


def model_cases(experiment: str, implementation: str) -> Iterator[ModelCase]:
    """All of an experiment's."""
    for phase in PHASES:
        for number, call in enumerate(model_calls(experiment, phase)):
            yield ModelCase(experiment, phase, number, implementation, call)
