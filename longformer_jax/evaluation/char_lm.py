"""Evaluation of a character LM in a workdir that train.py has written: bits per character, and samples."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from longformer_jax.data import check_vocab, load_corpus
from longformer_jax.errors import InputError
from longformer_jax.evaluation import protocols
from longformer_jax.evaluation.own_data import check_own_data
from longformer_jax.files import user_path
from longformer_jax.integers import check_integer
from longformer_jax.models import CharLM, CharLMConfig, generate
from longformer_jax.training import CharLMExperiment, load_char_lm
from longformer_jax.training.workdir import restore_char_lm
from longformer_jax.weights import load_pretrained
from longformer_jax.weights.char_lm import read_char_lm_config
from longformer_jax.weights.hub import find_directory

PROTOCOLS = ("paper", "stream")


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      protocol, split: what was asked for; of a text of one's own, its name.
      step: of the checkpoint; 0 of a model that is no run.
      bits_per_character: the mean over the scored characters.
      characters: how many were scored.
      seconds: wall time, compilation included.
    """

    protocol: str
    split: str
    step: int
    bits_per_character: float = math.nan
    characters: int = 0
    seconds: float = math.nan

    @property
    def characters_per_second(self) -> float:
        """Scored characters for each second of wall time."""
        return self.characters / self.seconds

    @property
    def metrics(self) -> dict[str, float]:
        """What several seeds have a mean of."""
        return {"bits per character": self.bits_per_character}

    def __str__(self) -> str:
        step = f", step {self.step:,}" if self.step else ""
        return (
            f"{self.split}, protocol {self.protocol}{step}: "
            f"{self.bits_per_character:.4f} bits per character over {self.characters:,} characters, "
            f"{self.characters_per_second:,.0f} characters/s"
        )


def evaluate(
    workdir: str | Path,
    *,
    data: str | Path | None = None,
    data_path: str | Path | None = None,
    split: str | None = None,
    protocol: str = "paper",
    step: int | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
) -> Result:
    """Scores a text with a run's model, with a progress bar that shows the running figure.

    Args:
      workdir: of the run.
      data: a file of one's own, all of which is scored; None is a split of the corpus that the run was trained on.
      data_path: where that corpus is now, if it has moved since.
      split: of that corpus, "train", "validation" or "test"; None is "test", or "validation" if that is empty.
      protocol: "paper" (overlapping sequences) or "stream" (one pass with a cache); see `protocols`.
      step: which checkpoint; None is the best validation where the run keeps that, else the latest.
      sequence_length, stride, batch_size: of the protocol "paper"; None is that of `protocols.score_overlapping`.
      limit: stop after so many scored characters; None scores them all.

    Raises:
      InputError: an argument, the workdir or the text does not fit; before anything compiles.
    """
    check_own_data(data, data_path=data_path, split=split)
    paper = _paper_options(protocol, limit, sequence_length=sequence_length, stride=stride, batch_size=batch_size)
    config = CharLMExperiment.load(workdir)
    if data is None:
        corpus = config.open_data(user_path("workdir", workdir), data_path)
        name = split or ("test" if len(corpus.splits["test"]) else "validation")
        text = corpus.split(name)
    else:
        name, text = _own_text(data)
    total = _count(text, config.model, protocol, paper, limit)
    step, model, params = restore_char_lm(workdir, step)
    options = {**paper, "mesh": config.mesh} if protocol == "paper" else {}
    return _score(model, params, text, total, options, Result(protocol, name, step))


def evaluate_model(
    model: str | Path,
    *,
    data: str | Path,
    protocol: str = "paper",
    sequence_length: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
) -> Result:
    """Scores a text with a model that `save_pretrained`, or a run at its end, has written.

    Args:
      model: its directory, or its name on the Hugging Face hub.
      data: a file, all of which is scored.
      protocol, sequence_length, stride, batch_size, limit: as `evaluate`'s.

    Raises:
      InputError: an argument, the model or the text does not fit; before anything compiles.
    """
    paper = _paper_options(protocol, limit, sequence_length=sequence_length, stride=stride, batch_size=batch_size)
    name, text = _own_text(data)
    config, params = load_pretrained(model, CharLM)
    total = _count(text, config, protocol, paper, limit)
    return _score(config, params, text, total, paper, Result(protocol, name, 0))


