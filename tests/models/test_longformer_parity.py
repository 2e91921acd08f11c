"""Number for number what transformers' PyTorch code computes: all heads, outputs, gradients and optional outputs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden import ENCODER, TOLERANCE, Golden, relative_error

from longformer_jax import global_capacity, question_mask
from longformer_jax.models import heads
from longformer_jax.models.longformer import Longformer
from longformer_jax.weights import load_pretrained
from longformer_jax.weights.names import hugging_face_names, is_kernel, is_stacked

MODELS = [directory.name for directory in sorted(ENCODER.iterdir())]
# Heads do not care how attention is computed, nor on which encoder they are: the kernels get the encoders alone.
IS_AGAIN = {name: name.startswith("RobertaFor") for name in MODELS}
PROGRAMS = [
    *(pytest.param("xla", name, marks=[pytest.mark.slow] * IS_AGAIN[name]) for name in MODELS),
    *(pytest.param("pallas_triton_interpret", name, marks=pytest.mark.slow) for name in MODELS if "Model" in name),
]
every_program = pytest.mark.parametrize(("implementation", "name"), PROGRAMS)
# The shift of all scores by a bias on keys cancels in the softmax: these gradients are zero but for rounding.
VANISHING = ("layers/key/bias", "layers/key_global/bias")


class Loaded:
    """A golden model as this library runs it."""

    def __init__(self, name: str, implementation: str):
        self.golden, self.is_roberta = Golden(name), name.startswith("Roberta")
        head = name.removeprefix("Roberta").removeprefix("Longformer")
        model = Longformer if head == "Model" else getattr(heads, head)
        config, self.params = load_pretrained(self.golden.directory, model)
        self.config = dataclasses.replace(config, implementation=implementation)
        self.module = model(self.config)

    def inputs(self, case: str) -> dict[str, np.ndarray]:
        return self.golden.inputs(case)

    def capacity(self, inputs: dict[str, np.ndarray]) -> int | None:
        """As the model itself would count it outside of jit."""
        mask = inputs.get("global_attention_mask")
        if mask is None and isinstance(self.module, heads.ForQuestionAnswering):
            mask = question_mask(inputs["input_ids"], self.config.sep_token_id)
        if mask is None and isinstance(self.module, heads.ForMultipleChoice):
            return inputs["input_ids"].shape[-1]
        return None if mask is None else global_capacity(mask, inputs.get("attention_mask"))

    def outputs(self, params: Any, inputs: dict[str, Any], capacity: int | None, **optional: bool) -> dict[str, Any]:
        """By the names of the original."""
        kwargs = {} if capacity is None else {"max_global_tokens": capacity}
        found = self.module.apply({"params": params}, **inputs, **kwargs, **optional)
        if not hasattr(found, "logits"):
            return {name: x for name, x in vars(found).items() if x is not None}
        if isinstance(self.module, heads.ForQuestionAnswering):
            return {"start_logits": found.logits[..., 0], "end_logits": found.logits[..., 1]}
        return {"logits": found.logits}


@functools.cache
def loaded(name: str, implementation: str) -> Loaded:
    return Loaded(name, implementation)


def is_token(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return inputs.get("attention_mask", np.ones_like(inputs["input_ids"])) == 1


@every_program
def test_outputs(name: str, implementation: str) -> None:
    model = loaded(name, implementation)
    for case in model.golden.cases:
        inputs = model.inputs(case)
        capacity = model.capacity(inputs)
        every = name.endswith("Model")
        optional = {"output_hidden_states": every, "output_attentions": every}
        found = jax.jit(lambda p, i, c=capacity, o=optional: model.outputs(p, i, c, **o))(model.params, inputs)
        for key, expected in model.golden.outputs(case).items():
            error = relative_error(*comparable(key, found, expected, inputs, model.is_roberta))
            assert error <= TOLERANCE, (case, key, error)


def comparable(key, found, expected, inputs, is_roberta):
    """The part of an output that means anything, in both."""
    name, _, layer = key.partition("/")
    x, tokens = np.asarray(found[name][int(layer)] if layer else found[name]), is_token(inputs)
    if name == "global_attentions":
        # Columns of rows with fewer global tokens, and rows that were padded to the window, are filled with anything.
        T, count = tokens.shape[1], (inputs["global_attention_mask"] * tokens).sum(1)
        blank = np.arange(x.shape[-1]) >= count[:, None]
        assert not x[np.broadcast_to(blank[:, None, None], x.shape)].any()
        return x, np.where(blank[:, None, None], 0, expected[:, :, :T])
    if is_roberta and name != "pooler_output" and x.shape[:2] == tokens.shape:
        return x[tokens], expected[tokens]  # what stands in padding differs, and is nothing
    if is_roberta and name == "attentions":
        return x.swapaxes(1, 2)[tokens], expected.swapaxes(1, 2)[tokens]
    return x, expected


@every_program
def test_gradients_of_every_parameter(name: str, implementation: str) -> None:
    model = loaded(name, implementation)
    (case,) = [case for case in model.golden.cases if model.golden.cotangents(case)]
    inputs, cotangents = model.inputs(case), model.golden.cotangents(case)
    capacity = model.capacity(inputs)

    def loss(params: Any) -> jax.Array:
        found = model.outputs(params, inputs, capacity)
        return sum((jnp.sum(found[name] * x) for name, x in cotangents.items()), jnp.zeros(()))

    found = flatten_dict(jax.jit(jax.grad(loss))(model.params), sep="/")
    originals = {key.removeprefix("roberta.").removeprefix("longformer."): x for key, x in
                 model.golden.gradients(case).items()}  # fmt: skip
    largest = max(np.abs(x).max() for x in originals.values())
    seen = set()
    for path, gradient in found.items():
        names = hugging_face_names(path, model.config.num_hidden_layers)
        seen |= set(names)
        expected = np.stack([originals[key].T if is_kernel(path) else originals[key] for key in names])
        expected = expected if is_stacked(path) else expected[0]
        if path.endswith(VANISHING):
            assert max(np.abs(gradient).max(), np.abs(expected).max()) <= TOLERANCE * largest, path
        else:
            assert relative_error(gradient, expected) <= TOLERANCE, path
    left = {key for key in originals if key not in seen}
    assert all(not originals[key].any() for key in left), left  # what the original has and never uses
