"""Converts RoBERTa to Longformer.

  python -m longformer_jax.weights.convert roberta-base longformer-base-4096 --max_length=4096 --attention_window=512

OUT gets config.json, the weights and the tokenizer's files; `longformer_jax.weights.load_pretrained("OUT")` loads it.
The source's head, such as that of the masked language model, is kept; of several heads, one.
"""

import argparse
import logging
from collections.abc import Sequence

from longformer_jax.command_line import Parser, check_devices, ignore_late_results, one_line_for_errors
from longformer_jax.weights.conversion import FORMATS, POSITIONS, convert


def _window(text: str) -> int | tuple[int, ...]:
    try:
        entries = tuple(int(entry) for entry in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; expected a whole number, or one for each layer") from None
    return entries if len(entries) > 1 else entries[0]


def run(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 on bad input."""
    parser = Parser(
        prog="python -m longformer_jax.weights.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a directory, or a model of the Hugging Face hub")
    parser.add_argument("out", help="a new directory")
    parser.add_argument(
        "--max_length", type=int, default=4096, help="longest sequence, in tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--attention_window",
        type=_window,
        metavar="W[,W…]",
        help="both sides together; for all layers, or one for each, bottom first (default: 512, or a Longformer's own)",
    )
    parser.add_argument(
        "--positions", choices=POSITIONS, default="copied", help="new rows of the position table (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for random positions (default: %(default)s)")
    parser.add_argument(
        "--format", choices=FORMATS, default="orbax", help="format of the weights (default: %(default)s)"
    )
    parser.add_argument("--revision", help="for a model on the hub: branch, tag or commit")
    # Orbax tells every step of a save, and what fails in each of its threads.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    ignore_late_results()
    with one_line_for_errors():
        options = vars(parser.parse_args(arguments))
        check_devices()
        convert(**options)
