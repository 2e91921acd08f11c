"""Evaluates what train.py left in a workdir: bits per character or masked token, or a sample.

python eval.py --workdir=runs/quickstart --split=validation --protocol=stream
python eval.py --workdir=runs/enwik8_small --split=test --protocol=paper
python eval.py --workdir=runs/quickstart --sample=500 --temperature=0.8
python eval.py --workdir=runs/roberta_base --split=validation
python eval.py --model=roberta-base --data=TEXTS --sequence_length=512
"""

from typing import Any

from absl import app, flags, logging

from longformer_jax.command_line import check_devices, fail, fail_of_the_system, parse_flags
from longformer_jax.errors import InputError
from longformer_jax.evaluation import evaluate, evaluate_model, sample_text
from longformer_jax.host_memory import reuse_freed_memory

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_MODEL = flags.DEFINE_string("model", None, "In place of a run: a masked LM, its directory or name on the hub.")
_DATA = flags.DEFINE_string("data", None, "Of a model: a file, directory or pattern of text, or tfds:NAME.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the latest without.")

# Options of an evaluation: those that are not given are left to the kind of experiment.
flags.DEFINE_string("split", None, "train, validation or test; test without, or validation where there is no test.")
flags.DEFINE_string(
    "protocol",
    None,
    "paper: overlapping sequences, the last --stride characters of each are scored. "
    "stream: one pass with a cache, every character is scored. Of a character LM; paper without.",
)
flags.DEFINE_integer("sequence_length", None, "Characters of a sequence of the paper's protocol, or a model's tokens.")
flags.DEFINE_integer("stride", None, "How far a sequence of the paper's protocol begins after the last; 512 without.")
flags.DEFINE_integer("batch_size", None, "Sequences at once; 8 without.", lower_bound=1)
flags.DEFINE_integer("limit", None, "Score so many characters only, or sequences of a masked LM.")
_OPTIONS = ("split", "protocol", "step", "sequence_length", "stride", "batch_size", "limit")

_SAMPLE = flags.DEFINE_integer("sample", None, "Writes so many characters of text instead.")
_PROMPT = flags.DEFINE_string("prompt", "\n", "What the sample goes on from.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the sample; 0 takes the most likely character.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Sample among the k most likely characters only.")
_TOP_P = flags.DEFINE_float("top_p", None, "Sample among the characters that together hold this probability.")


def _given() -> dict[str, Any]:
    options = {name: flags.FLAGS[name].value for name in _OPTIONS}
    return {name: value for name, value in options.items() if value is not None}


def _evaluate_model() -> str:
    model, data = _MODEL.value, _DATA.value
    if model is None or data is None:
        raise InputError(
            f"--{'data' if data is None else 'model'} is missing; expected --model=MODEL with --data=TEXTS"
        )
    for name, flag in (("workdir", _WORKDIR), ("sample", _SAMPLE)):
        if flag.value is not None:
            raise InputError(f"--{name} is {flag.value!r}, but --model is given; expected one of them")
    return str(evaluate_model(model, data=data, **_given()))


def _run() -> str:
    if _MODEL.value is not None or _DATA.value is not None:
        return _evaluate_model()
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; expected --workdir=DIRECTORY, or --model=MODEL with --data=TEXTS")
    if _SAMPLE.value is None:
        return str(evaluate(_WORKDIR.value, **_given()))
    return sample_text(
        _WORKDIR.value,
        _SAMPLE.value,
        prompt=_PROMPT.value,
        step=_STEP.value,
        seed=_SEED.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
    )


def main(arguments: list[str]) -> None:
    """Prints the figure or the sample; exits with 2 on bad input, and with 1 when a file fails."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a restore
    reuse_freed_memory()
    try:
        if len(arguments) > 1:
            raise InputError(f"argument {arguments[1]!r} is not a flag; expected flags that begin with --")
        check_devices()
        print(_run())
    except (InputError, NotImplementedError) as error:
        fail(2, error)
    except OSError as error:
        fail_of_the_system(error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
