"""What every experiment has: frozen dataclasses, built and validated from an ml_collections ConfigDict.

A kind of experiment is a subclass of `ExperimentConfig` in a file of its own, and a line of `OBJECTIVES`.
"""

import abc
import dataclasses
import glob
import importlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import jax
import numpy as np
from jax.sharding import Mesh

from longformer_jax.errors import InputError
from longformer_jax.files import check_kinds, read_json, user_path, write_text
from longformer_jax.training.parts import MeshConfig, OptimizerConfig, Phase
from longformer_jax.training.serialization import build, check, convert_fields, to_config_dict
from longformer_jax.weights.hub import find_directory

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_log = logging.getLogger(__name__)


class Validator(Protocol):
    """A function of parameters that gives what a validation reports; `sees` says what is looked at, for the log."""

    sees: str

    def __call__(self, params: Any) -> dict[str, float]:
        """Numbers by their names."""
        ...


CONFIG_FILE = "config.json"
# What the directories of `train_seeds` begin with.
SEED_PREFIX = "seed_"
DATA_FILE = "data.json"

# The kinds of experiments, by the name that config.json has as `objective`: module and class.
OBJECTIVES = {
    "char_lm": ("longformer_jax.training.char_lm", "CharLMExperiment"),
    "masked_lm": ("longformer_jax.training.masked_lm", "MaskedLMExperiment"),
    "task": ("longformer_jax.training.task", "TaskExperiment"),
}

# What is to be done about data that are not where they were, by the field of `data` that says where that is.
_MOVED = {
    "path": "if it has moved, say to where by --config.data.path of train.py or --data_path of eval.py",
    "validation_path": (
        "if validation_path has moved, say to where by --config.data.validation_path of train.py, or have eval.py "
        "score all of it by --data"
    ),
}

