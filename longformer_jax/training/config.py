"""What an experiment is: frozen dataclasses, built and validated from an ml_collections ConfigDict."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from longformer_jax.data import Corpus, check_vocab, load_corpus
from longformer_jax.errors import InputError
from longformer_jax.models import CharLMConfig
from longformer_jax.training.serialization import build, check, to_config_dict

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG_FILE = "config.json"

DECAYS = ("constant", "linear", "cosine")

# What may differ when a workdir is resumed: nothing here changes what is learnt, but for the dropout masks, which
# follow from how a batch is cut.
_HARMLESS = re.compile(
    r"(log|eval|checkpoint)_interval|eval_sequences|keep_checkpoints|mesh\..*|data\.data_dir"
    r"|model\.(implementation|remat)|phases\[\d+\]\.sequences_per_device"
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

    def load(self) -> Corpus:
        """The corpus; raises InputError where `load_corpus` does."""
        source = self.source or ("text_file" if self.path else "tiny_shakespeare")
        return load_corpus(source, path=self.path, data_dir=self.data_dir, split=self.split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of training (paper, section 4.2): later ones see longer sequences through wider windows.

    Attributes:
      sequence_length: characters of a sequence.
      windows: how many preceding characters each layer sees, in steps of the layer's dilation, bottom layer first.
      learning_rate: the rate that the phase warms up to.
      batch_size: sequences of an optimizer step, over all devices.
      steps: optimizer steps.
      sequences_per_device: the most that a device takes at once; gradients are accumulated over the rest of the batch.
        None: the whole batch at once.
    """

    sequence_length: int
    windows: tuple[int, ...]
    learning_rate: float
    batch_size: int
    steps: int
    sequences_per_device: int | None = None

    def __post_init__(self) -> None:
        for field in ("sequence_length", "batch_size", "steps", "sequences_per_device"):
            value = getattr(self, field)
            check(value is None or value >= 1, field, value, "at least 1")
        check(0 < self.learning_rate < float("inf"), "learning_rate", self.learning_rate, "a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the shape of the learning rate within a phase; the defaults are the paper's (appendix B) or Adam's.

    Attributes:
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on kernels and embeddings only.
      clip_norm: the largest global norm of the gradient.
      warmup_fraction: the part of a phase's steps with a linear warm-up, of at most `max_warmup_steps`.
      decay: how the rate moves after the warm-up, "constant", "linear" or "cosine", to `final_fraction` of it.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 0.25
    warmup_fraction: float = 0.1
    max_warmup_steps: int = 10_000
    decay: str = "constant"
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        for field in ("b1", "b2", "warmup_fraction"):
            value = getattr(self, field)
            check(0 <= value < 1, field, value, "a number of at least 0 and below 1")
        for field in ("eps", "clip_norm"):
            value = getattr(self, field)
            check(value > 0, field, value, "a positive number")
        for field in ("weight_decay", "max_warmup_steps"):
            value = getattr(self, field)
            check(value >= 0, field, value, "at least 0")
        check(self.decay in DECAYS, "decay", self.decay, f"one of {', '.join(DECAYS)}")
        check(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "a number from 0 to 1")

    def warmup_steps(self, steps: int) -> int:
        """Of a phase with so many steps."""
        return min(int(self.warmup_fraction * steps), self.max_warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged: the batch is split over both axes, parameters over `fsdp`; -1 is all the rest."""

    data: int = -1
    fsdp: int = 1

    def __post_init__(self) -> None:
        for field in ("data", "fsdp"):
            value = getattr(self, field)
            check(value == -1 or value >= 1, field, value, "at least 1, or -1 for the devices that remain")
        check((self.data, self.fsdp) != (-1, -1), "data", -1, "a number, as fsdp is -1 too")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that decides what is trained, and how it is reported.

    Attributes:
      model: the architecture. Its windows are set to those of the first phase; `model_in_phase` gives the others.
      phases: the stages, in order.
      data, optimizer, mesh: see there.
      seed: of parameters, dropout and the order of the text.
      log_interval: steps between lines of the log.
      eval_interval: steps between validations; 0 is never. There is one at the end, too.
      eval_sequences: how many validation sequences, of the phase's length, are looked at (fewer where there are fewer).
      checkpoint_interval: steps between checkpoints. There is one at the end, too.
      keep_checkpoints: how many of the latest are kept.
    """

    model: CharLMConfig
    phases: tuple[Phase, ...]
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    log_interval: int = 100
    eval_interval: int = 1000
    eval_sequences: int = 64
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        check(len(self.phases) > 0, "phases", self.phases, "at least one phase")
        for field, minimum in (
            ("seed", 0),
            ("log_interval", 1),
            ("eval_interval", 0),
            ("eval_sequences", 1),
            ("checkpoint_interval", 1),
            ("keep_checkpoints", 1),
        ):
            value = getattr(self, field)
            check(value >= minimum, field, value, f"at least {minimum}")
        for index in range(len(self.phases)):
            try:
                self.model_in_phase(index)
            except InputError as error:
                raise InputError(f"phases[{index}].{error}") from None
        object.__setattr__(self, "model", self.model_in_phase(0))

    def model_in_phase(self, index: int) -> CharLMConfig:
        """The model as phase `index` runs it: the same parameters behind the phase's windows."""
        return dataclasses.replace(self.model, windows=self.phases[index].windows)

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> int:
        """The index of the phase that takes the step after `step` finished ones (the last, when all are finished)."""
        end = 0
        for index, phase in enumerate(self.phases):
            end += phase.steps
            if step < end:
                return index
        return len(self.phases) - 1

    def characters_at(self, step: int) -> int:
        """How many characters `step` steps have trained on."""
        characters = 0
        for phase in self.phases:
            steps = min(step, phase.steps)
            characters += steps * phase.batch_size * phase.sequence_length
            step -= steps
        return characters

    def load_corpus(self) -> Corpus:
        """The corpus, with every split long enough for every phase and its token ids known to the model.

        Raises:
          InputError: where `load_corpus` does; a split is shorter than a phase's sequence and its last target; or a
            token id does not fit the model's vocabulary.
        """
        corpus = self.data.load()
        for split in ("train", "validation") if self.eval_interval else ("train",):
            size = len(corpus.split(split))
            for index, phase in enumerate(self.phases):
                check(
                    phase.sequence_length < size,
                    f"phases[{index}].sequence_length",
                    phase.sequence_length,
                    f"less than the {size:,} characters of the {split} split of {corpus.name}",
                )
        check_vocab(corpus, self.model.vocab_size)
        return corpus

    def to_config_dict(self) -> "ConfigDict":
        """The inverse of `from_config_dict`: what a file of configs/ returns, with every field open to overriding."""
        config = to_config_dict(self)
        del config.model.windows
        return config

    @classmethod
    def from_config_dict(cls, config: "ConfigDict") -> Self:
        """Validates a ConfigDict after flags have overridden its fields; raises InputError where `from_dict` does."""
        try:
            return cls.from_dict(json.loads(config.copy_and_resolve_references().to_json()))
        except TypeError as error:
            raise InputError(f"config holds a value that is no number, text, list or mapping: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the configuration from nested mappings and lists, the form of config.json.

        Raises:
          InputError: an unknown or missing key, a value of the wrong type, or one that cannot be; the field is named by
            its path, such as `phases[2].windows`.
        """
        phases, model = values.get("phases"), values.get("model")
        if not isinstance(phases, list | tuple) or not phases:
            raise InputError(f"phases is {phases!r}; expected a list of at least one phase")
        if not isinstance(model, Mapping):
            raise InputError(f"model is {model!r}; expected a mapping")
        if "windows" in model:
            raise InputError(f"model.windows is {model['windows']!r}; expected no such key, as phases have the windows")
        return build(cls, values, "")

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, in types that JSON has."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["model"]["windows"]
        return values

    def save(self, workdir: Path) -> None:
        """Writes config.json, all of it or nothing."""
        partial = workdir / f"{CONFIG_FILE}.partial"
        partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        partial.replace(workdir / CONFIG_FILE)

    @classmethod
    def load(cls, workdir: str | Path) -> Self:
        """Reads config.json of a workdir; raises InputError where it is missing, is not JSON or does not validate."""
        path = Path(workdir) / CONFIG_FILE
        if not path.is_file():
            raise InputError(
                f"workdir is {str(workdir)!r}, which has no {CONFIG_FILE}; expected one train.py has written"
            )
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}); expected it as train.py has written it") from None
        check(isinstance(values, dict), str(path), values, "a mapping")
        return cls.from_dict(values)

    def check_resumes(self, previous: Self) -> None:
        """Raises InputError, naming the fields, if continuing a run of `previous` under this would mix two experiments.

        Intervals, the mesh and the like may change, and the last phase may get more steps where its learning rate does
        not depend on their number: without decay, and with a warm-up of the same length.
        """
        old, new = _flatten(previous.to_dict()), _flatten(self.to_dict())
        last_steps = f"phases[{len(previous.phases) - 1}].steps"
        may_extend = (
            len(self.phases) == len(previous.phases)
            and self.phases[-1].steps > previous.phases[-1].steps
            and self.optimizer.decay == "constant"
            and len({config.optimizer.warmup_steps(config.phases[-1].steps) for config in (self, previous)}) == 1
        )
        changed = [
            f"{field} ({old.get(field)!r}, now {new.get(field)!r})"
            for field in sorted(old.keys() | new.keys())
            if old.get(field) != new.get(field)
            and not _HARMLESS.fullmatch(field)
            and not (field == last_steps and may_extend)
        ]
        if changed:
            raise InputError(
                f"the workdir holds a run of another configuration: {', '.join(changed)} changed; "
                "expected the same configuration or another workdir"
            )


def _flatten(value: object, path: str = "") -> dict[str, object]:
    """{"phases[0].steps": 10, …}"""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in _flatten(item, key).items()}
