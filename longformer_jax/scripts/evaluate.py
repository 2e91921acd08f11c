"""Evaluates what train.py left in a workdir, or a model: eval.py of a checkout, longformer-eval elsewhere.

  longformer-eval --workdir=runs/quickstart --split=validation --protocol=stream
  longformer-eval --workdir=runs/enwik8_small --split=test --protocol=paper
  longformer-eval --workdir=runs/quickstart --sample=500 --temperature=0.8
  longformer-eval --workdir=runs/roberta_base --split=validation
  longformer-eval --workdir=runs/imdb --split=test --predictions=predictions.jsonl
  longformer-eval --workdir=runs/quickstart --data=FILE --protocol=stream
  longformer-eval --model=runs/quickstart/model --data=FILE --protocol=stream
  longformer-eval --model=runs/quickstart/model --sample=500
  longformer-eval --model=roberta-base --data=TEXTS --sequence_length=512

It prints bits per character or masked token, the metrics of a task, or the sample.
"""

from typing import Any

from absl import app, flags, logging

from longformer_jax.command_line import check_devices, one_line_for_errors, parse_flags, print_anything, print_log
from longformer_jax.errors import InputError
from longformer_jax.evaluation import evaluate, evaluate_model, sample_from_model, sample_text
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.settings import keep_compiled

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_MODEL = flags.DEFINE_string("model", None, "Instead of a run: the directory of a model, or its name on the hub.")
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Your own text to score: a file; for a masked LM also a directory, a glob pattern or tfds:NAME; for a task, a file "
    "that it reads, such as JSON lines.",
)
flags.DEFINE_integer("step", None, "Which checkpoint; default: the latest, or the best where the run keeps that.")

# Options of an evaluation: those that are not given are left to the kind of experiment.
flags.DEFINE_string("data_path", None, "Where the text of a run is now, if it has moved.")
flags.DEFINE_string(
    "split",
    None,
    "train, validation or test, of TriviaQA also verified; default: test, or validation where that is missing or has "
    "no answers.",
)
flags.DEFINE_string(
    "protocol",
    None,
    "For a character LM. paper, the default: overlapping sequences, of which the last --stride characters are scored. "
    "stream: one pass with a cache, every character but the first is scored.",
)
flags.DEFINE_integer("sequence_length", None, "Characters per sequence of the paper's protocol, or tokens (masked LM).")
flags.DEFINE_integer(
    "stride", None, "How far each sequence of the paper's protocol starts after the last; default: 512."
)
flags.DEFINE_integer("batch_size", None, "Sequences at once; default: 8.", lower_bound=1)
flags.DEFINE_integer("limit", None, "Scores only this many characters, sequences (masked LM) or documents (a task).")
flags.DEFINE_string("predictions", None, "For a task: the file that gets the predictions, in the task's own format.")
_EVALUATION = ("data_path", "split", "protocol", "sequence_length", "stride", "batch_size", "limit", "predictions")

# Options of a sample.
_SAMPLE = flags.DEFINE_integer("sample", None, "Instead of an evaluation: generates this many characters.")
flags.DEFINE_string("prompt", None, "What the sample continues; default: a line break.")
flags.DEFINE_integer("seed", None, "Of the sample; default: 0.")
flags.DEFINE_float("temperature", None, "Of the sample; 0 takes the most likely character; default: 1.")
flags.DEFINE_integer("top_k", None, "Samples among the k most likely characters only.")
flags.DEFINE_float("top_p", None, "Samples among the most likely characters that together hold this probability.")
_SAMPLING = ("prompt", "seed", "temperature", "top_k", "top_p")


def _given(*names: str) -> dict[str, Any]:
    return {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].value is not None}


def _refuse(reason: str, *names: str) -> None:
    for name, value in _given(*names).items():
        raise InputError(f"--{name} is {value!r}, but {reason}")


def _run() -> str:
    workdir, model, data, length = _WORKDIR.value or "", _MODEL.value, _DATA.value, _SAMPLE.value
    if model is not None:
        _refuse("--model is given; expected one of them", "workdir")
    elif not workdir:
        raise InputError("--workdir is missing; expected --workdir=DIRECTORY, or --model=MODEL with --data or --sample")
    if length is None:
        _refuse("--sample is missing; expected --sample=LENGTH with it", *_SAMPLING)
        if model is None:
            return str(evaluate(workdir, **_given("step", "data", *_EVALUATION)))
        if data is None:
            raise InputError("--data is missing; expected --model=MODEL with --data=TEXTS, or with --sample=LENGTH")
        return str(evaluate_model(model, data=data, **_given("step", *_EVALUATION)))
    _refuse("--sample is given; expected one of them", "data", *_EVALUATION)
    if model is None:
        return sample_text(workdir, length, **_given("step", *_SAMPLING))
    _refuse("--model is given, which has no checkpoints; expected one of them", "step")
    return sample_from_model(model, length, **_given(*_SAMPLING))


def main(arguments: list[str]) -> None:
    """Prints the figure or the sample."""
    logging.set_verbosity(logging.FATAL)  # Orbax tells every step of a restore
    print_log()
    reuse_freed_memory()
    keep_compiled()
    print_anything()
    if len(arguments) > 1:
        raise InputError(f"argument {arguments[1]!r} is not a flag; expected flags that begin with --")
    check_devices()
    print(_run(), flush=True)


def run() -> None:
    """The command."""
    with one_line_for_errors():
        app.run(main, flags_parser=lambda arguments: parse_flags(arguments, __name__))