def _paper_options(protocol: str, limit: int | None, **options: int | None) -> dict[str, int]:
    """The options of the protocol "paper" that are given; raises InputError where these or the others cannot be."""
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    if limit is not None:
        check_integer("limit", limit)
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if protocol != "paper":
            raise InputError(
                f"{name} is {value!r}, but protocol is {protocol!r}; expected it with protocol 'paper' only"
            )
    return {name: check_integer(name, value) for name, value in given.items()}


def _own_text(path: str | Path) -> tuple[str, np.ndarray]:
    """The name and the bytes, uint8 `[N]`, of a file; raises InputError where it is missing or empty."""
    try:
        corpus = load_corpus("text_file", path=path, split=(1.0, 0.0, 0.0))
    except InputError as error:
        raise InputError(f"data: {error}") from None
    return corpus.name, corpus.split("train")


def _count(text: np.ndarray, model: CharLMConfig, protocol: str, paper: dict[str, int], limit: int | None) -> int:
    """How many characters there are to score; raises InputError where the text does not fit."""
    check_vocab(text, model.vocab_size)
    total = len(text) - 1
    if protocol == "paper":
        total = protocols.overlapping_count(
            len(text), paper.get("sequence_length", protocols.PAPER_LENGTH), paper.get("stride", protocols.PAPER_STEP)
        )
    return min(total, limit or total)


def _score(
    model: CharLMConfig, params: Any, text: np.ndarray, total: int, paper: dict[str, Any], result: Result
) -> Result:
    """`result` with the figures of the first `total` characters that its protocol scores."""
    if result.protocol == "paper":
        pieces = protocols.score_overlapping(model, params, text, **paper)
    else:
        pieces = protocols.score_stream(model, params, text)
    score = protocols.BitsPerCharacter()
    began = time.perf_counter()
    description = f"{result.split} ({result.protocol})"
    with tqdm(total=total, unit="char", unit_scale=True, disable=None, desc=description) as bar:
        for piece in pieces:
            nats = np.asarray(piece.nats)[: total - score.characters]
            score.add(nats)
            bar.set_postfix_str(f"{score.value:.4f} bits per character", refresh=False)
            bar.update(nats.size)
            if score.characters >= total:
                break
    seconds = time.perf_counter() - began
    return dataclasses.replace(result, bits_per_character=score.value, characters=score.characters, seconds=seconds)


def sample_text(
    workdir: str | Path, length: int, *, prompt: str = "\n", step: int | None = None, **options: Any
) -> str:
    """Writes `length` characters after a prompt; the options are those of `longformer_jax.generate`.

    Raises:
      InputError: the prompt is empty or has bytes outside the vocabulary, or an option is out of range.
    """
    tokens = _prompt(prompt, CharLMExperiment.load(workdir).model)
    return _write(*load_char_lm(workdir, step), tokens, length, options)


def sample_from_model(model: str | Path, length: int, *, prompt: str = "\n", **options: Any) -> str:
    """As `sample_text`, with a model that `save_pretrained`, or a run at its end, has written.

    Args:
      model: its directory, or its name on the Hugging Face hub.
    """
    tokens = _prompt(prompt, read_char_lm_config(find_directory(model)))
    return _write(*load_pretrained(model, CharLM), tokens, length, options)


def _prompt(prompt: str, model: CharLMConfig) -> np.ndarray:
    """The bytes of a prompt, uint8 `[P]`; raises InputError where they are none for the model."""
    try:
        tokens = np.frombuffer(prompt.encode(), np.uint8)
    except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
        raise InputError(f"prompt is {prompt!r}, no UTF-8 at character {error.start}; expected text in UTF-8") from None
    if not len(tokens):
        raise InputError("prompt is empty; expected at least one character")
    check_vocab(tokens, model.vocab_size)
    return tokens


def _write(model: CharLMConfig, params: Any, prompt: np.ndarray, length: int, options: dict[str, Any]) -> str:
    written = generate(model, params, jnp.asarray(prompt[None]), length, **options)
    return bytes(np.asarray(jax.device_get(written))[0].astype(np.uint8)).decode(errors="replace")
