"""Periodic validation: the mean of nats over a fixed set of rows.

It is meant for following a run. The numbers to quote come from the package `evaluation`.
"""

import collections
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.attention.split import BATCH_AXES
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.preemption import end_if_stopped
from longformer_jax.training.step import make_eval_step

# The devices always have a batch waiting, but no more, so that a validation can be left.
_IN_FLIGHT = 2


class Validator:
    """Mean bits of all predictions of a phase's model; for kinds of experiments that have a method `nats`."""

    def __init__(
        self,
        config: ExperimentConfig,
        phase: int,
        rows: Any,
        predictions: int,
        batch_size: int,
        mesh: Mesh,
        sees: str,
    ) -> None:
        """Puts the rows on the devices.

        Args:
          config, phase: whose method `nats` gives the sum of nats of some rows.
          rows: a tree of arrays `[N, …]`.
          predictions: how many nats are added up over all rows.
          batch_size: rows at once.
          mesh: the devices.
          sees: what is looked at, in words, for the log.
        """
        self.sees = sees
        count = len(jax.tree.leaves(rows)[0])
        batches = math.ceil(count / batch_size)
        weights = np.ones(count, np.float32)
        sharding = NamedSharding(mesh, P(BATCH_AXES))

        def put(array: np.ndarray) -> list[jax.Array]:
            padded = np.zeros((batches, batch_size, *array.shape[1:]), array.dtype)
            padded.reshape(-1, *array.shape[1:])[:count] = array
            # Every process has all rows, so each fills in the shards of its own devices.
            return [jax.make_array_from_callback(part.shape, sharding, part.__getitem__) for part in padded]

        leaves, structure = jax.tree.flatten((rows, weights))
        self._batches = [structure.unflatten(batch) for batch in zip(*map(put, leaves), strict=True)]
        self._predictions = predictions
        self._score = config.score
        self._eval_step = make_eval_step(config, phase, mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """{the experiment's `score`: the mean over all predictions, in bits}."""
        nats: list[float] = []
        in_flight: collections.deque[jax.Array] = collections.deque()
        for batch in self._batches:
            end_if_stopped()
            in_flight.append(self._eval_step(params, *batch))
            if len(in_flight) == _IN_FLIGHT:
                nats.append(float(jax.device_get(in_flight.popleft())))
        nats.extend(map(float, jax.device_get([*in_flight])))
        return {self._score: sum(nats) / self._predictions / math.log(2)}
