"""What a model with a task's head says of rows: in batches by length, on all devices, put together by example."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax.data.buckets import in_order
from longformer_jax.models import LongformerConfig
from longformer_jax.tasks import Task
from longformer_jax.tasks.features import FeatureSet
from longformer_jax.training.sharding import BATCH_AXES, batch_devices, in_use, replicated

# Rows at once at most, however short they are.
_MOST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of examples.

    Attributes:
      predictions: for each example what the task's `decode` returns.
      loss: the mean over all rows, in nats; None where they are not labelled.
    """

    predictions: list[Any]
    loss: float | None


class Predictor:
    """Runs a task's head over rows; each length is compiled once."""

    def __init__(
        self,
        task: Task,
        model: LongformerConfig,
        sequence_length: int,
        lengths: Sequence[int],
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        """Prepares nothing yet.

        Args:
          task, model: the head's.
          sequence_length: the most tokens that the encoder sees at once.
          lengths: to which rows are padded, ascending.
          batch_size: rows of that length at once, over all devices; of shorter ones as many more as have the same
            number of tokens, of longer ones fewer.
          mesh: the devices.
        """
        self.task, self._model, self._lengths, self._mesh = task, model, tuple(lengths), mesh
        self._sequence_length, tokens = sequence_length, batch_size * sequence_length
        rows = (max(1, min(tokens // length, _MOST_ROWS)) for length in self._lengths)
        self._sizes = [-(-count // batch_devices(mesh)) * batch_devices(mesh) for count in rows]
        split = NamedSharding(mesh, P(BATCH_AXES))
        self._put: Callable[[np.ndarray], jax.Array] = lambda array: jax.make_array_from_callback(
            array.shape, split, array.__getitem__
        )
        self._step = jax.jit(in_use(mesh, self._outputs), static_argnums=2, out_shardings=replicated(mesh))

    def _outputs(self, params: Any, batch: dict[str, jax.Array], labelled: bool) -> Any:
        """The outputs of rows and, if they are labelled, their losses; traced."""
        inputs = self.task.inputs(batch, self._model, self._sequence_length)
        output = self.task.head(self._model).apply({"params": params}, **inputs)
        losses = self.task.loss(output, batch) if labelled else None
        return self.task.outputs(output, batch), losses

    def __call__(
        self,
        params: Any,
        features: FeatureSet,
        labelled: bool = True,
        advance: Callable[[int], Any] = lambda rows: None,
    ) -> Predictions:
        """What the model says of all examples.

        Args:
          params: of the head.
          features: the rows of the examples.
          labelled: whether all of them have targets.
          advance: is told how many rows have been done since the last time.
        """
        optional = () if labelled else self.task.targets
        names = [name for name, field in features.fields.items() if field.for_model and name not in optional]
        outputs: list[Any] = [None] * len(features)
        losses = np.zeros(len(features))
        for plan in in_order(features.lengths, lengths=self._lengths, batch_sizes=self._sizes):
            batch = {name: self._put(array) for name, array in features.batch(plan.rows, plan.length, names).items()}
            found, row_losses = jax.device_get(self._step(params, batch, labelled))
            count = int(plan.weights.sum())
            for i, row in enumerate(plan.rows[:count]):
                outputs[row] = jax.tree.map(lambda array, i=i: array[i], found)
            if labelled:
                losses[plan.rows[:count]] = row_losses[:count]
            advance(count)
        decoded = []
        bounds = np.searchsorted(features.owners, np.arange(len(features.examples) + 1))
        for example, first, end in zip(features.examples, bounds, bounds[1:], strict=False):
            rows = [features.row(index) for index in range(first, end)]
            decoded.append(self.task.decode(example, rows, outputs[first:end]))
        return Predictions(decoded, float(losses.mean()) if labelled else None)
