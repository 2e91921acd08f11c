"""The parts of the coreference model against plain NumPy, span by span and pair by pair."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, LongformerConfig
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


def inputs() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    starts = rng.random((B, T)) < 0.7
    document = {
        "may_start": starts,
        "may_end": np.concatenate([starts[:, 1:], np.ones((B, 1), bool)], axis=1),
        "sentence": np.repeat([[0] * 6 + [1] * 8], B, axis=0),
        "speaker": rng.integers(2, size=(B, T)),
        "genre": np.array([1, 2]),
    }
    mask = np.ones((B, T), bool)
    mask[1, 11:] = False
    return {"input_ids": rng.integers(3, 40, size=(B, T)), "attention_mask": mask, "document": document}


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


def of_document(number: int) -> dict[str, Any]:
    return {name: value[number] for name, value in inputs()["document"].items()}


@pytest.mark.parametrize("changes", [{}, {"crossing": False, "depth": 3, "max_span_width": 6}, {"depth": 1}])
def test_every_part_is_as_in_numpy(params: Any, changes: dict[str, Any]) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    rng = np.random.default_rng(3)
    head = {name: jnp.asarray(value) for name, value in params.items() if name != "longformer"}
    head["width"] = jnp.asarray(rng.normal(size=(settings.max_span_width, settings.feature_size)), jnp.float32)
    key = jax.random.key(0)
    find = jax.jit(lambda x, mask, document: find_antecedents(head, settings, x, mask, document, 0.0, key))
    for number in range(B):
        x = rng.normal(size=(T, E)).astype(np.float32)
        mask, document = inputs()["attention_mask"][number], of_document(number)
        found = find(x, mask, document)
        expected = plain(head, settings, x.astype(np.float64), mask, document)
        count = int(found.kept.sum())
        assert [(int(a), int(b)) for a, b in zip(found.starts, found.ends, strict=True)][:count] == expected["spans"]
        assert found.kept[:count].all() and len(found.kept) == T // 2
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


def test_spans_that_do_not_cross() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.normal(size=(9, 5)).astype(np.float32)
        scores[np.arange(9)[:, None] + np.arange(5)[None] >= 9] = -np.inf
        index, kept = keep_spans(jnp.asarray(scores), 6, jnp.int32(5), crossing=False)
        found = [(int(i) // 5, int(i) // 5 + int(i) % 5) for i in index[kept]]
        taken: list[tuple[int, int]] = []
        for place in np.argsort(-scores.reshape(-1)):
            a, b = place // 5, place // 5 + place % 5
            crosses = any(c < a <= d < b or a < c <= b < d for c, d in taken)
            if scores.reshape(-1)[place] > -np.inf and not crosses and len(taken) < 5:
                taken.append((int(a), int(b)))
        assert found == sorted(taken)


def test_loss_and_gradients(params: Any) -> None:
    """The loss written out; its gradient against differences."""
    model = FindCoreference(MODEL, SETTINGS)
    apply = jax.jit(lambda params: model.apply({"params": params}, **inputs()))
    output: Any = apply(params)
    spans = [[(int(a), int(b)) for a, b in zip(output.starts[n], output.ends[n], strict=True)] for n in range(B)]
    # Of the second document one mention is none of the kept spans.
    first = [(*spans[0][i], cluster) for i, cluster in ((0, 0), (2, 0), (3, 1), (4, 0))]
    mentions = [first, [(*spans[1][1], 0), (13, 13, 0)]]
    starts, ends, clusters = np.full((3, B, 5), -1)
    for n, i in itertools.product(range(B), range(5)):
        if i < len(mentions[n]):
            starts[n, i], ends[n, i], clusters[n, i] = mentions[n][i]
    expected = []
    for n in range(B):
        entity = {(a, b): cluster for a, b, cluster in mentions[n]}
        total = 0.0
        for i in range(int(output.kept[n].sum())):
            p = np.exp(np.asarray(output.scores[n, i], np.float64))
            p /= p.sum()
            mine = entity.get(spans[n][i])
            right = [
                p[1 + c]
                for c, j in enumerate(output.antecedents[n, i])
                if p[1 + c] > 0 and mine is not None and entity.get(spans[n][int(j)]) == mine
            ]
            total -= np.log(sum(right) if right else p[0])
        expected.append(total)
    loss = jax.jit(lambda params: coreference_loss(model.apply({"params": params}, **inputs()), starts, ends, clusters))
    np.testing.assert_allclose(loss(params), expected, rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda params: loss(params).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda p: np.asarray(rng.normal(size=p.shape), np.float32), params)
    slope = sum(float(np.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    step = 2e-4
    high, low = (loss(jax.tree.map(lambda p, d, s=s: p + s * step * d, params, direction)).sum() for s in (1, -1))
    assert (high - low) / (2 * step) == pytest.approx(slope, rel=0.02)


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
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; expected a number from 0, below 1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        CoreferenceSettings(**changes)
