"""Makes a Longformer of RoBERTa (section 5 of the paper): of its parameters, and of a directory."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from longformer_jax.checksums import recording
from longformer_jax.errors import InputError
from longformer_jax.files import check_unused, read_json, replacing, user_path
from longformer_jax.integers import as_integer
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.models.checks import check_choice, check_config, check_seed, check_size
from longformer_jax.models.parameters import check_params, check_tree
from longformer_jax.settings import pinned_random
from longformer_jax.weights.added_tokens import optional_json
from longformer_jax.weights.hub import TOKENIZER_FILES, find_directory
from longformer_jax.weights.hugging_face_config import read_values
from longformer_jax.weights.pretrained import (
    find_model,
    load_pretrained,
    save_converted,
    save_pretrained,
    stored_heads,
    write_config,
)
from longformer_jax.weights.tokenizer import TOKENIZER, TOKENIZER_CONFIG, tokenizer_class

_log = logging.getLogger(__name__)

POSITIONS = ("copied", "random")
FORMATS = {"orbax": save_converted, "safetensors": save_pretrained}
_DEFAULT_WINDOW = 512


@pinned_random()
def roberta_to_longformer(
    config: LongformerConfig,
    params: Any,
    *,
    max_length: int = 4096,
    attention_window: int | tuple[int, ...] | None = None,
    positions: str = "copied",
    seed: int = 0,
) -> tuple[LongformerConfig, Any]:
    """Lengthens the position table and gives global tokens projections of their own, copies of the ordinary ones.

    The new table keeps the `pad_token_id + 1` reserved rows, and then repeats the other rows until it is full. So a
    text that fitted before, and that fits the window, gets the same output. A Longformer may be lengthened too; it
    keeps its global projections.

    Args:
      config, params: of any model, as `load_pretrained` returns them; both stay as they are.
      max_length: the longest sequence, in tokens, that the new table serves.
      attention_window: of all layers, or of each, bottom first: both sides together. None is 512 for RoBERTa and no
        change for a Longformer.
      positions: "copied", or "random" for the paper's ablation (table 5): rows that RoBERTa did not have are drawn from
        N(0, initializer_range²), the others kept.
      seed: of the random rows.

    Returns:
      The configuration and the parameters of the Longformer. No array is in them twice, but unchanged arrays are those
      of `params`, so donating them deletes them there, too.

    Raises:
      InputError: `max_length` is less than the table serves already, `params` are not those of `config`, or another
        argument is not valid.
    """
    check_config(config, LongformerConfig)
    check_tree(params)
    encoder = params.get("longformer", params)
    check_params(Longformer(dataclasses.replace(config, global_projections=False), add_pooling_layer=False), encoder)
    length = as_integer(max_length)
    if length is None or length < config.max_length:
        raise InputError(
            f"max_length is {max_length!r}; expected at least {config.max_length}, which the position table serves "
            "already"
        )
    seed = check_seed(seed)
    check_choice("positions", positions, POSITIONS)
    if attention_window is None:
        attention_window = _DEFAULT_WINDOW if config.attention_mode == "full" else config.attention_window
    reserved = config.pad_token_id + 1
    new_config = dataclasses.replace(
        config,
        max_position_embeddings=length + reserved,
        attention_window=attention_window,
        attention_mode="sliding_window",
        global_projections=True,
    )

    layers = dict(encoder["layers"])
    for name in ("query", "key", "value"):
        if f"{name}_global" not in layers:  # an array twice in one tree cannot be donated
            layers[f"{name}_global"] = jax.tree.map(jnp.array, layers[name])
    table = jnp.asarray(encoder["position_embeddings"]["embedding"])
    if positions == "copied":
        rows = jnp.arange(length) % config.max_length + reserved
        table = jnp.concatenate([table[:reserved], table[rows]])
    else:
        shape = (length - config.max_length, config.hidden_size)
        new_rows = config.initializer_range * jax.random.normal(jax.random.key(seed), shape, jnp.float32)
        table = jnp.concatenate([table, new_rows])
    encoder = {**encoder, "layers": layers, "position_embeddings": {"embedding": table}}
    return new_config, {**params, "longformer": encoder} if "longformer" in params else encoder


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

    The head is kept; of several, and of a head and a pooler, only what a model here has together. The log names others.

    Raises:
      InputError: as `load_pretrained` and `roberta_to_longformer`, or `out` has something in it or cannot be written.
    """
    max_length, seed = check_size("max_length", max_length), check_seed(seed)
    out = user_path("out", out).absolute()
    check_choice("format", format, [*FORMATS])
    check_unused("out", out)
    directory = find_directory(source, revision)
    config, params = load_pretrained(directory, find_model(directory))
    if left := stored_heads(directory) - {*params, *params.get("longformer", ())}:
        _log.warning("%s also has %s, which %s does not get", source, ", ".join(sorted(left)), out)
    config, params = roberta_to_longformer(
        config, params, max_length=max_length, attention_window=attention_window, positions=positions, seed=seed
    )
    try:
        with replacing(out) as model:
            model.mkdir()
            _copy_tokenizer(directory, model, max_length)
            FORMATS[format](model, config, params)
            _carry_fields(directory, model)
    except OSError as error:
        raise InputError(f"out is {str(out)!r}, which cannot be written ({error.strerror or error})") from None


def _copy_tokenizer(source: Path, out: Path, max_length: int) -> None:
    """The tokenizer's files, and the name of its class, which would not follow from a Longformer's config.json."""
    files = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in files:
        with recording(out / name) as partial:
            shutil.copyfile(source / name, partial)
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
    with recording(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
