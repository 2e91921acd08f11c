"""Text classification: a label for each document (section 6.3 of the paper). `<s>` is the one global token."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from longformer_jax.errors import InputError
from longformer_jax.models import ForSequenceClassification, LongformerConfig
from longformer_jax.tasks.base import Counts, Example, Field, Task, check_diverged
from longformer_jax.tasks.metrics import accuracy, macro_f1, precision_recall_f1
from longformer_jax.tasks.records import SUFFIXES, read_records, text_field

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

METRICS = ("accuracy", "f1")

# An interval of the training records that goes without a file for validation.
_FRACTION = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """What all text classification has in common; an example is {"id", "text", "label"}, its label None if unknown.

    A document is `<s> text </s>`, cut where it has more tokens than a row.
    """

    kept: ClassVar[Sequence[str]] = ("id", "label")
    targets: ClassVar[Sequence[str]] = ("label",)

    @property
    @abc.abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """The labels, in the order of the logits."""

    @property
    def positive(self) -> str | None:
        """The label that F1 is of; None means the mean over all labels."""
        return None

    @property
    def selection(self) -> str:
        return "accuracy"

    def example(
        self, place: str, name: str, text: str, label: str | None, fields: tuple[str, str] = ("text", "label")
    ) -> Example:
        """An example; raises InputError, which begins with `place`, where the text is empty or the label unknown.

        `fields` is what these two are called where they come from.
        """
        if not text.strip():
            raise InputError(f"{place}: {fields[0]} is empty; expected a document")
        if label is not None and label not in self.label_names:
            raise InputError(f"{place}: {fields[1]} is {label!r}; expected one of {', '.join(self.label_names)}")
        return {"id": name, "text": text, "label": label}

    def from_text(self, text: str, name: str) -> Example:
        """A document without a label."""
        return self.example(name, name, text, None)

    def is_labelled(self, example: Example) -> bool:
        """Whether the label is known."""
        return example["label"] is not None

    def read_own(self, path: Path) -> Iterator[Example]:
        """JSON lines or CSV with the fields `text` and, where known, `label` and `id`."""
        return self.read_table(path, text="text", label="label", name="id")

    def read_table(self, path: Path, text: str, label: str, name: str | None) -> Iterator[Example]:
        """The examples of a file of records with these fields; a record without a label, or an empty one, has None."""
        for number, (place, record) in enumerate(read_records(path), start=1):
            known = record.get(label) not in (None, "")
            yield self.example(
                place,
                text_field(place, record, name) if name in record else str(number),
                text_field(place, record, text),
                text_field(place, record, label) if known else None,
                (text, label),
            )

    # Features.

    def texts(self, example: Example) -> list[str]:
        """The document."""
        return [example["text"]]

    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """One row: `<s> text </s>`, and how many characters of the document are in it."""
        ids, offsets = encodings[0].ids, encodings[0].offsets
        room = packer.sequence_length - 2
        if len(ids) > room:
            counts[f"cut at {packer.sequence_length:,} tokens"] += 1
        row = {
            "input_ids": [packer.bos_token_id, *ids[:room], packer.sep_token_id],
            "characters": [offsets[:room][-1][1] if ids else 0],
        }
        if example["label"] is not None:
            row["label"] = [self.label_names.index(example["label"])]
        yield row

    def fields(self) -> Mapping[str, Field]:
        """`input_ids`, `label`, and for decoding `characters`, the end of what the model has read."""
        return {"input_ids": Field(), "label": Field(length=1), "characters": Field(length=1, for_model=False)}

    # The model.

    def head(self, model: LongformerConfig) -> nn.Module:
        """Whose first token is global."""
        return ForSequenceClassification(model)

    def model(self, model: LongformerConfig) -> LongformerConfig:
        """With the labels."""
        return dataclasses.replace(model, num_labels=len(self.label_names), id2label=self.label_names)

    def loss(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Cross entropy, in nats."""
        return optax.softmax_cross_entropy_with_integer_labels(output.logits, batch["label"][:, 0])

    def outputs(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities `[B, labels]`."""
        return jax.nn.softmax(output.logits.astype(jnp.float32))

    # Answers.

    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """{"id", "label", "scores": of each label, "characters": how many the model has read}."""
        (probabilities,) = outputs
        check_diverged(np.isnan(probabilities).any(), f"document {example['id']!r}")
        return {
            "id": example["id"],
            "label": self.label_names[int(np.argmax(probabilities))],
            "scores": {label: round(float(p), 6) for label, p in zip(self.label_names, probabilities, strict=True)},
            "characters": int(rows[0]["characters"][0]),
        }

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """`accuracy` and `f1`; of a positive label `precision` and `recall`, too."""
        predicted, expected = ([item["label"] for item in items] for items in (predictions, examples))
        metrics = {"accuracy": accuracy(predicted, expected)}
        if self.positive is None:
            return metrics | {"f1": macro_f1(predicted, expected, self.label_names)}
        precision, recall, f1 = precision_recall_f1(predicted, expected, self.positive)
        return metrics | {"f1": f1, "precision": precision, "recall": recall}

    def describe(self, prediction: Any) -> str:
        """The label and its probability."""
        label = prediction["label"]
        return f"{label}\t{prediction['scores'][label]:.4f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextClassification(Classification):
    """Your own documents, in files of records: JSON lines, CSV or TSV.

    `data.path` is a directory with train.jsonl and, where there are, validation.jsonl and test.jsonl (or .csv, .tsv,
    each also with .gz), or one such file for training.

    Attributes:
      labels: the names of all labels, in the order of their ids.
      text_field, label_field: the fields, or columns, of a record.
      id_field: the field that names a record; records are numbered where there is none of this name.
      validation_fraction: where there is no file for validation, the part of the training records that is set aside for
        it, at equal distances: with 0.1 each tenth.
      positive_label: the label that F1 is of; None is the mean over all labels ("macro").
      metric: what selects the best checkpoint, "accuracy" or "f1".
    """

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    text_field: str = "text"
    label_field: str = "label"
    id_field: str = "id"
    validation_fraction: float = _FRACTION
    positive_label: str | None = None
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise InputError(f"labels is {self.labels!r}; expected the names of at least two labels, such as neg,pos")
        if self.positive_label is not None and self.positive_label not in self.labels:
            raise InputError(f"positive_label is {self.positive_label!r}; expected one of {', '.join(self.labels)}")
        if self.metric not in METRICS:
            raise InputError(f"metric is {self.metric!r}; expected one of {', '.join(METRICS)}")
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction is {self.validation_fraction}; expected a number between 0 and 1")

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels

    @property
    def positive(self) -> str | None:
        return self.positive_label

    @property
    def selection(self) -> str:
        return self.metric

    def files(self, path: Path, split: str) -> list[Path]:
        """The split's file, or that of training, of which a part is set aside where validation has no file.

        Beside that of training there is that of validation, as it decides what is read of the former.
        """
        found = self._file(path, split)
        if found is None and split == "validation":
            found = self._file(path, "train")
        if found is None:
            raise InputError(
                f"split is {split!r}, for which data.path {str(path)!r} has no file; expected {split}"
                f"{f' or {split}'.join(SUFFIXES)} in a directory" + (", or a file" if split == "train" else "")
            )
        validation = self._file(path, "validation") if split == "train" else None
        return [found, validation] if validation else [found]

    def _file(self, path: Path, split: str) -> Path | None:
        if not path.is_dir():
            return path if split == "train" else None
        names = [f"{split}{suffix}{end}" for suffix in SUFFIXES for end in ("", ".gz")]
        found = sorted(file for file in path.glob(f"{split}.*") if file.name.lower() in names)
        if len(found) > 1:
            raise InputError(f"data.path {str(path)!r} has {found[0].name} and {found[1].name}; expected one of them")
        return found[0] if found else None

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The records of a split's file."""
        file, *_ = self.files(path, split)
        examples = self._labelled(file)
        if split == "test" or self._file(path, "validation"):
            return examples
        sets_aside = (
            math.floor((i + 1) * self.validation_fraction) > math.floor(i * self.validation_fraction)
            for i in itertools.count()
        )
        wanted = split == "validation"
        return (example for example, aside in zip(examples, sets_aside, strict=False) if aside == wanted)

    def _labelled(self, file: Path) -> Iterator[Example]:
        for number, example in enumerate(self.read_own(file), start=1):
            if example["label"] is None:
                raise InputError(
                    f"record {number:,} of {str(file)!r} has no {self.label_field!r}; expected one of "
                    f"{', '.join(self.labels)}"
                )
            yield example

    def read_own(self, path: Path) -> Iterator[Example]:
        """A file of records with this task's fields."""
        return self.read_table(path, text=self.text_field, label=self.label_field, name=self.id_field)
