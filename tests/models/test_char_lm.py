"""CharLM against a dense model, in every configuration that computes something else."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from longformer_jax.errors import InputError
from longformer_jax.models import CharLM, CharLMConfig, decode_step, extend, generate, init_cache, prefill
from longformer_jax.models.positions import band_basis
from tests.models import dense
from tests.models.small import (
    RECIPE,
    SMALL,
    error,
    logits_and_grads,
    logits_of,
    random_cotangent,
    random_params,
    random_tokens,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "full_width": {},
    "narrow": {"position_dim": 6},
    "wide": {"position_dim": 80, "dilated_heads": 4},
    "untied": {"tie_embeddings": False, "position_dim": 16},
    "undilated": {"dilated_heads": 0},
    "rotary": {"positions": "rotary"},
    "rotary_untied": {"positions": "rotary", "tie_embeddings": False, "dilated_heads": 1},
    "recipe": RECIPE,
    "rotary_recipe": RECIPE | {"positions": "rotary"},
}


def to_float64(params: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_dense_model(variant: str) -> None:
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    params, tokens = random_params(config), random_tokens(2, 41)
    assert all(np.ptp(leaf) > 0 and np.all(leaf != 0) for leaf in jax.tree.leaves(params))
    assert error(logits_of(config, params, tokens), dense.forward(config, to_float64(params), tokens)) < 3e-6


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full_width", "rotary_untied", "recipe"])
def test_gradients_equal_the_dense_model(variant: str) -> None:
    """Of every parameter; the truth is JAX's own differentiation of the dense model in float64."""
    config = dataclasses.replace(SMALL, **VARIANTS[variant])
    params, tokens = random_params(config), random_tokens(2, 41)
    cotangent = random_cotangent(config, tokens)
    _, grads = logits_and_grads(config, params, tokens, cotangent)
    with jax.enable_x64(True):

        def loss(params: Any) -> jax.Array:
            return (dense.forward(config, params, tokens, xp=jnp) * cotangent.astype(np.float64)).sum()

        truth = jax.jit(jax.grad(loss))(to_float64(params))
    assert jax.tree.leaves(truth)[0].dtype == np.float64
    assert error(grads, truth) < 1e-5


def test_gradients_are_the_slopes_of_the_logits() -> None:
    """Along random directions, by differences of the dense model in float64: no differentiation in the truth."""
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    cotangent = random_cotangent(SMALL, tokens)
    _, grads = logits_and_grads(SMALL, params, tokens, cotangent)
    base, rng = to_float64(params), np.random.default_rng(2)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), base)

        def loss(step: float, direction: Any = direction) -> float:
            moved = jax.tree.map(lambda x, d: x + step * d, base, direction)
            return float((dense.forward(SMALL, moved, tokens) * cotangent).sum())

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        ours = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((np.asarray(g) * d).sum()), grads, direction)))
        size = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(grads)))
        assert abs(ours - slope) < 1e-5 * size


@pytest.mark.slow
def test_implementations_agree_over_many_tiles() -> None:
    """Long enough for the blockwise path to walk, forward and backward, with windows on both sides of a tile."""
    config = dataclasses.replace(SMALL, windows=(20, 150, 150), attention_dropout_rate=0.1, position_dim=8)
    params, tokens = random_params(config), random_tokens(1, 611)
    cotangent = random_cotangent(config, tokens)
    key = jax.random.key(3)  # one mask, whatever the implementation
    results = [
        logits_and_grads(
            dataclasses.replace(config, implementation=name), params, tokens, cotangent, key, deterministic=False
        )
        for name in ("xla", "reference")
    ]
    assert error(results[0][0], results[1][0]) < 1e-5
    assert error(results[0][1], results[1][1]) < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
def test_remat_changes_nothing(dropout_rate: float) -> None:
    config = dataclasses.replace(SMALL, dropout_rate=dropout_rate, attention_dropout_rate=dropout_rate)
    params, tokens = random_params(config), random_tokens(2, 41)
    arguments = params, tokens, random_cotangent(config, tokens), jax.random.key(0)
    plain, remat = (
        logits_and_grads(dataclasses.replace(config, remat=remat), *arguments, deterministic=not dropout_rate)
        for remat in (False, True)
    )
    assert error(remat[0], plain[0]) < 1e-6
    assert error(remat[1], plain[1]) < 1e-5


