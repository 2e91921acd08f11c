"""Makes tests/golden/activations.json: what transformers' activations give.

python tests/golden/make_activations.py        (an environment with torch and transformers; written with 5.24.0)
"""

import json
import pathlib

import torch
from transformers.activations import ACT2FN

INPUTS = [-30.0, -3.0, -1.5, -0.4, 0.0, 0.3, 0.9, 2.5, 7.0, 30.0]
LEFT_OUT = ("prelu", "xielu", "sqrtsoftplus")  # have parameters, or are no encoder's


def main() -> None:
    values = {name: ACT2FN[name](torch.tensor(INPUTS)).tolist() for name in ACT2FN if name not in LEFT_OUT}
    path = pathlib.Path(__file__).parent / "activations.json"
    path.write_text(json.dumps({"inputs": INPUTS, "outputs": values}) + "\n")


if __name__ == "__main__":
    main()
