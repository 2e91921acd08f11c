"""Two ways to score a text, character by character.

Both are generators of `Scored` pieces, in the order of the text, so that a caller can keep a running figure, or look at
single characters. A character's score is -ln p(character | the characters before it that the protocol lets it see).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.attention.split import BATCH_AXES
from longformer_jax.data.corpus import check_vocab
from longformer_jax.errors import InputError
from longformer_jax.integers import check_integer
from longformer_jax.models import CharLM, CharLMConfig, extend, init_cache
from longformer_jax.models.checks import describe
from longformer_jax.training import MeshConfig
from longformer_jax.training.sharding import batch_devices, evaluation_mesh, in_use, replicated

PAPER_LENGTH = 32_256
PAPER_STEP = 512


class Scored(NamedTuple):
    """Scores of neighbouring characters: nats float32 [n], of text[start : start + n]."""

    start: int
    nats: jax.Array


@dataclasses.dataclass
class BitsPerCharacter:
    """A running mean."""

    nats: float = 0.0
    characters: int = 0

    def add(self, nats: np.ndarray) -> None:
        """Adds the scores of some characters."""
        self.nats += float(np.sum(nats, dtype=np.float64))
        self.characters += nats.size

    @property
    def value(self) -> float:
        """Bits per character so far."""
        return self.nats / max(self.characters, 1) / math.log(2)


def overlapping_count(size: int, sequence_length: int = PAPER_LENGTH, stride: int = PAPER_STEP) -> int:
    """How many characters `score_overlapping` scores in a text of `size`.

    Raises:
      InputError: a number is no integer >= 1, stride is longer than the sequence, or the text is shorter than a
        sequence and its last target.
    """
    sequence_length = check_integer("sequence_length", sequence_length)
    stride = check_integer("stride", stride)
    if stride > sequence_length:
        raise InputError(f"stride is {stride}; expected at most sequence_length, {sequence_length}")
    if size <= sequence_length:
        raise InputError(
            f"sequence_length is {sequence_length}; expected less than the {size} characters of the text, or "
            "--protocol=stream, which takes any text"
        )
    return ((size - 1 - sequence_length) // stride + 1) * stride


def score_overlapping(
    config: CharLMConfig,
    params: Any,
    text: np.ndarray,
    *,
    sequence_length: int = PAPER_LENGTH,
    stride: int = PAPER_STEP,
    batch_size: int = 8,
    mesh: MeshConfig | None = None,
) -> Iterator[Scored]:
    """The paper's protocol (section 4.2.3): overlapping sequences, of which the last `stride` characters are scored.

    Sequences begin at 0, stride, 2 stride, …, as many as fit; what comes before the first scored character is context.

    Args:
      config: the model, with the windows to evaluate it with.
      params: its parameters.
      text: uint8 [N].
      sequence_length: characters that a sequence reads.
      stride: how far one sequence begins after the last.
      batch_size: sequences at once, rounded up to a multiple of the parts that the local devices split them into.
      mesh: whose `sequence` and `tensor` say how many devices have a sequence together; None is one.

    Raises:
      InputError: as `overlapping_count`, batch_size is no integer >= 1, or text is no such array, or has characters
        that the model does not know.
    """
    _check_text(config, text)
    batch_size = check_integer("batch_size", batch_size)
    count = overlapping_count(len(text), sequence_length, stride) // stride
    devices = evaluation_mesh(mesh or MeshConfig(), [sequence_length])
    split = NamedSharding(devices, P(BATCH_AXES))
    batch_size = math.ceil(min(batch_size, count) / batch_devices(devices)) * batch_devices(devices)
    params = jax.device_put(params, replicated(devices))
    for first in range(0, count, batch_size):
        # The last batch is filled up with its last sequence, whose scores are then left out.
        index = np.minimum(np.arange(first, first + batch_size), count - 1)
        windows = text[index[:, None] * stride + np.arange(sequence_length + 1)]
        nats = _overlapping_nats(config, stride, devices, params, jax.device_put(windows, split))
        for i in range(min(batch_size, count - first)):
            yield Scored((first + i) * stride + sequence_length - stride + 1, nats[i])


def _check_text(config: CharLMConfig, text: Any) -> None:
    if not isinstance(text, np.ndarray) or text.ndim != 1 or text.dtype != np.uint8:
        raise InputError(f"text is {describe(text)}; expected an array of uint8 [N]")
    check_vocab(text, config.vocab_size)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _overlapping_nats(config: CharLMConfig, stride: int, mesh: Mesh, params, windows: jax.Array) -> jax.Array:
    logits: Any = in_use(mesh, CharLM(config).apply)({"params": params}, windows[:, :-1])
    return _nats(logits[:, -stride:], windows[:, -stride:])


def score_stream(config: CharLMConfig, params: Any, text: np.ndarray, *, chunk: int = 1024) -> Iterator[Scored]:
    """Reads the text once, chunk by chunk, with a cache of each layer's window: every character but the first is scored
    once, with all the context the model can hold, in time linear in the text.

    Args:
      config: the model, with the windows to evaluate it with.
      params: its parameters.
      text: uint8 [N], 2 <= N < 2**32.
      chunk: characters at once; the scores do not depend on it.

    Raises:
      InputError: there is nothing to score, or more than a cache can count, chunk is no integer >= 1, or text is no
        such array, or has characters that the model does not know.
    """
    _check_text(config, text)
    if len(text) < 2:
        raise InputError(f"text has {len(text)} characters; expected at least 2, one to read and one to predict")
    if len(text) >= 2**32:
        raise InputError(f"text has {len(text)} characters; expected fewer than 2**32")
    chunk = min(check_integer("chunk", chunk), len(text) - 1)
    cache = init_cache(config, 1)
    for start in range(0, len(text) - 1, chunk):
        piece = np.asarray(text[start : start + chunk + 1])
        padded = np.zeros(chunk + 1, np.uint8)  # the last piece: one compilation fits all
        padded[: len(piece)] = piece
        nats, cache = _stream_nats(config, params, cache, padded[None])
        yield Scored(start + 1, nats[0, : len(piece) - 1])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _stream_nats(config: CharLMConfig, params, cache, piece: jax.Array):
    logits, cache = extend(config, params, cache, piece[:, :-1])
    return _nats(logits, piece[:, 1:]), cache


def _nats(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-ln p of targets [B, T] under logits [B, T, V]."""
    chosen = jnp.take_along_axis(logits, targets.astype(jnp.int32)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
