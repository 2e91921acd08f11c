"""What is computed in another way on a GPU: layers written out, rows filled up."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from benchmarks.tracing import patched
from longformer_jax import CharLM, CharLMConfig, Longformer, LongformerConfig
from longformer_jax.models import gpu
from longformer_jax.models.parameters import one_token
from longformer_jax.models.positions import band_basis
from tests.models.small import error, random_params

LAYERS = 3
CHAR_LM = CharLM(
    CharLMConfig(embed_dim=8, num_layers=LAYERS, num_heads=2, dilated_heads=0, mlp_dim=8, windows=4, dtype="float32")
)
ENCODER = Longformer(
    LongformerConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=8,
        attention_window=4,
    )
)  # fmt: skip


def loops(jaxpr: Any) -> list[tuple[int, int]]:
    """(length, how many steps are written out) of the scans over layers."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == LAYERS:
            found.append((LAYERS, int(equation.params["unroll"])))
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        for one in (x for x in inner if hasattr(x, "eqns")):
            found += loops(getattr(one, "jaxpr", one))
    return found


def traced(model: nn.Module, platform: str, deterministic: bool) -> list[tuple[int, int]]:
    device = AbstractDevice("NVIDIA H200" if platform == "gpu" else platform, 1, platform=platform)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def run(tokens: jax.Array) -> Any:
        return model.init_with_output(rngs, tokens, deterministic=deterministic)[0]

    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), (AxisType.Auto,), abstract_device=device)):
        return loops(jax.make_jaxpr(run)(jnp.tile(one_token(model), (1, 8))).jaxpr)


@pytest.mark.parametrize("model", [CHAR_LM, ENCODER], ids=["char_lm", "encoder"])
def test_training_on_a_gpu_writes_layers_out(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGFORMER_JAX_KERNELS", "xla")
    assert traced(model, "gpu", False) == [(LAYERS, LAYERS)]
    assert traced(model, "gpu", True) == traced(model, "cpu", False) == [(LAYERS, 1)]


@pytest.mark.slow
def test_rows_are_filled_up_on_a_gpu_and_nothing_changes() -> None:
    config = dataclasses.replace(CHAR_LM.config, embed_dim=16, position_dim=512, windows=32)
    assert band_basis(512, 32).dim == 22
    params, tokens = random_params(config), np.random.default_rng(0).integers(0, 256, (2, 40))

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.sin(CharLM(config).apply({"params": params}, tokens)))  # type: ignore

    def as_it_is() -> Any:
        traced = jax.make_jaxpr(lambda params: loss(params))(params)  # JAX remembers what it has traced of a function
        return jax.value_and_grad(loss)(params), "f32[24,2,8]" in str(traced)

    plain, is_filled = as_it_is()
    assert not is_filled
    with patched(gpu, "is_for_gpu", lambda: True):
        filled, is_filled = as_it_is()
    assert is_filled
    assert error(filled, plain) < 2e-6
