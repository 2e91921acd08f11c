"""Windows cut into sub-bands: which, and that a model computes the same through them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.char_lm import paper
from longformer_jax.models import extend, init_cache
from longformer_jax.models.positions import BASIS_TOLERANCE, band_basis, frequencies, further
from longformer_jax.models.sub_bands import LARGEST_DIM, cut_window
from tests.models import dense
from tests.models.small import (
    SMALL,
    error,
    logits_and_grads,
    random_cotangent,
    random_params,
)

# Heads so narrow beside so wide a sinusoid that cutting pays in short windows, too. They reach 149 and 298 back.
CUT = dataclasses.replace(
    SMALL, embed_dim=8, mlp_dim=8, num_layers=1, windows=149, dilations=2, dilated_heads=1, position_dim=512
)
TEXT = np.random.default_rng(0).integers(SMALL.vocab_size, size=(1, 360)).astype(np.int32)


def steps_of(heads: Any) -> list[int]:
    return [step for sub in heads.sub_bands for step in range(sub.first, sub.first + sub.window + 1)]


@pytest.mark.parametrize(
    ("windows", "dilations"),
    [(paper.SMALL_WINDOWS, paper.SMALL_DILATIONS), (paper.LARGE_WINDOWS, paper.LARGE_DILATIONS)],
)
def test_every_phase_of_the_paper_fits_the_kernels(windows: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    """And every head sees each step of its window once."""
    for phase, length in enumerate(paper.SEQUENCE_LENGTHS):
        for first_window, dilation in set(zip(windows, dilations, strict=True)):
            window = first_window * 2**phase
            cut = cut_window(512, 64, window, (dilation,) * 2 + (1,) * 6, length - 1)
            assert [head for heads in cut for head in range(heads.start, heads.stop)] == list(range(8))
            for heads in cut:
                assert heads.basis.dim <= LARGEST_DIM
                visible = min(window, (length - 1) // min(heads.dilations)) + 1
                assert steps_of(heads)[:visible] == list(range(visible))
                reach = max(sub.window for sub in heads.sub_bands) * max(heads.dilations)
                assert heads.basis is band_basis(512, min(reach, length - 1))


def test_what_is_not_worth_it_is_not_cut() -> None:
    """Short windows, and narrow sinusoids; few heads of a dilation whose basis is hardly larger."""
    for width, head_dim, window in ((512, 64, 512), (32, 64, 128), (64, 64, 8192), (512, 64, 0)):
        (heads,) = cut_window(width, head_dim, window, (1,) * 8, 32_768)
        assert len(heads.sub_bands) == 1
    assert len(cut_window(32, 64, 64, (2, 1), 32_768)) == 1
    assert len(cut_window(512, 64, 512, (3,) * 2 + (1,) * 6, 32_768)) == 2


@pytest.mark.parametrize("width", [8, 64, 512])
@pytest.mark.parametrize("distance", [1, 3_000, 1_000_000])
def test_distances_further_on_take_the_same_frequencies(width: int, distance: int) -> None:
    basis, near = band_basis(width, 300), np.arange(301)[:, None]
    few, full = (
        np.concatenate([f(x % 2**32 * (2 * np.pi / 2**32)) for f in (np.sin, np.cos)], axis=1)
        for x in (near * basis.frequencies.astype(np.int64), (near + distance) * frequencies(width).astype(np.int64))
    )
    coefficients = further(basis.coefficients, distance, width)
    assert coefficients is not None and coefficients.dtype == np.float32
    # Two errors of the basis meet in a rotation; and coefficients are rounded to float32.
    assert np.abs(few @ coefficients - full).max() <= 1.5 * BASIS_TOLERANCE


@functools.cache
def params_and_logits() -> tuple[Any, np.ndarray]:
    """Parameters, and the logits of the dense model in float64."""
    cut = cut_window(512, 2, 149, (2, 1, 1, 1), TEXT.shape[1] - 1)
    assert [len(heads.sub_bands) for heads in cut] == [2, 2]
    params = random_params(CUT)
    return params, dense.forward(CUT, to_float64(params), TEXT)


def to_float64(params: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def test_a_stream_through_sub_bands_equals_the_dense_model() -> None:
    """From the first character on, when the farther sub-bands hold nothing yet; and far on, once that is forgotten."""
    params, truth = params_and_logits()
    cache, logits = init_cache(CUT, 1), []
    read = jax.jit(extend, static_argnums=0)
    for first in range(0, 360, 60):
        if first == 300:
            cache = cache | {"position": jnp.int32(1_000_000)}
        new, cache = read(CUT, params, cache, TEXT[:, first : first + 60])
        logits.append(new)
    assert error(np.concatenate(logits, axis=1), truth) < 3e-6


@pytest.mark.slow
def test_gradients_through_sub_bands_equal_the_dense_model() -> None:
    """And logits; the truth is JAX's own differentiation of the dense model in float64."""
    params, truth = params_and_logits()
    cotangent = random_cotangent(CUT, TEXT)
    logits, grads = logits_and_grads(CUT, params, TEXT, cotangent)
    assert error(logits, truth) < 3e-6
    with jax.enable_x64(True):

        def loss(params: Any) -> jax.Array:
            return (dense.forward(CUT, params, TEXT, xp=jnp) * cotangent.astype(np.float64)).sum()

        expected = jax.jit(jax.grad(loss))(to_float64(params))
    assert error(grads, expected) < 1e-5


@pytest.mark.slow
def test_attention_dropout_through_sub_bands() -> None:
    """The same masks in every implementation, and remat changes nothing."""
    params, truth = params_and_logits()
    config, cotangent = dataclasses.replace(CUT, attention_dropout_rate=0.2), random_cotangent(CUT, TEXT)
    variants: tuple[dict[str, Any], ...] = ({"implementation": "xla"}, {"implementation": "reference", "remat": True})
    (logits, grads), (expected, expected_grads) = (
        logits_and_grads(
            dataclasses.replace(config, **variant), params, TEXT, cotangent, jax.random.key(3), deterministic=False
        )
        for variant in variants
    )
    assert error(logits, truth) > 1e-2
    assert error(logits, expected) < 1e-5
    assert error(grads, expected_grads) < 5e-5
