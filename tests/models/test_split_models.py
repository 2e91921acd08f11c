"""Models under a mesh that splits their sequences and heads: the same logits and gradients, no activations gathered."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.models.split_program import CASES

FEW = ["char_lm", "encoder"]
# Split over `sequence` and `data` alone: what heads on several devices add up is as long as a device's part.
LONGER = ["char_lm", "shared_projections"]


def program(run_python: Callable, *arguments: str) -> dict[str, Any]:
    ran = run_python("-m", "tests.models.split_program", *arguments)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def check(run_python: Callable, names: list[str]) -> dict[str, Any]:
    results = program(run_python, *names)
    assert set(results) == set(names)
    for name, result in results.items():
        assert all(x < 5e-6 for x in result["differences"]), (name, result)
        # The encoder's mask is gathered, once, to count positions. Activations are not, but for a character model whose
        # heads are split: those of its queries, keys and values do not lie in one piece.
        gathers = {what for what in result["sent"] if what.startswith(("all-gather", "all-to-all"))}
        assert gathers <= {"all-gather s32"} or name == "char_lm_tensor", (name, result)
        assert result["sent"]["collective-permute f32"] > 0, (name, result)
    return results


@pytest.mark.parametrize("name", [FEW[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FEW[1:])])
def test_split_models_give_what_whole_ones_give(run_python: Callable, name: str) -> None:
    check(run_python, [name])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_other_split_models(run_python: Callable) -> None:
    """And of sequences four times as long as much is sent: edges, global tokens and the parameters' gradients."""
    results = check(run_python, [name for name in CASES if name not in FEW or name in LONGER])
    longer = program(run_python, "--longer", *LONGER)
    for name in LONGER:
        sent = results[name]["sent"]
        ids = sent.get("all-gather s32", 0)
        assert longer[name] == sent | ({"all-gather s32": 4 * ids} if ids else {}), name


# Every line is what is refused; what goes on with a cache may be of any length.
PROGRAM = """
import dataclasses
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from longformer_jax import CharLM, banded_attention
from longformer_jax.errors import InputError
from longformer_jax.models import extend, init_cache
from tests.models.small import SMALL, logits_of, random_params, random_tokens

def refused(what, *arguments):
    try:
        what(*arguments)
    except InputError as error:
        print("-", error)

params, tokens = random_params(SMALL), random_tokens(2, 17)
expected = logits_of(SMALL, params, tokens)
automatic = jax.make_mesh((2,), ("sequence",), axis_types=(AxisType.Auto,))
with jax.set_mesh(automatic):
    cache, found = init_cache(SMALL, 2), []
    for piece in np.split(tokens, (8, 16), axis=1):
        logits, cache = jax.jit(extend, static_argnums=0)(SMALL, params, cache, piece)
        found.append(logits)
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
dropping = CharLM(dataclasses.replace(SMALL, attention_dropout_rate=0.5))

def go_on():
    cache = extend(SMALL, params, init_cache(SMALL, 2), tokens[:, :8])[1]
    rngs = {"dropout": jax.random.key(0)}
    return dropping.apply({"params": params}, tokens[:, 8:], cache=cache, deterministic=False, rngs=rngs)[0]

dropped = go_on()
for axis in ("sequence", "data"):
    with jax.set_mesh(jax.make_mesh((2,), (axis,), axis_types=(AxisType.Auto,))):
        np.testing.assert_allclose(go_on(), dropped, atol=1e-5, err_msg=axis)
assert np.abs(dropped - expected[:, 8:]).max() > 0.01
with jax.set_mesh(automatic):
    refused(logits_of, SMALL, params, tokens)
forward = lambda tokens: logits_of(SMALL, params, tokens)
split = P(None, "sequence")
refused(jax.shard_map(forward, mesh=automatic, in_specs=split, out_specs=split), tokens[:, :16])
with jax.set_mesh(jax.make_mesh((2,), ("data",))):
    refused(logits_of, SMALL, params, tokens)
def laid(x):
    return jax.device_put(x, NamedSharding(jax.make_mesh((2,), ("data",)), P("data")))

refused(logits_of, SMALL, params, laid(tokens))
refused(lambda x: banded_attention(x, x, x, window=2), laid(jnp.ones((2, 9, 1, 4))))
refused(lambda x: banded_attention(x, x, x, window=2, key_mask=laid(jnp.ones((2, 9), bool))), jnp.ones((2, 9, 1, 4)))
"""


@pytest.mark.slow
def test_streams_and_what_is_refused_under_a_mesh(run_python: Callable) -> None:
    ran = run_python("-c", PROGRAM)
    assert ran.returncode == 0, ran.stderr
    assert [line for line in ran.stdout.splitlines() if line.startswith("- ")] == [
        "- the sequence has 17 positions; expected a multiple of 2, the size of the mesh's axis 'sequence'",
        "- the model is inside of jax.shard_map over 'sequence'; expected it outside, as it splits its sequences",
        "- the mesh in use has an Explicit axis 'data'; expected axis_types of AxisType.Auto",
        *(
            f"- {name} is on a mesh with an Explicit axis 'data'; expected axis_types of AxisType.Auto"
            for name in ("tokens", "query", "key_mask")
        ),
    ]