# Of all phases of a run, as steps are counted in int32.
MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig(abc.ABC):
    """Everything that decides what is trained, and how it is reported; the methods are what the loop asks a kind for.

    Attributes:
      model: the architecture.
      phases: the stages, in order.
      data: where the data comes from.
      init: the weights to begin with, a model's directory or its name on the Hugging Face hub. None: random ones.
      optimizer, mesh: see there.
      seed: of parameters, dropout and the order of the data.
      log_interval: steps between lines of the log.
      eval_interval: steps between validations; 0 is never. There is one at the end, too.
      eval_sequences: how many validation sequences, of the phase's length, are looked at (fewer where there are fewer).
      checkpoint_interval: steps between checkpoints. There is one at the end, too.
      keep_checkpoints: how many of the latest are kept.
      keep_best: whether the parameters with the best validation are kept, too, and are the model that a run leaves.
      patience: how many validations in a row may be no better than the best before the run ends; None never ends it.
    """

    model: Any
    phases: tuple[Phase, ...]
    data: Any
    init: str | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0
    log_interval: int = 100
    eval_interval: int = 1000
    eval_sequences: int = 64
    checkpoint_interval: int = 1000
    keep_checkpoints: int = 2
    keep_best: bool = False
    patience: int | None = None

    # The kind's name in OBJECTIVES.
    objective: ClassVar[str]
    # The model, as `load_pretrained` takes it.
    model_class: ClassVar[str]
    # What a token is called, in full and in the log.
    unit: ClassVar[str] = "tokens"
    unit_symbol: ClassVar[str] = "tok"
    # What the length of a sequence is counted in, where that is something else.
    sequence_unit: ClassVar[str | None] = None
    # The loss as it is reported: its key, its name in full, and what the loss is divided by to get it.
    score: ClassVar[str] = "bpc"
    score_name: ClassVar[str] = "bits per token"
    score_scale: ClassVar[float] = math.log(2)

    def __post_init__(self) -> None:
        convert_fields(self)
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
        check(self.seed < 2**32, "seed", self.seed, "below 2**32")
        check(self.total_steps <= MAX_STEPS, "phases", f"of {self.total_steps} steps", "fewer than 2**31")
        warmup = self.optimizer.warmup_steps
        for index, phase in enumerate(self.phases):
            expected = f"less than the {phase.steps} steps of phases[{index}]"
            fits = warmup is None or not phase.steps or warmup < phase.steps
            check(fits, "optimizer.warmup_steps", warmup, expected)
        check(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1")
        selects = self.keep_best or self.patience is not None
        check(
            not selects or self.eval_interval > 0, "eval_interval", self.eval_interval, "at least 1, to find the best"
        )

    # What a kind of experiment is.

    def completed(self, workdir: Path | None = None) -> Self:
        """The configuration with what follows from the data, such as the steps of an epoch, for a run in `workdir`."""
        return self

    @abc.abstractmethod
    def load_data(self, workdir: Path | None = None) -> Any:
        """The data: anything with a `name` and a `fingerprint`, a digest of its content.

        Args:
          workdir: of a run that goes on or is evaluated, for what `save_data` has put there; None is a new run.

        Raises:
          InputError: the data cannot be had, or does not fit the experiment.
        """

    @abc.abstractmethod
    def train_batches(
        self, data: Any, phase: int, *, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Any]:
        """This process's part of the batches of a phase, from one of its steps on: trees of arrays `[B / P, …]`."""

    def data_seed(self, phase: int) -> int:
        """Of the order of a phase's data: each has an order of its own, else all would begin with the same."""
        return int(np.random.SeedSequence([self.seed, phase]).generate_state(1)[0]) if phase else self.seed

    def phase_lengths(self, phase: int) -> tuple[int, ...]:
        """The lengths of a phase's sequences, in ascending order."""
        return (self.phases[phase].sequence_length,)

    @abc.abstractmethod
    def batch_spec(self, phase: int) -> Any:
        """The shapes and dtypes of a batch of a phase, over all processes: a tree of arrays `[B, …]`."""

    def batch_specs(self, phase: int, data: Any) -> Mapping[int, Any]:
        """The `batch_spec` for each length that a batch's sequences may have; only some kinds have more than one."""
        return {self.phases[phase].sequence_length: self.batch_spec(phase)}

    @abc.abstractmethod
    def init_params(self) -> Any:
        """Parameters from the seed, float32; traced."""

    def pretrained_params(self) -> Any:
        """The parameters to begin with, arrays on the host; None where `init_params` makes them."""
        return None

    def prepare(self, batch: Any, key: jax.Array) -> Any:
        """Makes what `loss` takes of a whole batch, a tree of arrays `[A, B / A, …]`; traced, in the step.

        Microbatch a has the rows a, a + A, a + 2A, … of the batch.
        """
        return batch

    @abc.abstractmethod
    def loss(self, phase: int, params: Any, microbatch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A scalar, whose mean over the microbatches, trees of arrays `[B / A, …]`, is minimised; traced.

        And beside it the marks of `apply_marked`.
        """

    @abc.abstractmethod
    def validator(self, phase: int, data: Any, batch_size: int, mesh: Mesh) -> Validator:
        """A function of parameters that gives what a validation reports, the `score` first."""

    @property
    def selection(self) -> tuple[str, bool]:
        """What a validation reports that tells the best one, and whether the largest is; usually the smallest score."""
        return self.score, False

    @abc.abstractmethod
    def flops_per_token(self, phase: int, params: Any, data: Any) -> float:
        """Model FLOPs of training for each token, or whatever else `unit` is."""

    @abc.abstractmethod
    def write_model(self, directory: Path, params: Any, *, phase: int, workdir: Path | None = None) -> None:
        """Writes a model, for `load_pretrained`.

        Args:
          directory: a new or empty one.
          params: such as this experiment trains.
          phase: the last one that they were trained in.
          workdir: of their run.
        """

    # What they have in common.

    def how_to_load(self, workdir: Path, model: Path) -> str:
        """The call that loads the model that a run has left in the directory `model`."""
        return f"load_pretrained({str(model)!r}, {self.model_class})"

    @property
    def validates_first(self) -> bool:
        """Whether there is a validation before training, too."""
        return self.init is not None

    def check_init(self, read: Callable[[Path], Any], *fields: str) -> None:
        """Raises InputError unless `read` finds, in the directory of `init`, a model with these fields of `model`."""
        if self.init is None:
            return
        try:
            found = read(find_directory(self.init))
        except InputError as error:
            raise InputError(f"init is {self.init!r}, which cannot be read: {error}") from None
        self.check_init_fields(found, *fields)

    def check_init_fields(self, found: Any, *fields: str) -> None:
        """Raises InputError unless the configuration of `init` has these fields of `model`."""
        for field in fields:
            value, expected = getattr(found, field), getattr(self.model, field)
            if value != expected:
                raise InputError(
                    f"init is {self.init!r}, whose {field} is {value!r}; expected {expected!r}, model.{field}"
                )

    # What follows from the phases.

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def cooldown_steps(self) -> int:
        """How many of the last steps cool down."""
        return round(self.optimizer.cooldown_fraction * self.total_steps)

    def phase_at(self, step: int) -> int:
        """The index of the phase that takes the step after `step` finished ones (the last, when all are finished)."""
        end = 0
        for index, phase in enumerate(self.phases):
            end += phase.steps
            if step < end:
                return index
        return len(self.phases) - 1

    def last_phase(self, step: int) -> int:
        """The index of the phase that took the last of `step` finished steps (the first, when none is finished)."""
        return self.phase_at(max(step - 1, 0))

    def tokens_at(self, step: int) -> int:
        """How many tokens `step` steps have trained on."""
        tokens = 0
        for phase in self.phases:
            steps = min(step, phase.steps)
            tokens += steps * phase.batch_size * phase.sequence_length
            step -= steps
        return tokens

    # To and from files.

    def save_data(self, workdir: Path, data: Any) -> None:
        """Writes what `open_data` tells the data by."""
        told = {"name": data.name, "fingerprint": data.fingerprint, "parts": data.parts}
        write_text(workdir / DATA_FILE, json.dumps(told) + "\n")

    def open_data(self, workdir: Path, data_path: str | Path | None = None) -> Any:
        """The data of a run that goes on or is evaluated.

        Args:
          workdir: of the run.
          data_path: where the data is now, if not at `data.path`.

        Raises:
          InputError: where `load_data` does, or the content is another one than when the run began. Where data.json is
            missing, that is not known, and a warning in the log says so.
        """
        if data_path is not None:
            moved = dataclasses.replace(self.data, path=str(user_path("data_path", data_path)))
            return dataclasses.replace(self, data=moved).open_data(workdir)
        try:
            data = self.load_data(workdir)
        except InputError as error:
            hints = [hint for field, hint in _MOVED.items() if _is_gone(field, getattr(self.data, field, None))]
            if not hints:
                raise
            raise InputError(f"{error} ({'; '.join(hints)})") from None
        path = workdir / DATA_FILE
        check_kinds(path)
        if not path.exists():  # a run of an earlier version has none
            _log.warning("%s is missing; whether the data are those that the run began with is not checked", path)
            return data
        told = read_json(path)
        began_with, parts = told.get("fingerprint"), told.get("parts", {})
        if not isinstance(began_with, str) or not isinstance(parts, dict):
            raise InputError(f"{path} is damaged; expected it as train.py has written it")
        # Phases may have come that need other parts; a run of an earlier version has told of none.
        shared = parts.keys() & data.parts.keys()
        same = all(parts[name] == data.parts[name] for name in shared) if shared else began_with == data.fingerprint
        if not same:
            raise InputError(
                f"data is {data.name}, which has changed since the run in {str(workdir)!r} began; expected the same "
                f"content ({_MOVED['path']}), or another workdir"
            )
        return data

    def to_config_dict(self) -> "ConfigDict":
        """The inverse of `from_config_dict`: what a file of configs/ returns, with every field open to overriding."""
        config = to_config_dict(self)
        config.objective = self.objective
        return config

    @classmethod
    def from_config_dict(cls, config: "ConfigDict") -> Self:
        """Validates a ConfigDict after flags have overridden its fields; raises InputError where `from_dict` does."""
        check(hasattr(config, "copy_and_resolve_references"), "config", config, "a ConfigDict")
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
        check(isinstance(values, Mapping), "config", values, "a mapping")
        fields = dict(values)
        kind = _kind(fields.pop("objective", "char_lm"))
        check(issubclass(kind, cls), "objective", kind.objective, getattr(cls, "objective", ""))
        phases = fields.get("phases")
        if not isinstance(phases, list | tuple) or not phases:
            raise InputError(f"phases is {phases!r}; expected a list of at least one phase")
        return kind.build(fields)  # pyrefly: ignore[bad-return]

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> Self:
        """`from_dict` for one kind of experiment."""
        return build(cls, fields, "")

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, in types that JSON has."""
        return {"objective": self.objective} | json.loads(json.dumps(dataclasses.asdict(self)))

    def save(self, workdir: Path) -> None:
        """Writes config.json, all of it or nothing."""
        write_text(workdir / CONFIG_FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, workdir: str | Path) -> Self:
        """Reads config.json of a workdir; raises InputError where it is missing, is not JSON or does not validate."""
        path = user_path("workdir", workdir) / CONFIG_FILE
        if not path.is_file():
            if runs := runs_of_seeds(path.parent):
                raise InputError(
                    f"workdir is {str(workdir)!r}, which holds several runs; expected one of them, such as "
                    f"{str(runs[0])!r}"
                )
            raise InputError(
                f"workdir is {str(workdir)!r}, which has no {CONFIG_FILE}; expected one train.py has written"
            )
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def runs_of_seeds(workdir: Path) -> list[Path]:
    """The runs that `train_seeds` has left in a directory, by their seed."""
    numbers = {path: path.name.removeprefix(SEED_PREFIX) for path in workdir.glob(f"{SEED_PREFIX}*") if path.is_dir()}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


def _is_gone(field: str, path: str | None) -> bool:
    """Whether a field of `data` names a file, a directory or a pattern of which there is none."""
    if path is None:
        return False
    place = user_path(f"data.{field}", path)
    return not place.exists() and not glob.glob(str(place), recursive=True)


def _kind(objective: object) -> type[ExperimentConfig]:
    check(objective in [*OBJECTIVES], "objective", objective, f"one of {', '.join(OBJECTIVES)}")
    module, name = OBJECTIVES[str(objective)]
    return getattr(importlib.import_module(module), name)
