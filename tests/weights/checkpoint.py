"""The small checkpoints of tests/golden/encoder, and variations of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import longformer_jax as lj

ENCODER = Path(__file__).parents[1] / "golden" / "encoder"
MODELS = {
    "Model": lj.Longformer,
    "ForMaskedLM": lj.ForMaskedLM,
    "ForSequenceClassification": lj.ForSequenceClassification,
    "ForTokenClassification": lj.ForTokenClassification,
    "ForQuestionAnswering": lj.ForQuestionAnswering,
    "ForMultipleChoice": lj.ForMultipleChoice,
}
NAMES = [f"{kind}{ending}" for kind in ("Longformer", "Roberta") for ending in MODELS]


def model_of(name: str) -> Any:
    return MODELS[name.removeprefix("Longformer").removeprefix("Roberta")]


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return load_file(ENCODER / name / "model.safetensors")


def config_of(name: str) -> dict[str, Any]:
    return json.loads((ENCODER / name / "config.json").read_text())


def write(
    directory: Path,
    name: str,
    change: Callable[[dict[str, np.ndarray]], object] = lambda tensors: None,
    **config: Any,
) -> Path:
    """A golden checkpoint with other tensors and fields."""
    tensors = tensors_of(name)
    change(tensors)
    directory.mkdir(exist_ok=True)
    save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config_of(name) | config))
    return directory


def flat(params: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}


def assert_same(one: Any, two: Any) -> None:
    """Bit for bit."""
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys()
    for path, x in one.items():
        assert x.dtype == two[path].dtype and x.shape == two[path].shape and x.tobytes() == two[path].tobytes(), path
