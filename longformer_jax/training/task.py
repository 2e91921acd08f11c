"""Fine-tuning on a task as an experiment: from a pretrained encoder to the best checkpoint by the task's own metric."""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from longformer_jax.checksums import recording
from longformer_jax.data.buckets import EpochBatches
from longformer_jax.data.packing import Packer
from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.models.finite import apply_marked
from longformer_jax.tasks import Task, build_task
from longformer_jax.tasks.base import Counts
from longformer_jax.tasks.features import FeatureSet, load_features, whole_texts
from longformer_jax.training.config import ExperimentConfig
from longformer_jax.training.encoder_init import KEPT, check_tokenizer, load_init
from longformer_jax.training.flops import encoder_flops_per_token
from longformer_jax.training.parts import Phase
from longformer_jax.training.prediction import Predictor
from longformer_jax.training.preemption import end_if_stopped
from longformer_jax.training.serialization import build, check, convert_fields
from longformer_jax.weights import load_tokenizer, resize_vocab
from longformer_jax.weights.conversion import POSITIONS
from longformer_jax.weights.pretrained import read_model_config
from longformer_jax.weights.tokenizer import TOKENIZER, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Where the examples are, and how they become tokens.

    Attributes:
      path: what the task says: the data as distributed, or a directory or file of one's own.
      tokenizer: a tokenizer.json, or a model (a directory or a name on the hub) whose tokenizer is meant. None is that
        of the experiment's `init`; where there is none, byte-level BPE is learnt from the training examples.
      cache_dir: where features are kept; None is ~/.cache/longformer_jax.
    """

    path: str | None = None
    tokenizer: str | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        convert_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPhase(Phase):
    """A phase of fine-tuning.

    Attributes:
      sequence_length: the most tokens of a row; what is longer is cut, or what else the task does.
      batch_size: rows of an optimizer step, all of about one length.
      steps: 0 follows from `epochs`.
      epochs: how often all rows are trained on; None means what `steps` says.
      sequences_per_device: rows of the full length; of shorter ones as many more as have the same number of tokens.
    """

    steps: int = 0
    epochs: int | None = None

    least_steps: ClassVar[int] = 0

    @property
    def extent(self) -> tuple[str, int]:
        """Epochs, where there are any."""
        return super().extent if self.epochs is None else ("epochs", self.epochs)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        check(self.steps > 0 or self.epochs is not None, "steps", self.steps, "at least 1, or a number of epochs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """What a run reads.

    Attributes:
      tokenizer: what made tokens of the texts.
      train, validation: for each phase, the rows of these splits.
      sequence_lengths: of each phase.
    """

    tokenizer: "Tokenizer"
    train: tuple[FeatureSet, ...]
    validation: tuple[FeatureSet, ...]
    sequence_lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the training split, with what was cut or dropped of it."""
        return describe_features(self.train[-1])

    @property
    def fingerprint(self) -> str:
        """A digest of all rows."""
        prints = "".join(features.fingerprint for features in (*self.train, *self.validation))
        return hashlib.sha256(prints.encode()).hexdigest()

    @property
    def parts(self) -> dict[str, str]:
        """Digests of the rows of each length."""
        phases = zip(self.sequence_lengths, self.train, self.validation, strict=True)
        return {str(length): f"{train.fingerprint} {other.fingerprint}" for length, train, other in phases}


