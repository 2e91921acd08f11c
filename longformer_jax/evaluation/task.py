"""Fine-tuned models: scored on a split or on a file of one's own, and asked for answers."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from longformer_jax.errors import InputError
from longformer_jax.evaluation.own_data import check_own_data
from longformer_jax.files import check_output, user_path
from longformer_jax.integers import check_integer
from longformer_jax.settings import pinned
from longformer_jax.tasks import Example, Task
from longformer_jax.tasks.features import FeatureSet, make_features
from longformer_jax.training import TaskExperiment
from longformer_jax.training.prediction import Predictions, Predictor
from longformer_jax.training.sharding import evaluation_mesh, replicated
from longformer_jax.training.task import describe_features
from longformer_jax.training.workdir import restore_chosen

# What a model answers: a text, or a question about one, {"question": …, "text": …}.
Text = str | Mapping[str, str]

_BATCH_SIZE = 8

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      split: what was asked for; of a file of one's own, its name.
      step: of the checkpoint.
      metrics: the task's, by their names; none where the file has no labels.
      what: how many examples there were, and how many were cut or dropped.
      seconds: wall time, compilation included.
    """

    split: str
    step: int
    metrics: dict[str, float]
    what: str
    seconds: float = math.nan

    def __str__(self) -> str:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in self.metrics.items()) or "no labels to score"
        return f"{self.split}, step {self.step:,}: {numbers}  ({self.what}, {self.seconds:.1f} s)"


class TaskModel:
    """A fine-tuned model; calling it with texts gives predictions. `load_task` makes it."""

    def __init__(self, experiment: TaskExperiment, workdir: Path, step: int | None, batch_size: int) -> None:
        check_integer("batch_size", batch_size)
        self.step, params = restore_chosen(workdir, step)
        phase = experiment.last_phase(self.step)
        # Whatever the training ran on, these devices may be others.
        model = dataclasses.replace(experiment.task_model, remat=False, implementation=None)
        length, lengths = experiment.phases[phase].sequence_length, experiment.phase_lengths(phase)
        mesh = evaluation_mesh(experiment.mesh, lengths)
        self._params = jax.device_put(params, replicated(mesh))
        self._packer = experiment.packers(experiment.tokenizer(workdir))[phase]
        self._predictor = Predictor(experiment.task, model, length, lengths, batch_size, mesh)

    @property
    def task(self) -> Task:
        """The task, which says what a prediction is."""
        return self._predictor.task

    def __call__(self, texts: Text | Iterable[Text]) -> list[Any]:
        """Predictions for texts, JSON values such as {"label": …, "scores": {…}}; see the task's `decode`.

        Args:
          texts: one or several; each a string or, where the task answers questions, {"question": …, "text": …}.

        Raises:
          InputError: a text is empty, or not what the task answers.
        """
        several = [texts] if isinstance(texts, str | Mapping) else list(texts)
        return self.predict([self._example(text, f"text {i}") for i, text in enumerate(several, start=1)])

    def _example(self, text: Text, name: str) -> Example:
        if isinstance(text, str):
            return self.task.from_text(text, name)
        keys = {"question", "text"}
        if not isinstance(text, Mapping) or text.keys() != keys or not all(isinstance(text[k], str) for k in keys):
            raise InputError(f'{name} is {text!r:.80}; expected a text, or {{"question": a text, "text": a text}}')
        return self.task.from_question(text["question"], text["text"], name)

    def predict(self, examples: Sequence[Example]) -> list[Any]:
        """Predictions for examples, such as the task reads; the log says what was cut or dropped of them."""
        if not examples:
            return []
        features = self.features(examples)
        for line in self.cuts(features):
            _log.warning("%s", line)
        return self.score(features, labelled=False).predictions

    def features(self, examples: Sequence[Example], name: str = "texts") -> FeatureSet:
        """Examples as the model takes them."""
        return make_features(self.task, examples, self._packer, name)

    def cuts(self, features: FeatureSet) -> list[str]:
        """Of how many examples something was cut or dropped, a line for each reason."""
        counts = sorted(features.counts.items())
        return [f"{count:,} of {features.size:,} {self.task.unit} {reason}" for reason, count in counts]

    @pinned()
    def score(self, features: FeatureSet, labelled: bool, progress: bool = False) -> Predictions:
        """Predictions for features, and their loss."""
        with tqdm(total=len(features), unit="row", disable=None if progress else True, desc=features.name) as bar:
            return self._predictor(self._params, features, labelled, bar.update)


