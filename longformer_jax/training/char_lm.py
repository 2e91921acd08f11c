"""The character LM as an experiment: a text, its next characters, and windows that grow from phase to phase."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from longformer_jax.data import Corpus, check_vocab, load_corpus, train_batches
from longformer_jax.data.batches import MAX_SEQUENCES
from longformer_jax.errors import InputError
from longformer_jax.models import CharLM, CharLMConfig
from longformer_jax.models.finite import apply_marked
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.flops import training_flops_per_character
from longformer_jax.training.parts import Phase
from longformer_jax.training.serialization import check, convert_fields
from longformer_jax.training.validation import Validator
from longformer_jax.weights import load_pretrained, save_pretrained
from longformer_jax.weights.char_lm import read_char_lm_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# What the model to begin with has to have in common with the model to train; windows may differ as they do in phases.
_KEPT = (
    *("vocab_size", "embed_dim", "num_layers", "num_heads", "mlp_dim", "tie_embeddings"),
    *("positions", "position_dim", "dilations", "dilated_heads"),
    *("activation", "qk_norm", "logit_softcap"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from: the arguments of `load_corpus`.

    Attributes:
      source: a source of `load_corpus`; None is the file `path` where one is given, else the embedded text.
      path: the file, or the directory of a manual download.
      data_dir: where prepared data sets are kept; None is TFDS's usual place.
      split: fractions of train, validation and test, for a file of one's own.
    """

    source: str | None = None
    path: str | None = None
    data_dir: str | None = None
    split: tuple[float, ...] = (0.90, 0.05, 0.05)

    def __post_init__(self) -> None:
        convert_fields(self)

    def load(self) -> Corpus:
        """The corpus; raises InputError where `load_corpus` does."""
        source = self.source or ("tiny_shakespeare" if self.path is None else "text_file")
        try:
            return load_corpus(source, path=self.path, data_dir=self.data_dir, split=self.split)
        except InputError as error:
            raise InputError(f"data: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharLMPhase(Phase):
    """A phase (paper, section 4.2): later ones see longer sequences through wider windows.

    Attributes:
      windows: how many preceding characters each layer sees, in steps of the layer's dilation, bottom layer first.
    """

    windows: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharLMExperiment(ExperimentConfig):
    """Training of a character LM (section 4).

    Attributes:
      model: its windows are set to those of the first phase; `model_in_phase` gives the others.
      init: WORKDIR/model of another run, or what `save_pretrained` has written; only its windows and what drops out may
        differ from those of `model`.
    """

    model: CharLMConfig
    phases: tuple[CharLMPhase, ...]
    data: DataConfig = DataConfig()

    objective: ClassVar[str] = "char_lm"
    model_class: ClassVar[str] = "CharLM"
    unit: ClassVar[str] = "characters"
    unit_symbol: ClassVar[str] = "char"
    score_name: ClassVar[str] = "bits per character"

    def __post_init__(self) -> None:
        super().__post_init__()
        for index in range(len(self.phases)):
            try:
                self.model_in_phase(index)
            except InputError as error:
                raise InputError(f"phases[{index}].{error}") from None
        object.__setattr__(self, "model", self.model_in_phase(0))

    def model_in_phase(self, index: int) -> CharLMConfig:
        """The model as phase `index` runs it: the same parameters behind the phase's windows."""
        return dataclasses.replace(self.model, windows=self.phases[index].windows)

    def load_data(self, workdir: Path | None = None) -> Corpus:
        """The corpus, with every split long enough for every phase and its token ids known to the model.

        Raises:
          InputError: where `load_corpus` does; a split is shorter than a phase's sequence and its last target; the
            training split has 2**32 windows or more; a token id does not fit the model's vocabulary; or the model to
            begin with is another one.
        """
        if workdir is None:
            self._check_init()
        corpus = self.data.load()
        for split in ("train", "validation") if self.eval_interval else ("train",):
            size = len(corpus.splits[split])
            if not size:
                raise InputError(
                    f"data.split is {self.data.split}, which leaves {corpus.name} without validation; expected a "
                    "fraction for it, or eval_interval=0"
                )
            for index, phase in enumerate(self.phases):
                check(
                    phase.sequence_length < size,
                    f"phases[{index}].sequence_length",
                    phase.sequence_length,
                    f"less than the {size:,} characters of the {split} split of {corpus.name}",
                )
        windows = len(corpus.split("train")) - min(phase.sequence_length for phase in self.phases)
        if windows >= MAX_SEQUENCES:
            raise InputError(
                f"data is {corpus.name}, whose train split has {windows:,} windows; expected fewer than "
                f"{MAX_SEQUENCES:,}, such as of a smaller fraction in data.split"
            )
        check_vocab(corpus, self.model.vocab_size)
        return corpus

    def train_batches(self, data: Corpus, phase: int, **position: int) -> Iterator[np.ndarray]:
        """uint8 `[B / P, T + 1]`: inputs and, one further, targets."""
        return train_batches(
            data.split("train"),
            sequence_length=self.phases[phase].sequence_length,
            batch_size=self.phases[phase].batch_size,
            seed=self.data_seed(phase),
            **position,
        )

    def batch_spec(self, phase: int) -> jax.ShapeDtypeStruct:
        """uint8 `[B, T + 1]`."""
        settings = self.phases[phase]
        return jax.ShapeDtypeStruct((settings.batch_size, settings.sequence_length + 1), jnp.uint8)

    def init_params(self) -> Any:
        """Parameters from the seed."""
        return CharLM(self.model).init(jax.random.key(self.seed), jnp.zeros((1, 1), jnp.int32))["params"]

    def pretrained_params(self) -> Any:
        """The parameters of `init`; None where there is no `init`.

        Raises:
          InputError: the weights cannot be loaded, or are not those of such a model.
        """
        if self.init is None:
            return None
        self._check_init()
        return load_pretrained(self.init, CharLM)[1]

    def _check_init(self) -> None:
        """Raises InputError unless the model of `init` is this one, but for its windows and what drops out."""

        def read(directory: Path) -> CharLMConfig:
            found = read_char_lm_config(directory)
            same = found.sinusoid_dim == self.model.sinusoid_dim or self.model.positions != "transformer_xl"
            return dataclasses.replace(found, position_dim=self.model.position_dim) if same else found

        self.check_init(read, *_KEPT)

    def write_model(self, directory: Path, params: Any, *, phase: int, workdir: Path | None = None) -> None:
        """Writes the model, with the windows of the phase."""
        save_pretrained(directory, self.model_in_phase(phase), params)

    def loss(self, phase: int, params: Any, microbatch: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean nats a character."""
        nats, marks = self._nats(phase, params, microbatch, deterministic=False, rngs={"dropout": key})
        return nats.mean(), marks

    def validation_rows(self, phase: int, text: np.ndarray) -> np.ndarray:
        """The first non-overlapping sequences of a text uint8 `[N]`, at most `eval_sequences`: uint8 `[n, T + 1]`."""
        length = self.phases[phase].sequence_length
        count = min(self.eval_sequences, (len(text) - 1) // length)
        return np.stack([text[i * length : (i + 1) * length + 1] for i in range(count)])

    def validator(self, phase: int, data: Corpus, batch_size: int, mesh: Mesh) -> Validator:
        """Bits per character on `validation_rows`, with no context across sequences."""
        rows = self.validation_rows(phase, data.split("validation"))
        count, size = len(rows), rows[:, 1:].size
        sees = (
            f"the first {size:,} characters of {len(data.split('validation')):,}, as {count} sequences that do not see "
            "each other; eval.py lets every character see what is before it"
        )
        return Validator(self, phase, rows, size, batch_size, mesh, sees)

    def nats(self, phase: int, params: Any, rows: jax.Array, weights: jax.Array) -> jax.Array:
        """The sum of nats over the sequences uint8 `[B, T + 1]` whose weight, float32 `[B]`, is 1 and not 0."""
        return jnp.sum(self._nats(phase, params, rows, deterministic=True)[0] * weights[:, None])

    def _nats(self, phase: int, params: Any, sequences: jax.Array, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
        """The cross entropy of each character but the first, and the model's marks.

        Sequences are uint8 `[B, T + 1]`, results float32 `[B, T]`.
        """
        sequences = sequences.astype(jnp.int32)
        logits, marks = apply_marked(CharLM(self.model_in_phase(phase)), params, sequences[:, :-1], **kwargs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:]), marks

    def flops_per_token(self, phase: int, params: Any, data: Corpus) -> float:
        """See `training_flops_per_character`."""
        model, length = self.model_in_phase(phase), self.phases[phase].sequence_length
        return training_flops_per_character(model, params, length)

    def to_config_dict(self) -> "ConfigDict":
        """As in the base class, without the model's windows, which phases have."""
        config = super().to_config_dict()
        del config.model.windows
        return config

    def to_dict(self) -> dict[str, Any]:
        """As in the base class, without the model's windows, which phases have."""
        values = super().to_dict()
        del values["model"]["windows"]
        return values

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> Self:
        """As in the base class, but refuses windows of the model, which phases have."""
        model = fields.get("model")
        if not isinstance(model, Mapping):
            raise InputError(f"model is {model!r}; expected a mapping")
        if "windows" in model:
            raise InputError(f"model.windows is {model['windows']!r}; expected no such key, as phases have the windows")
        return super().build(fields)
