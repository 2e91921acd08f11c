"""Models under a mesh that splits their sequences and heads: the same logits and gradients, no activations gathered."""

import json
from collections.abc import Callable

import pytest

from tests.models.split_program import CASES

FEW = ["char_lm", "encoder"]


def check(run_python: Callable, names: list[str]) -> None:
    ran = run_python("-m", "tests.models.split_program", *names)
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads(ran.stdout.splitlines()[-1])
    assert set(results) == set(names)
    for name, result in results.items():
        assert max(result["differences"]) < 5e-6, (name, result)
        assert not result["gathered"], (name, result)


def test_split_models_give_what_whole_ones_give(run_python: Callable) -> None:
    check(run_python, FEW)


@pytest.mark.slow
def test_other_split_models(run_python: Callable) -> None:
    check(run_python, [name for name in CASES if name not in FEW])


def test_sequence_that_the_mesh_does_not_divide(run_python: Callable) -> None:
    program = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
from longformer_jax import CharLM
from tests.models.small import SMALL
with jax.set_mesh(jax.make_mesh((2,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))):
    CharLM(SMALL).init_with_output(jax.random.key(0), jnp.zeros((1, 9), int))
"""
    ran = run_python("-c", program)
    message = "the sequence has 9 positions; expected a multiple of 2, the size of the mesh's axis 'sequence'"
    assert f"longformer_jax.errors.InputError: {message}\n" in ran.stderr
