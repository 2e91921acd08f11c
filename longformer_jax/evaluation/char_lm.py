"""Evaluation of a character LM in a workdir that train.py has written: bits per character, and samples."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from longformer_jax.checkpoints import find_checkpoint
from longformer_jax.data import check_vocab
from longformer_jax.errors import InputError
from longformer_jax.evaluation import protocols
from longformer_jax.files import user_path
from longformer_jax.models import CharLMConfig, generate
from longformer_jax.training import CharLMExperiment, restore_params

PROTOCOLS = ("paper", "stream")


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      protocol, split: what was asked for.
      step: of the checkpoint.
      bits_per_character: the mean over the scored characters.
      characters: how many were scored.
      seconds: wall time, compilation included.
    """

    protocol: str
    split: str
    step: int
    bits_per_character: float
    characters: int
    seconds: float

    @property
    def characters_per_second(self) -> float:
        """Scored characters for each second of wall time."""
        return self.characters / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.split}, protocol {self.protocol}, step {self.step:,}: "
            f"{self.bits_per_character:.4f} bits per character over {self.characters:,} characters, "
            f"{self.characters_per_second:,.0f} characters/s"
        )


def load_model(workdir: str | Path, step: int | None = None) -> tuple[CharLMExperiment, CharLMConfig, dict, int]:
    """The experiment, the model with the windows of the phase that was trained last, its parameters and its step.

    Raises:
      InputError: the workdir holds no run or no such checkpoint, or it is damaged.
    """
    config = CharLMExperiment.load(workdir)
    step = find_checkpoint(workdir, step)
    model = config.model_in_phase(config.phase_at(max(step - 1, 0)))
    # Whatever the training ran on, this device may be another.
    return config, dataclasses.replace(model, remat=False, implementation=None), restore_params(workdir, step), step


def evaluate(
    workdir: str | Path,
    *,
    split: str = "test",
    protocol: str = "paper",
    step: int | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
) -> Result:
    """Scores a split of the corpus that a run was trained on, with a progress bar that shows the running figure.

    Args:
      workdir: of the run.
      split: "train", "validation" or "test".
      protocol: "paper" (overlapping sequences) or "stream" (one pass with a cache); see `protocols`.
      step: which checkpoint; None is the latest.
      sequence_length, stride, batch_size: of the protocol "paper"; None is that of `protocols.score_overlapping`.
      limit: stop after so many scored characters; None scores them all.

    Raises:
      InputError: an argument, the workdir or the text does not fit; before anything compiles.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; expected at least 1 character")
    paper = {"sequence_length": sequence_length, "stride": stride, "batch_size": batch_size}
    paper = {name: value for name, value in paper.items() if value is not None}
    for name, value in paper.items():
        if protocol != "paper":
            raise InputError(f"{name} is {value}, but protocol is {protocol!r}; expected it with protocol 'paper' only")
    config = CharLMExperiment.load(workdir)
    text = config.open_data(user_path("workdir", workdir)).split(split)
    check_vocab(text, config.model.vocab_size)
    total = len(text) - 1
    if protocol == "paper":
        total = protocols.overlapping_count(
            len(text), paper.get("sequence_length", protocols.PAPER_LENGTH), paper.get("stride", protocols.PAPER_STEP)
        )
    _, model, params, found = load_model(workdir, step)
    if protocol == "paper":
        pieces = protocols.score_overlapping(model, params, text, **paper)
    else:
        pieces = protocols.score_stream(model, params, text)
    total = min(total, limit or total)
    score = protocols.BitsPerCharacter()
    began = time.perf_counter()
    with tqdm(total=total, unit="char", unit_scale=True, disable=None, desc=f"{split} ({protocol})") as bar:
        for piece in pieces:
            nats = np.asarray(piece.nats)[: total - score.characters]
            score.add(nats)
            bar.set_postfix_str(f"{score.value:.4f} bits per character", refresh=False)
            bar.update(nats.size)
            if score.characters >= total:
                break
    seconds = time.perf_counter() - began
    return Result(protocol, split, found, score.value, score.characters, seconds)


def sample_text(
    workdir: str | Path,
    length: int,
    *,
    prompt: str = "\n",
    step: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """Writes `length` characters after a prompt; the options are those of `longformer_jax.generate`.

    Raises:
      InputError: the prompt is empty or has bytes outside the vocabulary, or an option is out of range.
    """
    try:
        tokens = np.frombuffer(prompt.encode(), np.uint8)
    except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
        raise InputError(f"prompt is {prompt!r}, no UTF-8 at character {error.start}; expected text in UTF-8") from None
    if not len(tokens):
        raise InputError("prompt is empty; expected at least one character")
    config = CharLMExperiment.load(workdir)
    check_vocab(tokens, config.model.vocab_size)
    _, model, params, _ = load_model(workdir, step)
    written = generate(
        model, params, jnp.asarray(tokens[None]), length, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p
    )
    return bytes(np.asarray(jax.device_get(written))[0].astype(np.uint8)).decode(errors="replace")
