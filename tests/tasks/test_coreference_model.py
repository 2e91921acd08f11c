"""The parts of the coreference model against plain NumPy, span by span and pair by pair."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, Longformer, LongformerConfig
from longformer_jax.tasks.coreference import Coreference
from longformer_jax.tasks.coreference_model import (
    Antecedents,
    CoreferenceSettings,
    FindCoreference,
    coreference_loss,
    find_antecedents,
    keep_spans,
)

SETTINGS = CoreferenceSettings(
    max_span_width=4, spans_per_token=0.5, max_antecedents=3, hidden_size=6, feature_size=5, dropout_rate=0.0, genres=3
)
T, E, B = 14, 8, 2
MODEL = LongformerConfig(
    vocab_size=40,
    hidden_size=E,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=T + 2,
    attention_window=4,
    initializer_range=0.5,
)


def inputs(length: int = T) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    starts = rng.random((B, length)) < 0.7
    document = {
        "may_start": starts,
        "may_end": np.concatenate([starts[:, 1:], np.ones((B, 1), bool)], axis=1),
        "sentence": np.repeat(np.arange(length)[None] // 6, B, axis=0).clip(max=1),
        "speaker": rng.integers(2, size=(B, length)),
        "genre": np.array([1, 2]),
    }
    mask = np.ones((B, length), bool)
    mask[1, length - 3 :] = False
    return {"input_ids": rng.integers(3, 40, size=(B, length)), "attention_mask": mask, "document": document}


@pytest.fixture(scope="module")
def params() -> Any:
    init = FindCoreference(MODEL, SETTINGS).init
    drawn = jax.eval_shape(lambda: init(jax.random.key(0), **inputs())["params"])
    leaves, tree = jax.tree.flatten(drawn)
    rng = np.random.default_rng(1)  # the biases, too, are no zeros
    return jax.tree.unflatten(tree, [np.asarray(rng.normal(size=x.shape) * 0.4, np.float32) for x in leaves])


def plain(p: Any, settings: CoreferenceSettings, x: np.ndarray, mask: np.ndarray, document: Any) -> dict[str, Any]:
    """What `find_antecedents` computes, in float64, with loops."""
    p = {name: np.asarray(value, np.float64) for name, value in p.items() if name != "longformer"}
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    length = int(mask.sum())

    def numbers(start: int, end: int) -> np.ndarray:
        weights = np.exp(x[start : end + 1] @ p["attention"][:, 0])
        attended = weights @ x[start : end + 1] / weights.sum()
        return np.concatenate([x[start], x[end], attended, p["width"][end - start]])

    spans = []
    layer = np.concatenate([p[f"mention_{part}"] for part in ("start", "end", "head", "width")])
    for start in range(length):
        for end in range(start, min(start + settings.max_span_width, length)):
            if not (document["may_start"][start] and document["may_end"][end]):
                continue
            if document["sentence"][start] == document["sentence"][end]:
                g = numbers(start, end)
                score = relu(g @ layer + p["mention_bias"]) @ p["mention_out"][:, 0] + p["mention_out_bias"][0]
                spans.append((score, start, end, g))
    kept: list[Any] = []
    for span in sorted(spans, key=lambda span: -span[0]):
        crosses = any(a < span[1] <= b < span[2] or span[1] < a <= span[2] < b for _, a, b, _ in kept)
        if len(kept) < max(1, int(settings.spans_per_token * length)) and (settings.crossing or not crosses):
            kept.append(span)
    kept.sort(key=lambda span: span[1:3])
    g = np.array([span[3] for span in kept])
    scores = np.array([span[0] for span in kept])
    pairs = []
    for i in range(len(kept)):
        coarse = [(scores[i] + scores[j] + g[i] @ p["coarse"] @ g[j], j) for j in range(i)]
        pairs.append(sorted(coarse, reverse=True)[: settings.max_antecedents])
    layer = np.concatenate([p[f"fine_{part}"] for part in ("span", "antecedent", "product", "features")])
    result: list[dict[int, float]] = []
    for step in range(settings.depth):
        if step:
            new = []
            for i, found in enumerate(result):
                weights = np.exp([0.0, *found.values()])
                weights /= weights.sum()
                expected = weights @ np.array([g[i], *(g[j] for j in found)])
                gate = 1 / (1 + np.exp(-(np.concatenate([g[i], expected]) @ p["gate"] + p["gate_bias"])))
                new.append(gate * g[i] + (1 - gate) * expected)
            g = np.array(new)
        result = []
        for i, found in enumerate(pairs):
            scored = {}
            for coarse, j in found:
                bucket = sum(i - j > limit for limit in (0, 1, 2, 3, 4, 7, 15, 31, 63))
                same = int(document["speaker"][kept[i][1]] == document["speaker"][kept[j][1]])
                features = [p["distance"][bucket], p["speaker"][same], p["genre"][document["genre"]]]
                hidden = relu(np.concatenate([g[i], g[j], g[i] * g[j], *features]) @ layer + p["fine_bias"])
                scored[j] = coarse + hidden @ p["fine_out"][:, 0] + p["fine_out_bias"][0]
            result.append(scored)
    return {"spans": [span[1:3] for span in kept], "mention_scores": scores, "pairs": result}


def of_document(number: int, length: int = T) -> dict[str, Any]:
    return {name: value[number] for name, value in inputs(length)["document"].items()}


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, T),
        ({"crossing": False, "depth": 3, "max_span_width": 6}, T),
        ({"depth": 1}, T),
        ({"max_antecedents": 80}, 160),  # antecedents at all distances
    ],
)
def test_every_part_is_as_in_numpy(params: Any, changes: dict[str, Any], length: int) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    rng = np.random.default_rng(3)
    head = {name: jnp.asarray(value) for name, value in params.items() if name != "longformer"}
    head["width"] = jnp.asarray(rng.normal(size=(settings.max_span_width, settings.feature_size)), jnp.float32)
    key = jax.random.key(0)
    find = jax.jit(lambda x, mask, document: find_antecedents(head, settings, x, mask, document, 0.0, key))
    for number in range(B):
        x = rng.normal(size=(length, E)).astype(np.float32)
        mask, document = inputs(length)["attention_mask"][number], of_document(number, length)
        found = find(x, mask, document)
        expected = plain(head, settings, x.astype(np.float64), mask, document)
        count = int(found.kept.sum())
        assert [(int(a), int(b)) for a, b in zip(found.starts, found.ends, strict=True)][:count] == expected["spans"]
        assert found.kept[:count].all() and len(found.kept) == length // 2
        np.testing.assert_allclose(found.mention_scores[:count], expected["mention_scores"], rtol=1e-4, atol=1e-4)
        for i, wanted in enumerate(expected["pairs"]):
            scores = {
                int(j): float(score)
                for j, score in zip(found.antecedents[i], found.scores[i, 1:], strict=True)
                if score > -np.inf
            }
            assert scores.keys() == wanted.keys()
            for j, score in wanted.items():
                assert scores[j] == pytest.approx(score, rel=2e-4, abs=2e-4)
            assert found.scores[i, 0] == 0


@pytest.mark.parametrize("number", [1, 5, 6, 20])
def test_spans_that_do_not_cross(number: int) -> None:
    """However many have to be passed over: among 35 spans of 9 tokens, 17 at most do not cross."""
    rng = np.random.default_rng(0)
    keep = jax.jit(lambda scores: keep_spans(scores, max(number, 6), jnp.int32(number), crossing=False))
    for _ in range(20):
        scores = rng.normal(size=(9, 5)).astype(np.float32)
        scores[np.arange(9)[:, None] + np.arange(5)[None] >= 9] = -np.inf
        index, kept = keep(jnp.asarray(scores))
        found = [(int(i) // 5, int(i) // 5 + int(i) % 5) for i in index[kept]]
        taken: list[tuple[int, int]] = []
        for place in np.argsort(-scores.reshape(-1)):
            a, b = place // 5, place // 5 + place % 5
            crosses = any(c < a <= d < b or a < c <= b < d for c, d in taken)
            if scores.reshape(-1)[place] > -np.inf and not crosses and len(taken) < number:
                taken.append((int(a), int(b)))
        assert found == sorted(taken)


def plain_loss(found: dict[str, Any], entities: dict[tuple[int, int], int]) -> float:
    """Minus the log-likelihood of any right antecedent, given what `plain` returns and the entities of mentions."""
    mine = [entities.get(span) for span in found["spans"]]
    total = 0.0
    for i, scores in enumerate(found["pairs"]):
        right = [score for j, score in scores.items() if mine[i] is not None and mine[j] == mine[i]]
        wanted = np.exp(right).sum() if right else 1.0
        total -= np.log(wanted / (1.0 + np.exp([*scores.values()]).sum()))
    return total


def test_loss_and_gradients(params: Any) -> None:
    """Against the plain model and its differences in float64: of every parameter, through the encoder as well."""
    model, encoder = FindCoreference(MODEL, SETTINGS), Longformer(MODEL, add_pooling_layer=False)
    ids, mask = inputs()["input_ids"], inputs()["attention_mask"]
    head = {name: np.asarray(value, np.float64) for name, value in params.items() if name != "longformer"}
    hidden, into_encoder = jax.vjp(
        jax.jit(lambda p: encoder.apply({"params": p}, ids, mask).last_hidden_state), params["longformer"]
    )
    x = np.asarray(hidden, np.float64)
    first, second = (plain(head, SETTINGS, x[n], mask[n], of_document(n))["spans"] for n in range(B))
    # Of the second document one mention is none of the kept spans.
    mentions = [{first[0]: 0, first[2]: 0, first[3]: 1, first[4]: 0}, {second[1]: 0, (13, 13): 0}]
    starts, ends, clusters = np.full((3, B, 5), -1)
    for n, i in itertools.product(range(B), range(5)):
        if i < len(mentions[n]):
            (starts[n, i], ends[n, i]), clusters[n, i] = [*mentions[n].items()][i]

    def expected(n: int, head: Any, x: np.ndarray) -> float:
        return plain_loss(plain(head, SETTINGS, x, mask[n], of_document(n)), mentions[n])

    def slope(loss: Callable[[np.ndarray], float], at: np.ndarray, direction: np.ndarray) -> float:
        return (loss(at + 1e-6 * direction) - loss(at - 1e-6 * direction)) / 2e-6

    def loss(params: Any) -> jax.Array:
        return coreference_loss(model.apply({"params": params}, **inputs()), starts, ends, clusters)

    found, gradient = jax.jit(lambda params: (loss(params), jax.grad(lambda p: loss(p).sum())(params)))(params)
    np.testing.assert_allclose(found, [expected(n, head, x[n]) for n in range(B)], rtol=1e-4)
    rng = np.random.default_rng(5)
    for name, value in head.items():
        directions = rng.normal(size=(8, *value.shape))

        def total(value: np.ndarray, name: str = name) -> float:
            return sum(expected(n, head | {name: value}, x[n]) for n in range(B))

        wanted = np.array([slope(total, value, direction) for direction in directions])
        slopes = [np.vdot(gradient[name], direction) for direction in directions]
        np.testing.assert_allclose(slopes, wanted, rtol=1e-3, atol=3e-4 * np.abs(wanted).max(), err_msg=name)
        assert np.abs(wanted).max() > 1e-3, name
    units = np.eye(T * E).reshape(-1, T, E)
    into_x = [[slope(functools.partial(expected, n, head), x[n], d) for d in units] for n in range(B)]
    wanted = into_encoder(np.reshape(into_x, x.shape).astype(np.float32))[0]
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, (gradient["longformer"], wanted)), strict=True)
    for (path, one), (_, other) in leaves:
        tolerance = 1e-6 + 3e-4 * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_no_array_of_all_spans() -> None:
    """At base size neither pass has the hidden layers of all widths, nor the tokens or antecedents of all spans.

    4,096 tokens x 30 widths x 1,000 units are 491 MB; 1,638 spans x 50 antecedents x 2,324 numbers 761 MB.
    """
    settings, length = CoreferenceSettings(), 4096
    module = FindCoreference(LongformerConfig(), settings)
    init = functools.partial(module.init, jax.random.key(0))
    document: dict[str, Any] = {name: jnp.zeros((1, length), bool) for name in ("may_start", "may_end")}
    document |= {name: jnp.zeros((1, length), jnp.int32) for name in ("sentence", "speaker")}
    document["genre"] = jnp.zeros(1, jnp.int32)
    ids = jnp.zeros((1, length), jnp.int32)
    params = jax.eval_shape(init, ids, ids, document)["params"]
    of_one = {name: value[0] for name, value in document.items()}

    def loss(params: Any, x: jax.Array) -> jax.Array:
        mask = jnp.ones(length, bool)
        output = find_antecedents(params, settings, x, mask, of_one, settings.dropout_rate, jax.random.key(0))
        none = jnp.full((1, length), -1)
        return coreference_loss(jax.tree.map(lambda array: array[None], output), none, none, none).sum()

    head = {name: value for name, value in params.items() if name != "longformer"}
    x = jax.ShapeDtypeStruct((length, 768), jnp.float32)
    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(head, x)
    sizes = sorted(set(array_sizes(program.jaxpr)))
    # What the widths begin with, six at a time.
    assert sizes[-1] == 6 * length * settings.hidden_size


def array_sizes(jaxpr: Any) -> Iterator[int]:
    """How many numbers each array of a program has, of those inside, too."""
    for equation in jaxpr.eqns:
        yield from (x.aval.size for x in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from array_sizes(getattr(inner, "jaxpr", inner))


def test_dropout_and_padding(params: Any) -> None:
    settings = dataclasses.replace(SETTINGS, dropout_rate=0.5)
    encoder = dataclasses.replace(MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = FindCoreference(encoder, settings)

    @jax.jit
    def apply(ids: Any, key: Any) -> Antecedents:
        output: Any = model.apply(
            {"params": params}, **(inputs() | {"input_ids": ids}), deterministic=False, rngs={"dropout": key}
        )
        return output

    ids = inputs()["input_ids"]
    one, same, other = (apply(ids, jax.random.key(seed)).mention_scores for seed in (0, 0, 1))
    assert (one == same).all() and not (one == other).all()
    changed = ids.copy()
    changed[1, 11:] = 7  # padding
    np.testing.assert_array_equal(apply(ids, jax.random.key(0)).scores[1], apply(changed, jax.random.key(0)).scores[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0; expected an integer >= 1"),
        ({"spans_per_token": 0.0}, "spans_per_token is 0.0; expected a number above 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a number in [0, 1)"),
        ({"dropout_rate": None}, "dropout_rate is None; expected a number in [0, 1)"),
        ({"spans_per_token": "0.4"}, "spans_per_token is '0.4'; expected a number above 0"),
        ({"crossing": "no"}, "crossing is 'no'; expected True or False"),
        ({"max_span_width": 10**9}, "max_span_width is 1000000000; expected at most 16777216"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        CoreferenceSettings(**changes)


def test_there_is_a_number_for_every_genre() -> None:
    with pytest.raises(InputError, match="^genres is 7; expected at least 8, OntoNotes' and one for all others"):
        Coreference(genres=7)