def describe_features(features: FeatureSet) -> str:
    """How many examples and rows there are, and how many were cut or dropped, for what reason."""
    parts = [f"{features.size:,} of {features.name}"]
    if len(features) != features.size:
        parts.append(f"in {len(features):,} rows")
    return " ".join([*parts, *(f"({count:,} {reason})" for reason, count in sorted(features.counts.items()))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskExperiment(ExperimentConfig):
    """Fine-tuning of an encoder with a head of the task.

    Attributes:
      model: the encoder; what the task decides, such as the number of labels, is set by the task.
      task: the task with its settings; its `kind` says which one.
      init: of RoBERTa's or Longformer's kind; RoBERTa becomes a Longformer where `model` is one. Only the encoder is
        taken; the head is drawn from the seed.
      positions: as in pretraining, for an `init` whose position table is shorter.
      lengths: the lengths, ascending, to one of which a row is padded; None is what the task says, by default
        `bucket_lengths` of the phase's sequence_length. A step is compiled for each that occurs.
      evaluations_per_epoch: with a phase's `epochs`, so often are validations and checkpoints; `eval_interval` and
        `checkpoint_interval` are set to that. 0 leaves them.
      eval_sequences: how many validation examples are looked at, at equal distances.
    """

    model: LongformerConfig
    task: Task
    phases: tuple[TaskPhase, ...]
    data: TaskDataConfig = TaskDataConfig()
    positions: str = "copied"
    lengths: tuple[int, ...] | None = None
    evaluations_per_epoch: int = 1
    eval_sequences: int = 2**31 - 1
    keep_best: bool = True

    objective: ClassVar[str] = "task"
    model_class: ClassVar[str] = "of the task"
    unit: ClassVar[str] = "rows"
    unit_symbol: ClassVar[str] = "rows"
    sequence_unit: ClassVar[str | None] = "tokens"
    score: ClassVar[str] = "loss"
    score_name: ClassVar[str] = "loss (nats)"
    score_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check(isinstance(self.task, Task), "task", self.task, "a task")
        super().__post_init__()
        check(self.positions in POSITIONS, "positions", self.positions, f"one of {', '.join(POSITIONS)}")
        check(self.evaluations_per_epoch >= 0, "evaluations_per_epoch", self.evaluations_per_epoch, "at least 0")
        for index, phase in enumerate(self.phases):
            field, length = f"phases[{index}].sequence_length", phase.sequence_length
            check(length >= 3, field, length, "at least 3, room for <s>, a token and </s>")
            check(length <= self.model.max_length, field, length, f"at most {self.model.max_length}, model.max_length")
        lengths = self.lengths
        if lengths is not None:
            ascending = len(lengths) > 0 and lengths[0] >= 1 and all(a < b for a, b in itertools.pairwise(lengths))
            check(ascending, "lengths", lengths, "lengths in ascending order")
            longest = max(phase.sequence_length for phase in self.phases)
            check(lengths[-1] >= longest, "lengths", lengths, f"the last to be at least {longest}, a phase's length")
            for phase in self.phases:
                whole = all(n <= phase.sequence_length or n % phase.sequence_length == 0 for n in lengths)
                expected = f"multiples of {phase.sequence_length}, the sequence_length, beyond it"
                check(whole, "lengths", lengths, expected)

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> Self:
        """As in the base class; `task.kind` says what the task's fields are."""
        fields = dict(fields)
        if isinstance(fields.get("task"), Mapping):
            kind, values = build_task(fields["task"])
            fields["task"] = build(kind, values, "task")
        return super().build(fields)

    # What the task decides.

    def how_to_load(self, workdir: Path, model: Path) -> str:
        """As a function of texts."""
        return f"load_task({str(workdir)!r})"

    @property
    def selection(self) -> tuple[str, bool]:
        """The task's metric, the larger the better."""
        return self.task.selection, True

    @property
    def task_model(self) -> LongformerConfig:
        """The model as the task has it, with room for the task's tokens."""
        model = self.task.model(self.model)
        return dataclasses.replace(model, vocab_size=model.vocab_size + len(self.task.added_tokens))

    # Data.

    def completed(self, workdir: Path | None = None) -> Self:
        """With the steps of all epochs, and the intervals of validations and checkpoints."""
        if all(phase.epochs is None for phase in self.phases):
            return self
        train = self._load(workdir, "train")[1]
        phases, interval = [], None
        for phase, features in zip(self.phases, train, strict=True):
            if phase.epochs is not None:
                interval = math.ceil(len(features) / phase.batch_size)
                phase = dataclasses.replace(phase, steps=phase.epochs * interval)
            phases.append(phase)
        intervals = {}
        if self.evaluations_per_epoch and interval:
            every = max(1, interval // self.evaluations_per_epoch)
            intervals = {"eval_interval": every, "checkpoint_interval": every}
        return dataclasses.replace(self, phases=tuple(phases), **intervals)

    @property
    def data_path(self) -> Path:
        """`data.path`; raises InputError where there is none."""
        if self.data.path is None:
            raise InputError("data.path is None; expected where the data is, --config.data.path=PATH")
        path = user_path("data.path", self.data.path)
        check(path.exists(), "data.path", self.data.path, "a file or directory that is there")
        return path

    def tokenizer(self, workdir: Path | None = None) -> "Tokenizer":
        """That of a run's workdir; of a new run, see `TaskDataConfig`. It neither cuts texts nor pads them.

        It knows the task's tokens.
        """
        kept = None if workdir is None else workdir / TOKENIZER
        source = kept if kept is not None and kept.is_file() else self.data.tokenizer or self.init
        tokenizer = load_tokenizer(source) if source is not None else _learn_tokenizer(self)
        tokenizer.add_special_tokens([*self.task.added_tokens])  # those that are not there
        return tokenizer

    def packers(self, tokenizer: "Tokenizer") -> list[Packer]:
        """For each phase the tokenizer and the most tokens of a row; raises InputError unless it fits the model."""
        packers = [Packer.of(tokenizer, phase.sequence_length) for phase in self.phases]
        check_tokenizer(self.model, packers[0], added=len(self.task.added_tokens))
        return packers

    def load_split(self, split: str, phase: int, workdir: Path) -> FeatureSet:
        """The rows of a split as a phase of a run has them."""
        return self._features(split, self.packers(self.tokenizer(workdir))[phase])

    def _features(self, split: str, packer: Packer) -> FeatureSet:
        return load_features(self.task, self.data_path, split, packer, self.data.cache_dir)

    def _load(self, workdir: Path | None, *splits: str) -> tuple[Any, ...]:
        """The tokenizer, and of each split the rows for each phase."""
        path, tokenizer = self.data_path, self.tokenizer(workdir)
        for split in splits:
            self.task.files(path, split)  # which are seen to be there before any is read
        packers = self.packers(tokenizer)
        by_length = {packer.sequence_length: packer for packer in packers}
        loaded = {(split, n): self._features(split, packer) for split in splits for n, packer in by_length.items()}
        return tokenizer, *(tuple(loaded[split, p.sequence_length] for p in packers) for split in splits)

    def load_data(self, workdir: Path | None = None) -> TaskData:
        """The rows of training and validation for each phase.

        Raises:
          InputError: the data or the tokenizer cannot be had, does not fit the task or the model, or the model to begin
            with is another one.
        """
        if workdir is None:
            self.check_init(read_model_config, *KEPT)
            if self.model.attention_mode == "full" and self.model.global_projections:  # no conversion adds them
                self.check_init(read_model_config, "global_projections")
        tokenizer, train, validation = self._load(workdir, "train", "validation")
        lengths = tuple(phase.sequence_length for phase in self.phases)
        return TaskData(tokenizer=tokenizer, train=train, validation=validation, sequence_lengths=lengths)

    def save_data(self, workdir: Path, data: TaskData) -> None:
        """As in the base class; the tokenizer, too, so that the run needs no other directory from then on."""
        with recording(workdir / TOKENIZER) as partial:
            data.tokenizer.save(str(partial))
        super().save_data(workdir, data)

    def phase_lengths(self, phase: int) -> tuple[int, ...]:
        """The lengths to which rows of a phase are padded."""
        return self.lengths or self.task.lengths(self.phases[phase].sequence_length)

    def epochs(self, phase: int, data: TaskData) -> EpochBatches:
        """The order of a phase's rows."""
        return EpochBatches(
            data.train[phase].lengths,
            lengths=self.phase_lengths(phase),
            batch_size=self.phases[phase].batch_size,
            seed=(self.data_seed(phase),),
        )

    def train_batches(
        self, data: TaskData, phase: int, *, start_step: int, process_index: int, process_count: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """The fields of rows `[B / P, length]`, and float32 `weight` `[B / P]`, 0 for rows that only fill up."""
        import grain  # not above, as in data/batches.py

        features, epochs = data.train[phase], self.epochs(phase, data)
        share = self.phases[phase].batch_size // process_count
        mine = slice(process_index * share, (process_index + 1) * share)
        names = [name for name, field in features.fields.items() if field.for_model]
        dtypes = {name: spec.dtype for name, spec in self.batch_spec(phase).items()}  # the tokenizer may have fewer ids

        def batch(step: int) -> dict[str, np.ndarray]:
            plan = epochs.plan(step)
            batch = features.batch(plan.rows[mine], plan.length, names) | {"weight": plan.weights[mine]}
            return {name: array.astype(dtypes[name], copy=False) for name, array in batch.items()}

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.range(start_step, 2**31 - 1).map(batch).to_iter_dataset(options))

    def batch_spec(self, phase: int, length: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of rows of a length; None is the longest."""
        length = length or self.phase_lengths(phase)[-1]
        size = self.phases[phase].batch_size
        ids = "uint16" if self.task_model.vocab_size <= 2**16 else "uint32"
        spec = {
            name: jax.ShapeDtypeStruct((size, field.length or length), ids if name == "input_ids" else field.dtype)
            for name, field in self.task.fields().items()
            if field.for_model
        }
        return spec | {"weight": jax.ShapeDtypeStruct((size,), "float32")}

    def batch_specs(self, phase: int, data: TaskData) -> Mapping[int, Any]:
        """One for each length that batches have."""
        return {length: self.batch_spec(phase, length) for length in self.epochs(phase, data).used_lengths}

    def tokens_at(self, step: int) -> int:
        """How many rows `step` steps have trained on, those that fill up the last batch of an epoch included."""
        rows = 0
        for phase in self.phases:
            steps = min(step, phase.steps)
            rows += steps * phase.batch_size
            step -= steps
        return rows

    # Parameters.

    def init_params(self) -> Any:
        """Parameters from the seed."""
        head = self.task.head(self.task_model)
        return head.init(jax.random.key(self.seed), **self._one_row())["params"]

    def _one_row(self) -> dict[str, Any]:
        """The arguments of the head's call for a row of one token."""
        batch = {
            name: jnp.zeros((1, x.shape[1]), x.dtype) for name, x in self.batch_spec(0, 1).items() if name != "weight"
        }
        return self.task.inputs(batch, self.task_model, self.phases[0].sequence_length)

    def pretrained_params(self) -> Any:
        """The encoder of `init`, converted to `model`, below a head from the seed; None where there is no `init`.

        Raises:
          InputError: the weights cannot be loaded, or are not those of such a model.
        """
        if self.init is None:
            return None
        params = jax.jit(self.init_params)()
        pooled = "pooler" in params["longformer"]
        encoder = load_init(self, functools.partial(Longformer, add_pooling_layer=pooled), self.positions)
        if not self.model.global_projections:
            layers = {name: leaf for name, leaf in encoder["layers"].items() if not name.endswith("_global")}
            encoder = encoder | {"layers": layers}
        _, encoder = resize_vocab(self.model, encoder, self.task_model.vocab_size, seed=self.seed)
        return params | {"longformer": encoder}

    def write_model(self, directory: Path, params: Any, *, phase: int, workdir: Path | None = None) -> None:
        """Writes the model, for transformers, too, where it has such a head, and its tokenizer."""
        self.task.save(directory, self.task_model, params)
        save_tokenizer(directory, self.tokenizer(workdir), self.phases[phase].sequence_length)

    # The compiled step.

    def prepare(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """With weights by which the mean over microbatches of their weighted sums is the mean over all rows."""
        weight = batch["weight"]
        return batch | {"weight": weight * (weight.shape[0] / jnp.maximum(weight.sum(), 1))}

    def loss(
        self, phase: int, params: Any, microbatch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The task's loss of the rows, by their weights."""
        model = self.task_model
        inputs = self.task.inputs(microbatch, model, self.phases[phase].sequence_length)
        head = self.task.head(model)
        output, marks = apply_marked(head, params, **inputs, deterministic=False, rngs={"dropout": key})
        return jnp.sum(self.task.loss(output, microbatch) * microbatch["weight"]), marks

    def flops_per_token(self, phase: int, params: Any, data: TaskData) -> float:
        """Of the encoder for a row, the mean over all rows to train on; padding does not count."""
        lengths, rows = np.unique(data.train[phase].lengths, return_counts=True)
        flops = [n * encoder_flops_per_token(self.task_model, n) for n in lengths.tolist()]
        return float(np.average(flops, weights=rows))

    # Validation.

    def validator(self, phase: int, data: TaskData, batch_size: int, mesh: Mesh) -> "TaskValidator":
        """Loss and metrics of `eval_sequences` validation examples, at equal distances."""
        features = data.validation[phase].some(self.eval_sequences)
        length, lengths = self.phases[phase].sequence_length, self.phase_lengths(phase)
        predictor = Predictor(self.task, self.task_model, length, lengths, batch_size, mesh)
        return TaskValidator(predictor, features)


class TaskValidator:
    """Loss and metrics of a split's examples, by the parameters that it is called with."""

    def __init__(self, predictor: Predictor, features: FeatureSet) -> None:
        self.sees = describe_features(features)
        self._predictor, self._features = predictor, features

    def __call__(self, params: Any) -> dict[str, float]:
        """{"loss": …, the task's metrics}."""
        result = self._predictor(params, self._features, advance=lambda rows: end_if_stopped())
        assert result.loss is not None
        return {"loss": result.loss, **self._predictor.task.score(result.predictions, self._features.examples)}


def _learn_tokenizer(experiment: TaskExperiment) -> "Tokenizer":
    """Byte-level BPE of the training examples' texts."""
    from tokenizers import Tokenizer

    path = experiment.data_path
    files = ((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in experiment.task.files(path, "train"))
    learned = _learned(experiment.task, path, experiment.model.vocab_size, tuple(files))
    return Tokenizer.from_str(learned)


@functools.lru_cache(maxsize=1)  # a run asks for it twice
def _learned(task: Task, path: Path, vocab_size: int, files: tuple[Any, ...]) -> str:
    from longformer_jax.data.tokenizer_training import learn_from_texts

    examples = task.read(path, "train", Counts())
    return learn_from_texts((text for example in examples for text in whole_texts(task, example)), vocab_size).to_str()
