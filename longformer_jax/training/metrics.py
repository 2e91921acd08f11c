"""Where the numbers go: a line on the terminal, metrics.jsonl, TensorBoard, and the curve at the end."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
from tqdm import tqdm

from longformer_jax.errors import InputError
from longformer_jax.files import naming, parse_json, replacing, write_text

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "curve.png"
BOARD_DIRECTORY = "tensorboard"
# What is scored, in the order of the curves.
_SCORED = ("train", "validation")

try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute]
    from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]

    _HAS_TENSORBOARD = True
except ImportError:  # an optional extra
    _HAS_TENSORBOARD = False


class MetricsLog:
    """Writes what is measured, in the first process only; a context manager.

    metrics.jsonl has one JSON object a line: `split` ("train" or "validation"), `step`, `characters` or `tokens`
    (trained on so far), `bpc` or another score, and for "train" the rest of the line on the terminal. A run that stops
    or ends with skipped steps leaves their number in a line of the split "skipped", which has no score.
    """

    def __init__(self, workdir: Path, *, step: int, total_steps: int, numbers: Sequence[str] = ()) -> None:
        """Continues the log of `workdir` after `step`: what an interrupted run had logged beyond it is dropped.

        Raises:
          InputError: as `read_metrics` of these `numbers`.
        """
        self._writes = jax.process_index() == 0
        # The bar is for people only: what is piped to a file has the lines alone.
        show = self._writes and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=step, disable=not show, dynamic_ncols=True, unit="step")
        if self._writes:
            path = workdir / METRICS_FILE
            kept = [record for record in read_metrics(path, numbers) if step and record["step"] <= step]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)
            self._file = path.open("a", buffering=1, encoding="utf-8")
            self._board = _TensorBoard(workdir / BOARD_DIRECTORY, step + 1 if step else 0) if _HAS_TENSORBOARD else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        if self._writes:
            self._file.close()
            if self._board:
                self._board.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._bar.update(step - self._bar.n)

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self._writes:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def write(self, split: str, step: int, values: dict[str, Any]) -> None:
        """Records numbers of a split after `step` steps."""
        if self._writes:
            with naming(Path(self._file.name)):
                self._file.write(json.dumps({"split": split, "step": step, **values}) + "\n")
            if self._board:
                self._board.write(step, {f"{split}/{name}": value for name, value in values.items()})


class _TensorBoard:
    """An event file, written where and when it is asked for: tensorboardX's own writer does so in a thread, which the
    first full disk ends, and from then on it waits for the thread.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        """Hides what earlier files have of `first_step` and later steps."""
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._events = EventsWriter(str(directory / "events"))
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._write(step, summary=Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]))

    def _write(self, step: int, **content: Any) -> None:
        with naming(self._directory):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            self._events.flush()

    def close(self) -> None:
        self._events.close()


def read_metrics(path: Path, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, without a last line that a killed run left unfinished; [] where there is none.

    Raises:
      InputError: a line is not a record, or one of `numbers` is none in it, where it has a score.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            record = parse_json(line, f"line {number} of {path}")
            expected = numbers if record.get("split") in _SCORED else ()
            wrong = [name for name in expected if type(record.get(name)) not in (int, float)]
            if "split" not in record or type(record.get("step")) is not int or wrong:
                raise InputError(f"line {number} of {path} is damaged; expected it as train.py has written it")
            records.append(record)
    return records


def short_count(number: int) -> str:
    """In full below a million, else in millions: 12,345 or 41.3M."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.1f}M"


def plot_curve(workdir: Path, unit: str, score: str, score_name: str, metric: str | None = None) -> None:
    """Draws curve.png: the score against what was trained on, of training and validation.

    Args:
      workdir: with metrics.jsonl.
      unit: the key of what was trained on, "characters" or "tokens".
      score: the key of the score, such as "bpc".
      score_name: what the score is called.
      metric: the key of another number of validations, which gets an axis of its own on the right.
    """
    Figure = _figure_class()
    records = read_metrics(workdir / METRICS_FILE, (unit, score))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{unit} trained on", ylabel=score_name)
    for split, style in zip(_SCORED, ("-", "o-"), strict=True):
        points = [(record[unit], record[score]) for record in records if record["split"] == split]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=f"{split}, {points[-1][1]:.3f} at the end", markersize=4)
    lines, labels = axes.get_legend_handles_labels()
    points = [(record[unit], record[metric]) for record in records if metric != score and metric in record]
    top = axes
    if points:
        top = right = axes.twinx()
        right.set_ylabel(metric)
        label = f"validation {metric}, {max(value for _, value in points):.3f} at best"
        lines += right.plot(*zip(*points, strict=True), "s--", color="tab:green", markersize=4, label=label)
        labels.append(label)
    axes.grid(alpha=0.3)
    top.legend(lines, labels)
    with replacing(workdir / CURVE_FILE) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _figure_class() -> type:
    """matplotlib's Figure, which draws without a screen; importing it takes half a second, so it is done late."""
    first = "matplotlib" not in sys.modules
    screen = os.environ.pop("MPLBACKEND", "") if first else ""  # may name one that is not installed, as Jupyter does
    try:
        import matplotlib
        from matplotlib.figure import Figure
    finally:
        if screen:
            os.environ["MPLBACKEND"] = screen
    if screen:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = screen
    return Figure
