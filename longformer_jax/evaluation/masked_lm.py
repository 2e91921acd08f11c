"""Evaluation of a masked LM in a workdir that train.py has written: bits per masked token."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from longformer_jax.data.packing import Packer
from longformer_jax.errors import InputError
from longformer_jax.evaluation.own_data import check_own_data
from longformer_jax.files import user_path
from longformer_jax.integers import check_integer
from longformer_jax.models import ForMaskedLM
from longformer_jax.training import MaskedLMExperiment, Phase, TokenDataConfig
from longformer_jax.training.sharding import batch_devices, evaluation_mesh
from longformer_jax.training.step import make_eval_step, params_shardings
from longformer_jax.training.workdir import restore_chosen
from longformer_jax.weights import load_tokenizer
from longformer_jax.weights.hub import find_directory
from longformer_jax.weights.pretrained import find_model, read_model_config


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      split: what was asked for; of documents of one's own, their name.
      step: of the checkpoint; 0 of a model that is no run.
      bits_per_token: the mean over the masked tokens, the paper's "BPC" (table 5).
      masked: how many tokens were masked.
      tokens: how many were read, padding included.
      seconds: wall time, compilation included.
    """

    split: str
    step: int
    bits_per_token: float = math.nan
    masked: int = 0
    tokens: int = 0
    seconds: float = math.nan

    @property
    def metrics(self) -> dict[str, float]:
        """What several seeds have a mean of."""
        return {"bits per masked token": self.bits_per_token}

    def __str__(self) -> str:
        step = f", step {self.step:,}" if self.step else ""
        return (
            f"{self.split}{step}: {self.bits_per_token:.4f} bits per masked token over "
            f"{self.masked:,} of {self.tokens:,} tokens, {self.tokens / self.seconds:,.0f} tokens/s"
        )


def evaluate(
    workdir: str | Path,
    *,
    data: str | None = None,
    data_path: str | None = None,
    split: str | None = None,
    step: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> Result:
    """Scores a split of the data that a run was trained on, under the masks of the validation in training, or others.

    Args:
      workdir: of the run.
      data: documents of one's own, as `TokenDataConfig.path`, all of which are scored; None is the run's data.
      data_path: where the run's data is now, if it has moved since.
      split: of the run's data, "validation" or "train"; None is "validation".
      step: which checkpoint; None is the best validation where the run keeps that, else the latest.
      batch_size: sequences at once, rounded up to a multiple of the devices, over which they are spread.
      limit: only so many sequences, the first; None is all.

    Raises:
      InputError: an argument, the workdir or the data does not fit; before anything compiles.
    """
    _check(batch_size, limit)
    check_own_data(data, data_path=data_path, split=split)
    config, directory = MaskedLMExperiment.load(workdir), user_path("workdir", workdir)
    step, params = restore_chosen(workdir, step)
    phase = config.last_phase(step)
    if data is None:
        name = split or "validation"
        rows = config.open_data(directory, data_path).rows(phase, name)
    else:
        length, cache = config.phases[phase].sequence_length, config.data.cache_dir
        name, rows = _own_rows(data, config.tokenizer(directory), length, cache)
    return _score(config, phase, params, rows[:limit], batch_size, Result(name, step))


def evaluate_model(
    model: str,
    *,
    data: str,
    sequence_length: int | None = None,
    batch_size: int = 8,
    limit: int | None = None,
) -> Result:
    """Scores documents with a masked LM that need not come from a run here.

    Of the same rows these are the figures that a run with seed 0 reports before training.

    Args:
      model: a directory or a name on the Hugging Face hub, of RoBERTa or Longformer, with the tokenizer's files.
      data: documents, as `TokenDataConfig.path`; all of them are scored.
      sequence_length: tokens of a sequence; None is as many as the model takes.
      batch_size, limit: as `evaluate`'s.

    Raises:
      InputError: an argument, the model or the documents do not fit; before anything compiles.
    """
    _check(batch_size, limit)
    directory = find_directory(model)
    config = read_model_config(directory)
    if find_model(directory) is not ForMaskedLM:
        raise InputError(f"model is {model!r}, which has no head to predict masked tokens; expected a masked LM")
    length = config.max_length if sequence_length is None else sequence_length
    tokenizer = load_tokenizer(directory)
    tokens = Packer.of(tokenizer, length)
    experiment = MaskedLMExperiment(
        model=config,
        init=str(directory),
        phases=(Phase(sequence_length=length, learning_rate=1.0, batch_size=1, steps=1),),
        mask_token_id=tokens.mask_token_id,
        special_token_ids=tokens.special_token_ids,
    )
    experiment.check_tokens(tokens)
    name, rows = _own_rows(data, tokenizer, length)
    return _score(experiment, 0, experiment.pretrained_params(), rows[:limit], batch_size, Result(name, 0))


def _own_rows(data: str, tokenizer: Any, length: int, cache_dir: str | None = None) -> tuple[str, np.ndarray]:
    """The name of documents, and all of them in rows `[N, length]` of tokens."""
    corpus = TokenDataConfig(path=data, validation_fraction=0, cache_dir=cache_dir).load(tokenizer, length)
    return corpus.name, corpus.split("train")


def _check(batch_size: int, limit: int | None) -> None:
    for field, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None:
            check_integer(field, value)


def _score(
    config: MaskedLMExperiment, phase: int, params: Any, rows: np.ndarray, batch_size: int, result: Result
) -> Result:
    """`result` with the figures of rows `[N, T]`."""
    # Whatever the training ran on, these devices may be others.
    model = dataclasses.replace(config.model, remat=False, implementation=None)
    config = dataclasses.replace(config, model=model)
    mesh = evaluation_mesh(config.mesh, [rows.shape[1]])
    params = jax.device_put(params, params_shardings(config, mesh))
    batch_size = math.ceil(min(batch_size, len(rows)) / batch_devices(mesh)) * batch_devices(mesh)
    eval_step = make_eval_step(config, phase, mesh)
    nats, masked = 0.0, 0
    began = time.perf_counter()
    with tqdm(total=rows.size, unit="tok", unit_scale=True, disable=None, desc=result.split) as bar:
        for first in range(0, len(rows), batch_size):
            # The last batch is filled up with its last row, which then has no weight.
            index = np.minimum(np.arange(first, first + batch_size), len(rows) - 1)
            weights = (np.arange(first, first + batch_size) < len(rows)).astype(np.float32)
            batch = config.validation_rows(rows[index], index)
            nats += float(jax.device_get(eval_step(params, batch, jax.numpy.asarray(weights))))
            masked += int((batch["weights"] * weights[:, None]).sum())
            bar.set_postfix_str(f"{nats / max(masked, 1) / math.log(2):.4f} bits per masked token", refresh=False)
            bar.update(int(weights.sum()) * rows.shape[1])
    config.check_masked(masked, len(rows))
    return dataclasses.replace(
        result,
        bits_per_token=nats / masked / math.log(2),
        masked=masked,
        tokens=rows.size,
        seconds=time.perf_counter() - began,
    )
