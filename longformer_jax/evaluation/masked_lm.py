"""Evaluation of a masked LM in a workdir that train.py has written: bits per masked token."""

import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from longformer_jax.checkpoints import find_checkpoint
from longformer_jax.errors import InputError
from longformer_jax.training import MaskedLMExperiment, MeshConfig, restore_params
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      split: what was asked for.
      step: of the checkpoint.
      bits_per_token: the mean over the masked tokens, the paper's "BPC" (table 5).
      masked: how many tokens were masked.
      tokens: how many were read.
      seconds: wall time, compilation included.
    """

    split: str
    step: int
    bits_per_token: float
    masked: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.split}, step {self.step:,}: {self.bits_per_token:.4f} bits per masked token over "
            f"{self.masked:,} of {self.tokens:,} tokens, {self.tokens / self.seconds:,.0f} tokens/s"
        )


def evaluate(
    workdir: str | Path,
    *,
    split: str = "validation",
    step: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> Result:
    """Scores a split of the data that a run was trained on, under the masks of the validation in training.

    Args:
      workdir: of the run.
      split: "validation" or "train".
      step: which checkpoint; None is the latest.
      batch_size: sequences at once, rounded up to a multiple of the devices, over which they are spread.
      limit: only so many sequences, the first; None is all.

    Raises:
      InputError: an argument, the workdir or the data does not fit; before anything compiles.
    """
    for field, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{field} is {value}; expected at least 1")
    config = MaskedLMExperiment.load(workdir)
    step = find_checkpoint(workdir, step)
    phase = config.phase_at(max(step - 1, 0))
    rows = config.load_data().rows(phase, split)[:limit]
    params = restore_params(workdir, step)
    # Whatever the training ran on, these devices may be others.
    model = dataclasses.replace(config.model, remat=False, implementation=None)
    config = dataclasses.replace(config, model=model, mesh=MeshConfig())
    mesh = make_mesh(config.mesh)
    batch_size = math.ceil(min(batch_size, len(rows)) / mesh.size) * mesh.size
    eval_step = make_eval_step(config, phase, mesh)
    nats, masked = 0.0, 0
    began = time.perf_counter()
    with tqdm(total=rows.size, unit="tok", unit_scale=True, disable=None, desc=split) as bar:
        for first in range(0, len(rows), batch_size):
            # The last batch is filled up with its last row, which then has no weight.
            index = np.minimum(np.arange(first, first + batch_size), len(rows) - 1)
            weights = (np.arange(first, first + batch_size) < len(rows)).astype(np.float32)
            batch = config.validation_rows(rows[index], index)
            nats += float(jax.device_get(eval_step(params, batch, jax.numpy.asarray(weights))))
            masked += int((batch["weights"] * weights[:, None]).sum())
            bar.set_postfix_str(f"{nats / masked / math.log(2):.4f} bits per masked token", refresh=False)
            bar.update(int(weights.sum()) * rows.shape[1])
    return Result(split, step, nats / masked / math.log(2), masked, rows.size, time.perf_counter() - began)
