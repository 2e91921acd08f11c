"""What a task is: how its files are read, what the model is given and asked for, and how answers are scored.

The way of an example:

    files --read--> example --texts, tokenizer, rows--> rows --batches--> inputs, head, outputs --> decode
    --> prediction --write_predictions--> the official file, and --score--> metrics

An example is a mapping of JSON values. It may become several rows, such as the pieces of a long document; decoding gets
what the model said of all of them together. A row is a mapping of one-dimensional arrays, whose kinds `fields` lists.
"""

import abc
import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from longformer_jax.checksums import recording
from longformer_jax.data.buckets import bucket_lengths
from longformer_jax.errors import InputError
from longformer_jax.files import replacing
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.tasks.records import SUFFIXES, suffix_of
from longformer_jax.weights import save_pretrained
from longformer_jax.weights.tensor_files import write_tensors

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

# JSON values; "id" is a text that no other example of a split has.
Example = dict[str, Any]

# How often something happened to what was read, such as "cut at 4,096 tokens".
Counts = collections.Counter[str]

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Field:
    """A kind of one-dimensional arrays that a row has.

    Attributes:
      dtype: a NumPy dtype's name.
      length: for how many entries a batch has room; None is as many as tokens. What is left is filled with `fill`.
      fill: the value of entries that are not there.
      for_model: whether batches have it; what only decoding needs, such as character offsets, stays on the host.
    """

    dtype: str = "int32"
    length: int | None = None
    fill: int = 0
    for_model: bool = True


