"""A model as StableHLO, for programs that have JAX alone: python -m longformer_jax.export, or longformer-export.

  longformer-export runs/quickstart exported
  longformer-export runs/imdb exported --length=512,4096
  longformer-export runs/roberta_base/model exported --length=4096 --global_tokens=16

SOURCE is the workdir of a run, the directory of a model, or its name on the hub. OUT gets the model's functions as
files that jax.export reads, for CPU and CUDA and batches of any size; the parameters, for NumPy; and README.txt with a
program that runs them.
"""

import argparse
import logging
from collections.abc import Sequence

from longformer_jax.command_line import Parser, check_devices, one_line_for_errors, print_anything
from longformer_jax.evaluation import export_stablehlo


def _lengths(text: str) -> list[int]:
    try:
        return [int(entry) for entry in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; expected a number of tokens, or several: 512,4096") from None


def run(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 on bad input."""
    parser = Parser(
        prog="python -m longformer_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="a run, a model's directory, or a model of the hub")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument(
        "--length",
        type=_lengths,
        metavar="N[,N…]",
        help="tokens of a row, a function for each number (default: what the run was trained on, or the model's most)",
    )
    parser.add_argument("--step", type=int, help="which checkpoint of a run (default: the best, or the latest)")
    parser.add_argument(
        "--global_tokens", type=int, metavar="N", help="of an encoder: room for so many global tokens in a row"
    )
    # Orbax tells every step of a restore.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with one_line_for_errors():
        options = parser.parse_args(arguments)
        print_anything()
        check_devices()
        out = export_stablehlo(
            options.source, options.out, lengths=options.length, step=options.step, global_tokens=options.global_tokens
        )
        print(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}", flush=True)
