"""The parts that the configuration of every experiment has: phases, optimizer and mesh."""

import dataclasses
import math
import re
from typing import ClassVar

from longformer_jax.training.serialization import check, convert_fields

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("constant", "linear", "cosine", "polynomial")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of training.

    Attributes:
      sequence_length: tokens of a sequence (characters are the tokens of a character LM).
      learning_rate: the rate that the phase warms up to.
      batch_size: sequences of an optimizer step, over all devices.
      steps: optimizer steps.
      sequences_per_device: the most that a device takes at once; gradients are accumulated over the rest of the batch.
        None: the whole batch at once.
    """

    sequence_length: int
    learning_rate: float
    batch_size: int
    steps: int
    sequences_per_device: int | None = None

    # A kind of phase whose steps may follow from the data takes 0 of them, too.
    least_steps: ClassVar[int] = 1

    @property
    def extent(self) -> tuple[str, int]:
        """The field that says how long the phase is, and what it says."""
        return "steps", self.steps

    def __post_init__(self) -> None:
        convert_fields(self)
        least = {"sequence_length": 1, "batch_size": 1, "steps": self.least_steps, "sequences_per_device": 1}
        for field, minimum in least.items():
            value = getattr(self, field)
            check(value is None or value >= minimum, field, value, f"at least {minimum}")
        expected = f"fewer than 2**31 tokens a step, of sequences of {self.sequence_length}"
        check(self.batch_size * self.sequence_length < 2**31, "batch_size", self.batch_size, expected)
        check(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a positive number")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the shape of the learning rate; the defaults are the paper's (appendix B) or Adam's.

    Attributes:
      name: "adamw", or "muon" (Jordan 2024) for the kernels of the layers, with AdamW for the rest.
      b1, b2, eps: Adam's.
      muon_factor: by how much the rate of Muon's kernels is larger than that of the rest, which is what is logged.
      muon_momentum: Muon's.
      weight_decay: decoupled, that is times the rate, of Muon's kernels theirs; on matrices, embeddings among them, and
        not on biases and scales.
      clip_norm: the largest global norm of the gradient; None does not clip.
      warmup_steps: how many steps of a phase warm up linearly. None: the part `warmup_fraction` of its steps, but at
        most `max_warmup_steps`.
      decay: how the rate moves after the warm-up, "constant", "linear", "cosine" or "polynomial", to `final_fraction`
        of it at the end of the phase.
      power: of the polynomial, the exponent of the part of the steps that is left.
      cooldown_fraction: in the last part of the whole run's steps the rate falls linearly, too, to zero at its end.
      head_factor: by how much the rate of what is on top of an encoder is larger than the encoder's.
      train_only: a regular expression; only parameters with a match in their path, such as
        "longformer/position_embeddings/embedding", are trained. None: all.
      max_skipped_steps: how many steps in a row may be skipped as their loss or gradient is not finite: parameters and
        the optimizer's moments stay, while the schedule goes on. One more ends the run. 0: the first one does.
    """

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    muon_factor: float = 4.0
    muon_momentum: float = 0.95
    weight_decay: float = 0.01
    clip_norm: float | None = 0.25
    warmup_steps: int | None = None
    warmup_fraction: float = 0.1
    max_warmup_steps: int = 10_000
    decay: str = "constant"
    final_fraction: float = 0.0
    power: float = 1.0
    cooldown_fraction: float = 0.0
    head_factor: float = 1.0
    train_only: str | None = None
    max_skipped_steps: int = 0

    def __post_init__(self) -> None:
        convert_fields(self)
        check(self.name in OPTIMIZERS, "name", self.name, f"one of {', '.join(OPTIMIZERS)}")
        for field in ("b1", "b2", "muon_momentum", "warmup_fraction"):
            value = getattr(self, field)
            check(0 <= value < 1, field, value, "a number of at least 0 and below 1")
        for field in ("eps", "muon_factor", "clip_norm", "power", "head_factor"):
            value = getattr(self, field)
            check(value is None or 0 < value < math.inf, field, value, "a positive number")
        for field in ("weight_decay", "warmup_steps", "max_warmup_steps", "max_skipped_steps"):
            value = getattr(self, field)
            check(value is None or 0 <= value < math.inf, field, value, "at least 0")
        check(self.decay in DECAYS, "decay", self.decay, f"one of {', '.join(DECAYS)}")
        for field in ("final_fraction", "cooldown_fraction"):
            value = getattr(self, field)
            check(0 <= value <= 1, field, value, "a number from 0 to 1")
        try:
            re.compile(self.train_only or "")
        except re.error as error:
            check(False, "train_only", self.train_only, f"a regular expression ({error})")

    def warmup(self, steps: int) -> int:
        """How many steps warm up in a phase with so many steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(int(self.warmup_fraction * steps), self.max_warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged; one number may be -1, for all that remain.

    Attributes:
      data, fsdp: the batch is split over both, parameters over `fsdp`.
      sequence: over how many devices each sequence is split.
      tensor: over how many devices the heads and the feed-forward layers are split.
    """

    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        convert_fields(self)
        rest = None
        for field, value in self.sizes.items():
            check(value == -1 or value >= 1, field, value, "at least 1, or -1 for the devices that remain")
            if value == -1:
                check(rest is None, field, -1, f"a number, as {rest} is -1 too")
                rest = field

    @property
    def sizes(self) -> dict[str, int]:
        """The axes in the order of the mesh: neighbouring devices have parts of one layer, or of one sequence."""
        return dataclasses.asdict(self)
