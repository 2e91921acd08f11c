"""Converts RoBERTa to Longformer.

  python -m longformer_jax.weights.convert roberta-base longformer-base-4096 --max_length=4096 --attention_window=512

OUT gets config.json, the weights and the tokenizer's files; `longformer_jax.weights.load_pretrained("OUT")` loads it.
The source's head, such as that of the masked language model, is kept.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from longformer_jax.command_line import check_devices, fail, one_line_for_errors
from longformer_jax.errors import InputError
from longformer_jax.files import check_unused, read_json, replacing, user_path, write_text
from longformer_jax.weights.added_tokens import optional_json
from longformer_jax.weights.conversion import POSITIONS, roberta_to_longformer
from longformer_jax.weights.hub import TOKENIZER_FILES, find_directory
from longformer_jax.weights.hugging_face_config import read_values
from longformer_jax.weights.pretrained import (
    find_model,
    load_pretrained,
    save_converted,
    save_pretrained,
    write_config,
)
from longformer_jax.weights.tokenizer import TOKENIZER, TOKENIZER_CONFIG, tokenizer_class

_FORMATS = {"orbax": save_converted, "safetensors": save_pretrained}


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    max_length: int = 4096,
    attention_window: int | tuple[int, ...] | None = None,
    positions: str = "copied",
    seed: int = 0,
    format: str = "orbax",
    revision: str | None = None,
) -> None:
    """Writes directory `out`, all of it or nothing.

    Args:
      source, revision: as `load_pretrained`'s.
      out: a new or empty directory.
      max_length, attention_window, positions, seed: as `roberta_to_longformer`'s.
      format: "orbax", or "safetensors", which transformers loads too.

    Raises:
      InputError: as `load_pretrained` and `roberta_to_longformer`, or `out` has something in it or cannot be written.
    """
    out = user_path("out", out).absolute()
    if format not in _FORMATS:
        raise InputError(f"format is {format!r}; expected one of {', '.join(_FORMATS)}")
    check_unused("out", out)
    directory = find_directory(source, revision)
    config, params = load_pretrained(directory, find_model(directory))
    config, params = roberta_to_longformer(
        config, params, max_length=max_length, attention_window=attention_window, positions=positions, seed=seed
    )
    try:
        with replacing(out) as model:
            model.mkdir()
            _copy_tokenizer(directory, model, max_length)
            _FORMATS[format](model, config, params)
            _carry_fields(directory, model)
    except OSError as error:
        raise InputError(f"out is {str(out)!r}, which cannot be written ({error.strerror or error})") from None


def _copy_tokenizer(source: Path, out: Path, max_length: int) -> None:
    """The tokenizer's files, and the name of its class, which would not follow from a Longformer's config.json."""
    files = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in files:
        shutil.copyfile(source / name, out / name)
    # Where texts are cut and how far they are padded, for a shorter model than this one.
    if TOKENIZER in files:
        _write_json(out / TOKENIZER, read_json(source / TOKENIZER) | {"truncation": None, "padding": None})
    if files:
        changes = {"model_max_length": max_length, "tokenizer_class": tokenizer_class(source)}
        _write_json(out / TOKENIZER_CONFIG, optional_json(source / TOKENIZER_CONFIG) | changes)


def _carry_fields(source: Path, out: Path) -> None:
    """Fields of config.json that a `LongformerConfig` does not have: roles of ids, and what a task is."""
    values = read_values(source)
    carried = {
        name: value
        for name, value in values.items()
        if value is not None and (name.endswith("_token_id") or name in ("tokenizer_class", "problem_type"))
    }
    write_config(out, read_values(out) | carried)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(2, message)


def _window(text: str) -> int | tuple[int, ...]:
    try:
        entries = tuple(int(entry) for entry in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is {text!r}; expected a whole number, or one for each layer") from None
    return entries if len(entries) > 1 else entries[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 on bad input."""
    parser = _Parser(
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
        "--format", choices=_FORMATS, default="orbax", help="format of the weights (default: %(default)s)"
    )
    parser.add_argument("--revision", help="for a model on the hub: branch, tag or commit")
    # Orbax tells every step of a save, and what fails in each of its threads.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with one_line_for_errors():
        options = vars(parser.parse_args(arguments))
        check_devices()
        convert(**options)


if __name__ == "__main__":
    main()