@pinned()
def load_task(workdir: str | Path, *, step: int | None = None, batch_size: int = _BATCH_SIZE) -> TaskModel:
    """The fine-tuned model of a run, finished or not, as a function of texts.

    Args:
      workdir: of the run.
      step: which checkpoint; None is the best, where the run keeps that, else the latest.
      batch_size: texts of the full length at once; of shorter ones more.

    Raises:
      InputError: the workdir holds no run, one of another kind, or no such checkpoint; or it is damaged.
    """
    return TaskModel(TaskExperiment.load(workdir), user_path("workdir", workdir), step, batch_size)


def evaluate(
    workdir: str | Path,
    *,
    data: str | None = None,
    data_path: str | None = None,
    split: str | None = None,
    predictions: str | Path | None = None,
    step: int | None = None,
    batch_size: int = _BATCH_SIZE,
    limit: int | None = None,
) -> Result:
    """Scores a fine-tuned model by the metrics of its task.

    Args:
      workdir: of the run.
      data: a file of one's own, of a form that the task reads, labelled or not; None is a split of the run's data.
      data_path: where the run's data is now, if it has moved since.
      split: of the run's data; None is "test", or "validation" where there is no test.
      predictions: a file for the predictions, in the task's official format.
      step: which checkpoint; None is the best, where the run keeps that, else the latest.
      batch_size: rows of the full length at once; of shorter ones more.
      limit: only so many examples, at equal distances; None is all.

    Raises:
      InputError: an argument, the workdir or the data does not fit; before anything compiles.
    """
    if limit is not None:
        check_integer("limit", limit)
    check_own_data(data, data_path=data_path, split=split)
    file = None if predictions is None else user_path("predictions", predictions)
    if file is not None:
        check_output("predictions", file)
    config = TaskExperiment.load(workdir)
    directory = user_path("workdir", workdir)
    model = TaskModel(config, directory, step, batch_size)
    if data is None:
        if data_path is not None:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=data_path))
        name = split or _default_split(config)
        what, features = f"split is {name!r}", _load_split(config, directory, name, config.last_phase(model.step))
    else:
        path = user_path("data", data)
        name = path.name
        what, features = f"data is {data!r}", model.features(list(config.task.read_own(path)), name)
    known = [config.task.is_labelled(example) for example in features.examples]
    labelled = all(known)
    if any(known) and not labelled:
        raise InputError(
            f"{what}, of which {known.count(False):,} of {len(known):,} have no label; expected labels in all of them, "
            "or in none"
        )
    if not labelled and predictions is None:
        raise InputError(f"{what}, which has no labels; expected labels, or --predictions=FILE for answers")
    if limit is not None:
        features = features.some(limit)
    began = time.perf_counter()
    found = model.score(features, labelled, progress=True)
    metrics = {}
    if labelled:
        assert found.loss is not None
        metrics = config.task.score(found.predictions, features.examples) | {"loss": found.loss}
    if file is not None:
        config.task.write_predictions(file, found.predictions, features.examples)
    seconds = time.perf_counter() - began
    return Result(name, model.step, metrics, describe_features(features), seconds)


def _default_split(config: TaskExperiment) -> str:
    """The task's, or validation where there is none."""
    split = config.task.default_split
    if split not in config.task.splits:
        return "validation"
    try:
        config.task.files(config.data_path, split)
    except InputError:
        return "validation"
    return split


def _load_split(config: TaskExperiment, workdir: Path, split: str, phase: int) -> FeatureSet:
    """The rows of a split; those that the run was trained with are seen to be the same as then."""
    config.task.check_split(split)
    if split not in ("train", "validation"):
        return config.load_split(split, phase, workdir)
    return getattr(config.open_data(workdir), split)[phase]
