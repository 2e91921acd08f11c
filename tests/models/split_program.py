"""Holds models whose sequences are split over eight devices to the same models on one.

    python -m tests.models.split_program [--longer] CASE…

Prints, for each case, by how much logits and gradients differ, relative to the largest number, and what each device
sends; or only what it sends where sequences are longer. A process of its own, as the number of devices is fixed with
the first use of JAX.
"""

import json
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from longformer_jax import models
from longformer_jax.models import CharLMConfig, LongformerConfig, sub_bands
from tests.collectives import bytes_sent
from tests.models.small import RECIPE

AXES = ("data", "fsdp", "sequence", "tensor")
B, T = 2, 48
LONGER = 4 * T
CHAR_LM: dict[str, Any] = {
    "vocab_size": 40, "embed_dim": 16, "num_layers": 3, "num_heads": 4, "mlp_dim": 32, "windows": (4, 4, 9),
    "dilations": (1, 1, 3), "dropout_rate": 0.0, "dtype": "float32",
}  # fmt: skip
DROPOUT = {"dropout_rate": 0.2, "attention_dropout_rate": 0.3}
ENCODER: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": LONGER + 2, "attention_window": (8, 20), "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
ENCODER_DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
# Sizes of the mesh's axes, the model's class and what is special about its configuration and its call.
CASES: dict[str, tuple[tuple[int, ...], str, dict[str, Any], dict[str, Any]]] = {
    "char_lm": ((2, 1, 4, 1), "CharLM", DROPOUT | {"remat": True}, {}),
    "char_lm_sub_bands": ((1, 1, 8, 1), "CharLM", DROPOUT | {"windows": 30, "dilations": (1, 2, 1)}, {}),
    "char_lm_rotary": ((1, 2, 4, 1), "CharLM", DROPOUT | {"positions": "rotary"} | RECIPE, {}),
    "char_lm_tensor": ((2, 1, 2, 2), "CharLM", DROPOUT | RECIPE, {}),
    "encoder": ((1, 1, 4, 2), "Longformer", ENCODER_DROPOUT, {}),
    "encoder_full": ((1, 1, 8, 1), "Longformer", {"attention_mode": "full"}, {}),
    "shared_projections": ((2, 1, 4, 1), "Longformer", {"global_projections": False, "remat": True}, {}),
    "questions": ((1, 2, 4, 1), "ForQuestionAnswering", {}, {}),
    "choices": ((2, 1, 4, 1), "ForMultipleChoice", {}, {}),
    "masked_lm": ((2, 1, 4, 1), "ForMaskedLM", {}, {"positions": np.array([[1, 5, 40], [3, 20, 33]])}),
}


def inputs_of(name: str, length: int = T) -> dict[str, np.ndarray]:
    """Rows with padding and with global tokens on several devices; none of these for a character LM."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 40, (B, length))
    if name == "CharLM":
        return {"tokens": ids}
    mask, is_global = np.ones((B, length), int), np.zeros((B, length), int)
    mask[1, 37:], ids[1, 37:] = 0, 1
    ids[:, 6:9] = 2
    is_global[:, 0] = is_global[0, [25, length - 1]] = is_global[1, 30] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": is_global}
    return {key: np.stack([x, x[::-1]], 1) for key, x in arrays.items()} if name == "ForMultipleChoice" else arrays


def program(case: str, length: int = T) -> tuple[Any, Any, Any]:
    """A function of parameters and inputs that gives logits and the parameters' gradients; and both."""
    _, name, changes, options = CASES[case]
    config = CharLMConfig(**CHAR_LM | changes) if name == "CharLM" else LongformerConfig(**ENCODER | changes)
    model, rng = getattr(models, name)(config), np.random.default_rng(1)
    if name != "CharLM":
        options = options | {"max_global_tokens": 4}
    inputs = inputs_of(name, length)
    one = {key: x[..., :1] for key, x in inputs.items() if key in ("tokens", "input_ids")}
    params = jax.jit(model.init)(jax.random.key(0), **one)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)

    def logits(params: Any, inputs: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        found = model.apply({"params": params}, **inputs, **options, deterministic=False, rngs=rngs)
        return getattr(found, "logits", found) if name != "Longformer" else found.last_hidden_state

    cotangent = rng.standard_normal(jax.eval_shape(logits, params, inputs).shape).astype(np.float32)

    def both(params: Any, inputs: Any) -> Any:
        found, pullback = jax.vjp(lambda params: logits(params, inputs), params)
        return found, pullback(cotangent)[0]

    return both, params, inputs


def split(case: str, both: Any, params: Any, inputs: Any) -> Any:
    """The program compiled for the case's mesh."""
    mesh = jax.make_mesh(CASES[case][0], AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        return jax.jit(both).lower(jax.device_put(params, NamedSharding(mesh, P())), inputs).compile()


def run(case: str) -> dict[str, Any]:
    both, params, inputs = program(case)
    compiled = split(case, both, params, inputs)
    found, expected = compiled(params, inputs), jax.jit(both)(params, inputs)
    differences = [
        float(  # NumPy's max, as Python's passes over NaN
            np.max([np.abs(a - b).max() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)])
            / np.max([np.abs(b).max() for b in jax.tree.leaves(y)])
        )
        for x, y in zip(found, expected, strict=True)
    ]
    return {"differences": differences, "sent": bytes_sent(compiled.as_text())}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    sub_bands.LARGEST_DIM = 8  # of 16, so that wide windows are cut
    assert len(sub_bands.cut_window(16, 4, 30, (1,) * 4, T - 1)[0].sub_bands) > 1
    if sys.argv[1] == "--longer":
        print(json.dumps({case: bytes_sent(split(case, *program(case, LONGER)).as_text()) for case in sys.argv[2:]}))
    else:
        print(json.dumps({case: run(case) for case in sys.argv[1:]}))
