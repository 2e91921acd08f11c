"""The activations against transformers', made by tests/golden/make_activations.py."""

import json
from pathlib import Path

import numpy as np

from longformer_jax.models.activations import ACTIVATIONS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "activations.json").read_text())


def test_all_of_transformers_encoders_and_their_values() -> None:
    assert ACTIVATIONS.keys() == GOLDEN["outputs"].keys()
    x = np.array(GOLDEN["inputs"], np.float32)
    for name, expected in GOLDEN["outputs"].items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), expected, rtol=3e-6, atol=1e-6, err_msg=name)
