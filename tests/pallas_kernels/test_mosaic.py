"""The Hopper kernels on the op's cases, interpreted: no race, no read beyond an end or of what was not written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mosaic.attention import HEAD_DIMS
from tests.attention.cases import CASES, Case, assert_close, plain_attention, with_gradients

INTERPRETED = "pallas_mosaic_gpu_interpret"


def adapted(case: Case) -> Case:
    """With fewer rows where there are many, and head_dims that the kernels take, all of them in turn."""
    key_dim, value_dim = HEAD_DIMS[[c.name for c in CASES].index(case.name) % len(HEAD_DIMS)]
    num_keys = None if case.S is None else min(case.S, 400)
    return dataclasses.replace(case, Dk=key_dim, Dv=value_dim, T=min(case.T, 200), S=num_keys)


ADAPTED = [adapted(case) for case in CASES]


@pytest.mark.slow
@pytest.mark.parametrize("case", ADAPTED, ids=lambda case: case.name)
def test_errs_little_more_than_plain_attention(case: Case) -> None:
    dtype = "float16" if case.name in ("causal_walk", "segments", "everything") else "bfloat16"
    inputs, cotangents = case.inputs(dtype), case.cotangents(dtype)
    found = with_gradients(case.attend(INTERPRETED), inputs, cotangents)
    plain = with_gradients(plain_attention(case), inputs, cotangents)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, cotangents))
    oracle = with_gradients(case.attend("reference"), *rounded)
    assert_close(found["lse"], oracle["lse"], "lse")  # products of rounded inputs are exact in float32
    for array in ("out", "dquery", "dkey", "dvalue"):
        assert found[array].dtype == plain[array].dtype
        error, plain_error = (np.abs(x[array].astype(np.float32) - oracle[array]) for x in (found, plain))
        # The plain one has NaN where rows see nothing; rounding the result is allowed in any case.
        rounding = float(jnp.finfo(dtype).eps) * np.abs(oracle[array]).max()
        assert error.max() <= max(2 * np.nanmax(plain_error, initial=0), rounding), array