def test_groups_of_layers_are_a_matter_of_speed() -> None:
    """Windows beyond the text see the same, whether the layers share one scan or have one each."""
    one = dataclasses.replace(SMALL, windows=100, dilations=1)
    split = dataclasses.replace(one, windows=(100, 101, 101))
    assert (len(one.layer_groups), len(split.layer_groups)) == (1, 2)
    params, tokens = random_params(one), random_tokens(2, 41)
    together, apart = (logits_of(config, params, tokens) for config in (one, split))
    assert error(apart, together) < 1e-6


def test_a_character_is_seen_as_far_as_the_windows_reach() -> None:
    """And no further: each layer carries it window * dilation positions on."""
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    changed = tokens.copy()
    changed[0, 10] = (changed[0, 10] + 1) % SMALL.vocab_size
    moved = np.abs(logits_of(SMALL, params, changed) - logits_of(SMALL, params, tokens)).max(-1)
    beyond = 10 + 3 * 1 + 5 * 2 + 5 * 2 + 1
    assert np.all(moved[0, :10] == 0) and np.all(moved[0, beyond:] == 0) and np.all(moved[1] == 0)
    assert np.all(moved[0, 10:beyond] > 1e-6)


def test_any_integer_dtype_and_batch_row_will_do() -> None:
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    logits = logits_of(SMALL, params, tokens)
    row = logits_of(SMALL, params, tokens[1:2].astype(np.uint8))
    np.testing.assert_allclose(row, logits[1:2], rtol=1e-5, atol=1e-5)


# ---- Initialisation and dropout --------------------------------------------------------------------------------------