@dataclasses.dataclass(frozen=True)
class Marked:
    """A document with what a prediction points at, for a page to look at.

    Attributes:
      heading: what was asked.
      note: what was answered, in a line.
      name, text: of the document.
      spans: start and end, in characters, and what stands there: "answer", "sentence" (which it is taken from),
        "unread" (of the model), or "entity N", a mention of the entity of that number. They may overlap.
    """

    heading: str
    note: str
    name: str
    text: str
    spans: Sequence[tuple[int, int, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A task; a subclass is a frozen dataclass whose fields are settings, which config.json keeps.

    Attributes:
      kind: the task's name in `TASKS`, or "MODULE:CLASS".
    """

    kind: str

    # What an example is called, in the plural.
    unit: ClassVar[str] = "documents"
    # The splits that the distributed files have, "train" and "validation" at least.
    splits: ClassVar[Sequence[str]] = SPLITS
    # What is scored unless another split is asked for; validation where there is no such split.
    default_split: ClassVar[str] = "test"
    # What decoding, scoring and the official file need of an example, of what it has.
    kept: ClassVar[Sequence[str]] = ("id",)
    # The fields that only labelled examples have.
    targets: ClassVar[Sequence[str]] = ()
    # Marks that `rows` puts between texts, by their ids; a model that does not know them gets rows of its tables for
    # them, drawn from the seed.
    added_tokens: ClassVar[Sequence[str]] = ()
    # Of the files that `read_own` reads; of any other `predict` takes the text.
    own_suffixes: ClassVar[Sequence[str]] = (*SUFFIXES, ".json")

    # Reading.

    @abc.abstractmethod
    def files(self, path: Path, split: str) -> list[Path]:
        """The files that `read` reads; raises InputError where one is missing."""

    @abc.abstractmethod
    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The examples of a split, one at a time, in an order that does not change.

        Args:
          path: where the data is.
          split: one of `splits`.
          counts: where what is dropped is counted, under a reason.

        Raises:
          InputError: one sentence that names the file, the record and the field.
        """

    def is_own(self, path: Path) -> bool:
        """Whether `predict` gives a file to `read_own`, rather than its text to `from_text`."""
        return suffix_of(path) in self.own_suffixes

    @abc.abstractmethod
    def read_own(self, path: Path) -> Iterator[Example]:
        """The examples of a file of a user's own, labelled or not; raises InputError as `read` does."""

    def from_text(self, text: str, name: str) -> Example:
        """An example without a label, for `predict`; raises InputError where a task needs more than a text."""
        raise InputError(f"task is {self.kind!r}, which answers no plain text; expected a file that it reads")

    def from_question(self, question: str, text: str, name: str) -> Example:
        """An example of a question about a text, for `predict`; raises InputError where a task answers none."""
        raise InputError(f"task is {self.kind!r}, which answers no questions; expected documents without a question")

    def is_labelled(self, example: Example) -> bool:
        """Whether an example, or the part of it that is kept, has what `score` compares with."""
        return True

    # Features.

    @abc.abstractmethod
    def texts(self, example: Example) -> list[str]:
        """What is tokenized of an example, one after the other, without special tokens."""

    @abc.abstractmethod
    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """The rows of an example, each a mapping of `fields` to lists of numbers.

        Args:
          example: as it was read.
          encodings: of `texts`, each with `ids` and, for every id, `offsets`: the characters that it stands for.
          packer: with the ids of special tokens, and the most tokens of a row as `sequence_length`.
          counts: where what is cut or dropped is counted, under a reason.
        """

    @abc.abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The arrays of a row; "input_ids" is one of them, and pads with the tokenizer's <pad> whatever it says here.

        `targets` are missing in rows of examples without a label.
        """

    def added_ids(self, packer: "Packer") -> list[int]:
        """The ids of `added_tokens`; raises InputError where the tokenizer does not know one."""
        known = packer.tokenizer.get_vocab(with_added_tokens=True)
        if missing := [token for token in self.added_tokens if token not in known]:
            raise InputError(f"tokenizer has no {', '.join(missing)}; expected one with the tokens of the task")
        return [known[token] for token in self.added_tokens]

    def lengths(self, sequence_length: int) -> tuple[int, ...]:
        """The lengths, ascending, to which batches of rows are padded, where the experiment has no `lengths`.

        Args:
          sequence_length: of the phase; the last length, unless a row is made of several sequences.
        """
        return bucket_lengths(sequence_length)

    # The model.

    @abc.abstractmethod
    def head(self, model: LongformerConfig) -> nn.Module:
        """The module: an encoder named "longformer", and on it what the task needs."""

    def model(self, model: LongformerConfig) -> LongformerConfig:
        """The configuration with what the task decides of it, such as the number of labels."""
        return model

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """The arguments of the head's call, from a batch of arrays `[B, length]`; traced.

        Args:
          batch: the fields for the model.
          model: of the head.
          sequence_length: of the phase, the most tokens that the encoder sees at once.
        """
        ids = batch["input_ids"].astype(jnp.int32)
        return {"input_ids": ids, "attention_mask": ids != model.pad_token_id}

    @abc.abstractmethod
    def loss(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """float32 `[B]`: the loss of each row, given what the head returns; traced."""

    @abc.abstractmethod
    def outputs(self, output: Any, batch: Mapping[str, jax.Array]) -> Any:
        """What decoding needs of what the head returns, a small tree of arrays `[B, …]`; traced."""

    def save(self, directory: Path, model: LongformerConfig, params: Any) -> None:
        """Writes the model for `load_pretrained`; for a head that it does not know, see `save_encoder_and_head`."""
        save_pretrained(directory, model, params, type(self.head(model)))

    # Answers.

    @abc.abstractmethod
    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """The prediction for an example, JSON values.

        Args:
          example: its `kept` part.
          rows: all its rows.
          outputs: for each row, its part of `outputs`.
        """

    @abc.abstractmethod
    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """The metrics, given what `decode` returned and the `kept` parts of the examples."""

    @property
    @abc.abstractmethod
    def selection(self) -> str:
        """The metric, the larger the better, that selects the best checkpoint."""

    @abc.abstractmethod
    def describe(self, prediction: Any) -> str:
        """A prediction in one line of text."""

    def marked(self, example: Example, prediction: Any) -> Marked:
        """The document of an example, as it was read, with its prediction; only of tasks whose answers are passages."""
        raise NotImplementedError

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """Writes the official file of predictions; here, a JSON object a line. The arguments are as of `score`."""
        with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(prediction, ensure_ascii=False) + "\n")

    def check_split(self, split: str) -> None:
        """Raises InputError unless the task has a split of this name."""
        if split not in self.splits:
            expected = ", ".join(self.splits)
            raise InputError(f"split is {split!r}, which {self.kind} does not have; expected one of {expected}")


def as_line(*columns: str) -> str:
    """Columns with tabs between them, each without the line breaks and tabs of its own."""
    return "\t".join(" ".join(column.split()) for column in columns)


def check_diverged(diverged: bool | np.bool_, what: str) -> None:
    """Raises InputError where scores of something, in words, are no numbers."""
    if diverged:
        raise InputError(f"the scores of {what} are no numbers; expected a model that has not diverged")


HEAD_FILE = "head.safetensors"


def save_encoder_and_head(directory: Path, model: LongformerConfig, params: Any) -> None:
    """Writes the encoder for `load_pretrained` and transformers, and what is on it to a file of its own beside it."""
    save_pretrained(directory, model, params["longformer"], Longformer)
    head = flatten_dict({name: part for name, part in params.items() if name != "longformer"}, sep="/")
    with recording(directory / HEAD_FILE) as partial:
        write_tensors(partial, {name: np.ascontiguousarray(jax.device_get(x)) for name, x in head.items()})
