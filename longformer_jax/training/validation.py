"""Periodic validation: bits per character on the first non-overlapping sequences of the validation split.

It is meant for following a run. The numbers to quote come from the package `evaluation`.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.sharding import BATCH_AXES
from longformer_jax.training.step import make_eval_step


class Validator:
    """Bits per character of a phase's model on `eval_sequences` sequences of the phase's length."""

    def __init__(self, config: ExperimentConfig, phase: int, data: np.ndarray, batch_size: int, mesh: Mesh) -> None:
        """Puts the sequences of `data`, uint8 `[N]`, on the devices, in batches of `batch_size`."""
        length = config.phases[phase].sequence_length
        count = min(config.eval_sequences, (len(data) - 1) // length)
        sequences = np.stack([data[i * length : (i + 1) * length + 1] for i in range(count)])
        batches = math.ceil(count / batch_size)
        padded = np.zeros((batches, batch_size, length + 1), np.uint8)
        padded.reshape(-1, length + 1)[:count] = sequences
        weights = (np.arange(batches * batch_size) < count).astype(np.float32).reshape(batches, batch_size)
        sharding = NamedSharding(mesh, P(BATCH_AXES))
        # Every process has the whole split, so each fills in the shards of its own devices.
        self._batches = [
            tuple(
                jax.make_array_from_callback(array.shape, sharding, array.__getitem__) for array in (rows, row_weights)
            )
            for rows, row_weights in zip(padded, weights, strict=True)
        ]
        self._characters = count * length
        self._eval_step = make_eval_step(config, phase, mesh)

    def __call__(self, params: Any) -> float:
        """The mean over all characters, with no context across sequences."""
        nats = [self._eval_step(params, *batch) for batch in self._batches]
        return sum(map(float, jax.device_get(nats))) / self._characters / math.log(2)