def test_initial_parameters() -> None:
    """Layers are drawn apart, by the fan in; what leads to the residual stream shrinks with the number of layers."""
    config = dataclasses.replace(SMALL, embed_dim=64, mlp_dim=256, dtype="bfloat16")
    params = jax.jit(CharLM(config).init)(jax.random.key(0), random_tokens(1, 1))["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    layers = params["layers"]
    residual = 0.5 / config.num_layers
    variances = {"qkv": 1 / 64, "mlp_in": 1 / 64, "attention_out": residual / 64, "mlp_out": residual / 256}
    for name, variance in variances.items():
        kernel = np.asarray(layers[name]["kernel"])
        np.testing.assert_allclose(kernel.var(axis=(1, 2)), variance, rtol=0.1)
        assert len({layer.tobytes() for layer in kernel}) == config.num_layers
    np.testing.assert_allclose(np.var(layers["relative"], axis=(1, 2)), 1 / 64, rtol=0.1)
    assert not layers["u"].any() and not layers["v"].any()
    np.testing.assert_allclose(np.std(params["embed"]["embedding"]), 0.02, rtol=0.1)


def test_dropout_is_off_unless_asked_for() -> None:
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    plain = logits_of(SMALL, params, tokens)
    both = dataclasses.replace(SMALL, dropout_rate=0.2, attention_dropout_rate=0.2)
    np.testing.assert_array_equal(logits_of(both, params, tokens), plain)
    for field in ("dropout_rate", "attention_dropout_rate"):
        fields: dict[str, Any] = {field: 0.2}
        config = dataclasses.replace(SMALL, **fields)

        @jax.jit
        def dropped(key: jax.Array, config: CharLMConfig = config) -> Any:
            return CharLM(config).apply({"params": params}, tokens, deterministic=False, rngs={"dropout": key})

        first, again, other = (dropped(jax.random.key(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert error(first, plain) > 1e-2 and error(first, other) > 1e-2


def test_dropout_masks_are_independent() -> None:
    """Between layers, sites, positions and channels: every site adds its own power of two, so the sum tells all."""
    rate, E = 0.25, 64
    config = CharLMConfig(
        vocab_size=2,
        embed_dim=E,
        num_layers=2,
        num_heads=2,
        mlp_dim=4,
        windows=3,
        tie_embeddings=False,
        dropout_rate=rate,
        dtype="float32",
    )
    params = jax.tree.map(jnp.zeros_like, random_params(config))
    params["embed"]["embedding"] += 1.0
    layers = params["layers"]
    # Values are all ones, and so is their attention; its projection and the feed-forward layer give 2, 8 and 4, 16.
    layers["attention_norm"]["bias"] += 1.0
    layers["qkv"]["kernel"] += jnp.repeat(jnp.array([0.0, 0.0, 1 / E]), E)
    layers["attention_out"]["kernel"] += jnp.array([2.0, 8.0])[:, None, None] / E
    layers["mlp_out"]["bias"] += jnp.array([4.0, 16.0])[:, None]

    seen = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "final_norm":
            seen.append(args[0])
        return call(*args, **kwargs)

    tokens = np.zeros((2, 100), np.int32)
    with nn.intercept_methods(record):
        CharLM(config).apply({"params": params}, tokens, deterministic=False, rngs={"dropout": jax.random.key(0)})
    total = np.asarray(seen[0]) * (1 - rate)
    levels = np.rint(total).astype(int)
    np.testing.assert_allclose(total, levels, atol=1e-3)
    masks = (levels[None] >> np.arange(5)[:, None, None, None]) & 1
    tolerance = 4.5 / np.sqrt(masks[0].size)  # in standard deviations
    assert np.abs(masks.mean(axis=(1, 2, 3)) - (1 - rate)).max() < tolerance * np.sqrt(rate * (1 - rate))
    sites = masks.reshape(5, -1)
    neighbours = [np.roll(masks[0], 1, axis).reshape(1, -1) for axis in range(3)]
    correlations = np.corrcoef(np.concatenate([sites, *neighbours]))
    assert np.abs(correlations - np.eye(8)).max() < tolerance


# ---- Low precision ---------------------------------------------------------------------------------------------------


def test_bfloat16_is_as_good_as_a_plain_model() -> None:
    """The yardstick is the dense model with every operation in bfloat16."""
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    truth = dense.forward(SMALL, to_float64(params), tokens)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    plain = jax.jit(lambda params: dense.forward(SMALL, params, tokens, xp=jnp))(half)
    assert plain.dtype == jnp.bfloat16
    ours = logits_of(dataclasses.replace(SMALL, dtype="bfloat16"), params, tokens)
    assert ours.dtype == jnp.float32

    def root_mean_square(logits: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(logits, np.float64) - truth) ** 2)))

    assert 0 < root_mean_square(ours) < root_mean_square(plain)


@pytest.mark.slow
def test_bfloat16_gradients_are_float32_and_close() -> None:
    params, tokens = random_params(SMALL), random_tokens(2, 41)
    cotangent = random_cotangent(SMALL, tokens)
    _, exact = logits_and_grads(SMALL, params, tokens, cotangent)
    _, ours = logits_and_grads(dataclasses.replace(SMALL, dtype="bfloat16"), params, tokens, cotangent)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours))

    def cosine(x: jax.Array, y: jax.Array) -> float:
        return float(jnp.vdot(x, y) / (jnp.linalg.norm(x) * jnp.linalg.norm(y)))

    assert min(jax.tree.leaves(jax.tree.map(cosine, ours, exact))) > 0.99


# ---- Memory ----------------------------------------------------------------------------------------------------------


def array_shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """The shapes of all arrays that a computation makes, in loops and branches too."""
    shapes = set()
    for equation in jaxpr.eqns:
        shapes.update(variable.aval.shape for variable in equation.outvars if hasattr(variable.aval, "shape"))
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        shapes.update(*(array_shapes(getattr(x, "jaxpr", x)) for x in inner if hasattr(x, "eqns")))
    return shapes


