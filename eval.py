"""Evaluates what train.py left in a workdir: bits per character, or a sample.

python eval.py --workdir=runs/quickstart --split=validation --protocol=stream
python eval.py --workdir=runs/enwik8_small --split=test --protocol=paper
python eval.py --workdir=runs/quickstart --sample=500 --temperature=0.8
"""

from absl import app, flags, logging

from longformer_jax.command_line import fail, parse_flags
from longformer_jax.errors import InputError
from longformer_jax.evaluation import evaluate, sample_text
from longformer_jax.host_memory import reuse_freed_memory

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the latest without.")
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test.")
_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "paper",
    "paper: overlapping sequences, the last --stride characters of each are scored. "
    "stream: one pass with a cache, every character is scored.",
)
_LENGTH = flags.DEFINE_integer("sequence_length", 32_256, "Characters of a sequence of the paper's protocol.")
_STRIDE = flags.DEFINE_integer("stride", 512, "How far a sequence of the paper's protocol begins after the last.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Sequences at once in the paper's protocol.", lower_bound=1)
_LIMIT = flags.DEFINE_integer("limit", None, "Score so many characters only.")
_SAMPLE = flags.DEFINE_integer("sample", None, "Writes so many characters of text instead.")
_PROMPT = flags.DEFINE_string("prompt", "\n", "What the sample goes on from.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sample.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of the sample; 0 takes the most likely character.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Sample among the k most likely characters only.")
_TOP_P = flags.DEFINE_float("top_p", None, "Sample among the characters that together hold this probability.")


def _run() -> str:
    workdir = _WORKDIR.value
    if workdir is None:
        raise InputError("--workdir is missing; expected --workdir=DIRECTORY")
    if _SAMPLE.value is not None:
        return sample_text(
            workdir,
            _SAMPLE.value,
            prompt=_PROMPT.value,
            step=_STEP.value,
            seed=_SEED.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
        )
    result = evaluate(
        workdir,
        split=_SPLIT.value,
        protocol=_PROTOCOL.value,
        step=_STEP.value,
        sequence_length=_LENGTH.value,
        stride=_STRIDE.value,
        batch_size=_BATCH.value,
        limit=_LIMIT.value,
    )
    return (
        f"{result.split}, protocol {result.protocol}, step {result.step:,}: "
        f"{result.bits_per_character:.4f} bits per character over {result.characters:,} characters, "
        f"{result.characters_per_second:,.0f} characters/s"
    )


def main(arguments: list[str]) -> None:
    """Prints the figure or the sample; exits with 2 on bad input."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a restore
    reuse_freed_memory()
    try:
        if len(arguments) > 1:
            raise InputError(f"argument {arguments[1]!r} is not a flag; expected flags that begin with --")
        print(_run())
    except (InputError, NotImplementedError) as error:
        fail(2, error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
