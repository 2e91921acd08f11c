"""Reads tests/golden/encoder: what transformers' PyTorch code computed (tests/golden/make_encoder.py)."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ENCODER = Path(__file__).parents[1] / "golden" / "encoder"
TOLERANCE = 2e-5


class Golden:
    """One model of transformers and its cases."""

    def __init__(self, name: str):
        self.directory = ENCODER / name
        self._tensors = load_file(self.directory / "cases.safetensors")

    @property
    def cases(self) -> list[str]:
        return sorted({name.split("/")[0] for name in self._tensors})

    def inputs(self, case: str) -> dict[str, np.ndarray]:
        return self._under(f"{case}/inputs/")

    def outputs(self, case: str) -> dict[str, np.ndarray]:
        return self._under(f"{case}/outputs/")

    def cotangents(self, case: str) -> dict[str, np.ndarray]:
        return self._under(f"{case}/cotangent/")

    def gradients(self, case: str) -> dict[str, np.ndarray]:
        return self._under(f"{case}/gradients/")

    def _under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): x for name, x in self._tensors.items() if name.startswith(prefix)}


def relative_error(found, expected) -> float:
    """The largest difference, as a part of the largest expected number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)