def gradient_shapes(config: CharLMConfig, length: int) -> set[tuple[int, ...]]:
    params = random_params(config)

    def loss(params: Any, tokens: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        logits: Any = CharLM(config).apply({"params": params}, tokens, deterministic=False, rngs=rngs)
        return logits.sum()

    return array_shapes(jax.make_jaxpr(jax.grad(loss))(params, np.zeros((1, length), np.int32)).jaxpr)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_nothing_in_the_gradient_grows_faster_than_the_text(implementation: str, remat: bool) -> None:
    T, window = 8192, 512
    config = CharLMConfig(
        vocab_size=64,
        embed_dim=64,
        num_layers=2,
        num_heads=2,
        mlp_dim=128,
        windows=window,
        dilations=(1, 2),
        dilated_heads=1,
        attention_dropout_rate=0.1,
        dropout_rate=0.1,
        remat=remat,
        implementation=implementation,
    )
    largest = max(np.prod(shape, dtype=np.int64) for shape in gradient_shapes(config, T))
    if implementation == "reference":
        assert largest >= config.num_heads * T * T  # dense, and seen to be
    else:
        assert largest < T * window  # not even the scores of one head


def test_remat_keeps_the_attention_and_little_else() -> None:
    """Of the layers of a scan, no hidden layer and no queries or keys are kept for the backward pass."""
    config = dataclasses.replace(SMALL, windows=8, dilations=1, mlp_dim=72, remat=True)
    L, H, D, F, T = config.num_layers, config.num_heads, config.head_dim, config.mlp_dim, 40
    kept, everything = (
        {shape for shape in gradient_shapes(dataclasses.replace(config, remat=remat), T) if shape[:1] == (L,)}
        for remat in (True, False)
    )
    assert {(L, 1, T, H, D), (L, 1, T, H)} <= kept & everything
    sinusoids = 2 * len(band_basis(config.sinusoid_dim, config.layer_groups[0].reach).frequencies)
    hidden, queries = (L, T, F), (L, 1, T, H, D + sinusoids)
    assert {hidden, queries} <= everything and not {hidden, queries} & kept


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embed": None}, "params have embed/embedding missing; expected (29, 32), as CharLM has it"),
        ({"final_norm": {"scale": jnp.ones(3)}}, "params have final_norm/bias missing; expected (32,), as CharLM"),
        ({"layers": {}}, "params have layers/attention_norm/bias missing; expected (3, 32), as CharLM has it"),
    ],
)
def test_parameters_of_another_model(changes: dict[str, Any], sentence: str) -> None:
    params = {name: x for name, x in (random_params(SMALL) | changes).items() if x is not None}
    cache = init_cache(SMALL, 1)
    for call in (
        lambda: CharLM(SMALL).apply({"params": params}, random_tokens(1, 3)),
        lambda: logits_of(SMALL, params, random_tokens(1, 3)),
        lambda: extend(SMALL, params, cache, random_tokens(1, 3)),
        lambda: decode_step(SMALL, params, cache, random_tokens(1)),
        lambda: prefill(SMALL, params, random_tokens(1, 3)),
        lambda: generate(SMALL, params, random_tokens(1, 3), 2),
    ):
        with pytest.raises(InputError, match="^" + re.escape(sentence)):
            call()


def test_what_are_no_parameters() -> None:
    for params, found in ((None, "NoneType"), ({"params": random_params(SMALL)}, "{'params': …}"), (CharLM, "type")):
        with pytest.raises(InputError, match=f"^params is {re.escape(found)}; expected the parameters of the model"):
            extend(SMALL, params, init_cache(SMALL, 1), random_tokens(1, 3))


def test_parameters_of_other_settings() -> None:
    rotary = dataclasses.replace(SMALL, positions="rotary", tie_embeddings=False)
    for config, of, sentence in (
        (rotary, SMALL, "head missing; expected (32, 29), as CharLM has it where config.tie_embeddings is False"),
        (SMALL, rotary, "layers/relative missing; expected (3, 32, 32), as CharLM has it where config.positions is 't"),
        (dataclasses.replace(SMALL, num_layers=2, windows=3, dilations=1), SMALL, "layers/attention_norm/bias (3, 32)"),
        (
            dataclasses.replace(SMALL, qk_norm=True),
            SMALL,
            "layers/key_norm/scale missing; expected (3, 8), as CharLM has it where config.qk_norm is True",
        ),
    ):
        with pytest.raises(InputError, match="^params have " + re.escape(sentence)):
            CharLM(config).apply({"params": random_params(of)}, random_tokens(1, 3))
    logits_of(dataclasses.replace(rotary, tie_embeddings=True), random_params(rotary), random_tokens(1, 3))
