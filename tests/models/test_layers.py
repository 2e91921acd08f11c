"""Layers as a loop, or written out where that is faster."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from longformer_jax import CharLM, CharLMConfig, Longformer, LongformerConfig
from longformer_jax.models.parameters import one_token

LAYERS = 3
CHAR_LM = CharLM(CharLMConfig(embed_dim=8, num_layers=LAYERS, num_heads=2, dilated_heads=0, mlp_dim=8, windows=4))
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
