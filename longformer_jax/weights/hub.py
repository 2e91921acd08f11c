"""Where a model is: in a directory, or on the Hugging Face hub."""

import os
from pathlib import Path

from longformer_jax.checksums import CHECKSUMS
from longformer_jax.errors import InputError
from longformer_jax.files import user_path
from longformer_jax.weights.tensor_files import has_tensors

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "sentencepiece.bpe.model",
)


# The name of the model that comes with the library: that of configs/char_lm/quickstart.py.
EXAMPLE = "example"


def find_directory(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory of a model: `source` itself where it is one, else a download of the hub's model of that name.

    "example" is the character LM that comes with the library.

    PyTorch's pickles are downloaded only where there are no safetensors.

    Raises:
      InputError: there is no such directory and no such model, the hub cannot be reached, or huggingface_hub, which is
        needed for it, is not installed; or there is a revision, but the source is a directory.
    """
    path = user_path("source", source)
    if path.is_dir():
        if revision is not None:
            raise InputError(f"revision is {revision!r}; expected None, as source, {str(source)!r}, is a directory")
        return path
    name = str(source)
    if name == EXAMPLE:
        return Path(__file__).parents[1] / EXAMPLE
    if path.exists() or isinstance(source, os.PathLike) or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise InputError(
            f"source is {name!r}, which is no directory; expected the directory of a model or its name on the hub, as "
            "'roberta-base'"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"source is {name!r}, which is no directory, and for the hub huggingface_hub is not installed; expected "
            "a directory, or pip install huggingface_hub"
        ) from None

    def download(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))

    try:
        path = download(
            *("config.json", "model*.safetensors", "model.safetensors.index.json", CHECKSUMS), *TOKENIZER_FILES
        )
        return path if has_tensors(path) else download("pytorch_model*.bin", "pytorch_model.bin.index.json")
    except (OSError, ValueError, RuntimeError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"source is {name!r}, which is no directory and could not be had from the hub{at} "
            f"({' '.join(str(error).split())[:300]}); expected a model of RoBERTa's or Longformer's kind"
        ) from None
