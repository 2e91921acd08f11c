"""Coreference end to end: which spans are mentions, and which of them is the antecedent of which.

Coarse-to-fine and higher-order, after Lee et al. 2018 with the encoder in place of LSTMs (Joshi et al. 2019;
Longformer, section 6.1): spans are scored one by one, the best are kept, a bilinear score keeps some antecedents of
each, and a feed-forward network scores these, again and again with spans that have learnt of their antecedents.

T: tokens; W: tokens of the longest span; K: spans that are kept; C: antecedents that are kept of each; E: the encoder's
numbers of a token; G: numbers of a span, 3 E and a feature of its width.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from longformer_jax.errors import InputError
from longformer_jax.integers import check_number
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.models.checks import check_bool, check_rate, check_size

# Distances in spans up to which a bucket goes, as in Lee et al. 2017: 0 to 4 each, 5-7, 8-15, 16-31, 32-63, the rest.
_DISTANCES = (0, 1, 2, 3, 4, 7, 15, 31, 63)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoreferenceSettings:
    """What the head is like.

    Most defaults are those of Joshi et al. 2019. Their best models have hidden layers of 3,000, no crossing spans, and
    learnt scores of widths and distances of their own, which are not here.

    Attributes:
      max_span_width: W, in tokens.
      spans_per_token: K is T times this, rounded down; of a shorter document, its tokens times this.
      max_antecedents: C.
      hidden_size: of the feed-forward networks.
      feature_size: of the embeddings of width, distance, speaker and genre.
      depth: how often antecedents are scored; once is first-order.
      crossing: whether kept spans may cross each other.
      dropout_rate: of spans' numbers and hidden layers.
      genres: how many there are.
    """

    max_span_width: int = 30
    spans_per_token: float = 0.4
    max_antecedents: int = 50
    hidden_size: int = 1000
    feature_size: int = 20
    depth: int = 2
    crossing: bool = True
    dropout_rate: float = 0.3
    genres: int = 8

    def __post_init__(self) -> None:
        for field in ("max_span_width", "max_antecedents", "hidden_size", "feature_size", "depth", "genres"):
            check_size(field, getattr(self, field))
        if check_number("spans_per_token", self.spans_per_token, "a number above 0") <= 0:
            raise InputError(f"spans_per_token is {self.spans_per_token}; expected a number above 0")
        check_rate("dropout_rate", self.dropout_rate)
        check_bool("crossing", self.crossing)


@flax.struct.dataclass
class Antecedents:
    """What a `FindCoreference` computes.

    Attributes:
      starts, ends: int32 [B, K], first and last tokens of the kept spans, in ascending order.
      kept: booleans [B, K], False for those that only fill up.
      mention_scores: float32 [B, K].
      antecedents: int32 [B, K, C], the numbers of spans before each.
      scores: float32 [B, K, C + 1]: 0 for having no antecedent, then those of antecedents; -inf where there is none.
    """

    starts: jax.Array
    ends: jax.Array
    kept: jax.Array
    mention_scores: jax.Array
    antecedents: jax.Array
    scores: jax.Array


class FindCoreference(nn.Module):
    """The encoder, without global attention, and the head on it."""

    config: LongformerConfig
    settings: CoreferenceSettings

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, document: Mapping[str, jax.Array], **kwargs: Any
    ) -> Antecedents:
        """Finds mentions and their antecedents.

        Args:
          input_ids, attention_mask: [B, T], as of a `Longformer`.
          document: `may_start` and `may_end`, booleans [B, T], the tokens with which words begin and end; `sentence`,
            integers [B, T], of which a span has one; `speaker`, integers [B, T]; `genre`, integers [B].
          **kwargs: of `Longformer`.
        """
        encoder = Longformer(self.config, add_pooling_layer=False, name="longformer")
        x = encoder(input_ids, attention_mask, **kwargs).last_hidden_state.astype(jnp.float32)
        params = _parameters(self, x.shape[-1])
        rate = 0.0 if kwargs.get("deterministic", True) else self.settings.dropout_rate
        keys, axis = jax.random.key(0), None  # of no use without dropout
        if rate:
            keys, axis = jax.random.split(self.make_rng("dropout"), len(x)), 0

        def one(x: jax.Array, mask: jax.Array, document: Mapping[str, jax.Array], key: jax.Array) -> Antecedents:
            return find_antecedents(params, self.settings, x, mask, document, rate, key)

        return jax.vmap(one, in_axes=(0, 0, 0, axis))(x, attention_mask != 0, dict(document), keys)


def _parameters(module: FindCoreference, size: int) -> dict[str, jax.Array]:
    """Of the head. The first layers of the networks are cut into the parts that act on each part of their input."""
    s = module.settings
    H, F, G = s.hidden_size, s.feature_size, 3 * size + s.feature_size
    dense, embedding = nn.initializers.lecun_normal(), nn.initializers.normal(0.02)
    shapes = {
        "attention": (size, 1),
        "width": (s.max_span_width, F),
        "mention_start": (size, H),
        "mention_end": (size, H),
        "mention_head": (size, H),
        "mention_width": (F, H),
        "mention_out": (H, 1),
        "distance": (len(_DISTANCES) + 1, F),
        "speaker": (2, F),
        "genre": (s.genres, F),
        "fine_span": (G, H),
        "fine_antecedent": (G, H),
        "fine_product": (G, H),
        "fine_features": (3 * F, H),
        "fine_out": (H, 1),
        "gate": (2 * G, G),
    }
    biases = {
        "mention_bias": (H,),
        "mention_out_bias": (1,),
        "fine_bias": (H,),
        "fine_out_bias": (1,),
        "gate_bias": (G,),
    }
    embeddings = ("width", "distance", "speaker", "genre")
    inits = {name: embedding if name in embeddings else dense for name in shapes}
    params = {name: module.param(name, inits[name], shape, jnp.float32) for name, shape in shapes.items()}
    # From zero: drawn, it would outweigh all else, and right antecedents would be left out before they are learnt.
    zeros = biases | {"coarse": (G, G)}
    params |= {name: module.param(name, nn.initializers.zeros, shape, jnp.float32) for name, shape in zeros.items()}
    return jax.tree.map(jnp.asarray, params)


def find_antecedents(
    params: Mapping[str, jax.Array],
    settings: CoreferenceSettings,
    x: jax.Array,
    mask: jax.Array,
    document: Mapping[str, jax.Array],
    rate: float,
    key: jax.Array,
) -> Antecedents:
    """As `FindCoreference`, of one document: x float32 [T, E], mask booleans [T], the others without B."""
    T, W = len(x), min(settings.max_span_width, len(x))
    K = max(1, min(int(settings.spans_per_token * T), T * W))
    keys = jax.random.split(key, 4 + settings.depth)
    all_scores = score_spans(params, settings, x, W, rate, keys[0])  # [T, W]
    last = jnp.arange(T)[:, None] + jnp.arange(W)[None]
    end = jnp.minimum(last, T - 1)
    valid = (last < T) & mask[end] & document["may_start"][:, None] & document["may_end"][end]
    valid &= document["sentence"][:, None] == document["sentence"][end]
    number = jnp.maximum(1, (settings.spans_per_token * mask.sum()).astype(jnp.int32))
    index, kept = keep_spans(jnp.where(valid, all_scores, -jnp.inf), K, number, settings.crossing)
    starts, widths = (part.astype(jnp.int32) for part in (index // W, index % W))
    ends = jnp.minimum(starts + widths, T - 1)
    mention_scores = jnp.where(kept, all_scores.reshape(-1)[index], 0.0)

    spans = _dropout(span_numbers(params, x, starts, widths, W), rate, keys[1])  # [K, G]
    projected = _dropout(spans @ params["coarse"], rate, keys[2])
    coarse = mention_scores[:, None] + mention_scores[None] + projected @ spans.T  # [K, K]
    order = jnp.arange(K)
    before = (order[:, None] > order[None]) & kept[:, None] & kept[None]
    C = min(settings.max_antecedents, K)
    coarse, antecedents = lax.top_k(jnp.where(before, coarse, -jnp.inf), C)  # [K, C]

    distance = jnp.searchsorted(jnp.array(_DISTANCES), jnp.maximum(order[:, None] - antecedents, 0))
    speaker = document["speaker"][starts]
    features = jnp.concatenate(
        [
            params["distance"][distance],
            params["speaker"][(speaker[:, None] == speaker[antecedents]).astype(jnp.int32)],
            jnp.broadcast_to(params["genre"][document["genre"]][None, None], (K, C, settings.feature_size)),
        ],
        axis=-1,
    )
    features = _dropout(features, rate, keys[3])
    scores = jnp.zeros((K, C + 1), jnp.float32)
    for step in range(settings.depth):
        if step:
            spans = refined(params, spans, antecedents, scores)
        fine = score_pairs(params, spans, antecedents, features, rate, keys[4 + step])
        scores = jnp.concatenate([jnp.zeros((K, 1), jnp.float32), coarse + fine], axis=1)
    return Antecedents(starts, ends, kept, mention_scores, antecedents.astype(jnp.int32), scores)


def score_spans(
    params: Mapping[str, jax.Array],
    settings: CoreferenceSettings,
    x: jax.Array,
    W: int,
    rate: float,
    key: jax.Array,
) -> jax.Array:
    """float32 [T, W]: how much each span is a mention, by its first token and the number of further ones.

    A network of one hidden layer on the first token, the last one, the attended one and the width. It goes through the
    widths one by one, each [T, hidden_size]: T x W spans are never there at once. Nor are they in the backward pass,
    which keeps what the widths begin with of some at a time: they are in about sqrt(W) runs of as many.
    """
    T = len(x)
    attention = (x @ params["attention"])[:, 0]
    start, end, attended = (x @ params[f"mention_{part}"] for part in ("start", "end", "head"))
    widths = params["width"][:W] @ params["mention_width"] + params["mention_bias"][None]

    @jax.checkpoint
    def step(carry: Any, inputs: Any) -> Any:
        largest, total, weighted = carry
        width, further, key = inputs
        last = jnp.minimum(jnp.arange(T) + further, T - 1)
        new = jnp.maximum(largest, attention[last])
        old, weight = jnp.exp(largest - new), jnp.exp(attention[last] - new)
        total = total * old + weight
        weighted = weighted * old[:, None] + weight[:, None] * attended[last]
        hidden = nn.relu(start + end[last] + weighted / total[:, None] + width[None])
        score = (_dropout(hidden, rate, key) @ params["mention_out"])[:, 0] + params["mention_out_bias"]
        return (new, total, weighted), score

    @jax.checkpoint
    def run(carry: Any, inputs: Any) -> Any:
        return lax.scan(step, carry, inputs)

    length = math.isqrt(W - 1) + 1
    count = -(-W // length) * length  # a few more than W, to fill the last run
    inputs = jnp.pad(widths, ((0, count - W), (0, 0))), jnp.arange(count), jax.random.split(key, count)
    inputs = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), inputs)
    carry = jnp.full(T, -jnp.inf, jnp.float32), jnp.zeros(T, jnp.float32), jnp.zeros_like(attended)
    _, scores = lax.scan(run, carry, inputs)
    return scores.reshape(count, T)[:W].T


def keep_spans(scores: jax.Array, K: int, number: jax.Array, crossing: bool) -> tuple[jax.Array, jax.Array]:
    """The best spans in the order of the text.

    Args:
      scores: float32 [T, W], -inf for what is no span. NaN counts as the best, so that a model that has diverged shows.
      K: how many there is room for.
      number: int32, how many to keep at most.
      crossing: whether they may cross: begin in each other without one being in the other. Where not, the better one is
        kept.

    Returns:
      Their places in the flat scores, int32 [K], ascending, and booleans [K], False for those that only fill up, which
      come last.
    """
    T, W = scores.shape
    found, index = lax.top_k(scores.reshape(-1), min(K, T * W) if crossing else T * W)
    spans = (found != -jnp.inf).sum()
    if crossing:
        count = jnp.minimum(spans, number)
    else:
        index, count = _without_crossing(index, spans, number, K, W)
    order = jnp.argsort(jnp.where(jnp.arange(len(index)) < count, index, T * W))
    order = jnp.pad(order, (0, K - len(order)))
    return index[order].astype(jnp.int32), jnp.arange(K) < count


def _without_crossing(
    index: jax.Array, spans: jax.Array, number: jax.Array, K: int, W: int
) -> tuple[jax.Array, jax.Array]:
    """From the best on, the places of up to `number` spans that cross none before them, [K], and how many they are."""
    T, near = len(index) // W, jnp.arange(W)

    def step(carry: Any) -> Any:
        following, taken, count, longest, earliest = carry
        place = index[following]
        start, end = place // W, place // W + place % W
        inside = lax.dynamic_slice(longest, (start + 1,), (W,))
        before = lax.dynamic_slice(earliest, (start,), (W,))
        crosses = ((near < end - start) & (inside > end)).any() | ((near < end - start) & (before < start)).any()
        longest = longest.at[start].max(jnp.where(crosses, -1, end))
        earliest = earliest.at[end].min(jnp.where(crosses, T, start))
        return following + 1, taken.at[count].set(place), count + ~crosses, longest, earliest

    # Where a span that begins with a token ends at the latest, and where one that ends with it begins.
    longest, earliest = jnp.full(T + W + 1, -1), jnp.full(T + W + 1, T)
    zero = jnp.int32(0)
    carry = zero, jnp.zeros(K, index.dtype), zero, longest, earliest
    _, taken, count, _, _ = lax.while_loop(lambda carry: (carry[0] < spans) & (carry[2] < number), step, carry)
    return taken, count


def span_numbers(
    params: Mapping[str, jax.Array], x: jax.Array, starts: jax.Array, widths: jax.Array, W: int
) -> jax.Array:
    """float32 [K, G]: of each span the first token, the last one, the attended one, and the feature of the width."""
    tokens = jnp.minimum(starts[:, None] + jnp.arange(W)[None], len(x) - 1)  # [K, W]
    attention = (x @ params["attention"])[:, 0][tokens]
    weights = jax.nn.softmax(jnp.where(jnp.arange(W)[None] <= widths[:, None], attention, -jnp.inf))
    attended = _mixed(weights, tokens, x)
    ends = jnp.minimum(starts + widths, len(x) - 1)
    return jnp.concatenate([x[starts], x[ends], attended, params["width"][widths]], axis=-1)


def score_pairs(
    params: Mapping[str, jax.Array],
    spans: jax.Array,
    antecedents: jax.Array,
    features: jax.Array,
    rate: float,
    key: jax.Array,
) -> jax.Array:
    """float32 [K, C]: a network of one hidden layer on a span, an antecedent, their product and features.

    It goes through the antecedents one by one, so that their products, [K, C, G], are never there at once.
    """
    span = spans @ params["fine_span"] + params["fine_bias"][None]
    antecedent = spans @ params["fine_antecedent"]

    @jax.checkpoint
    def step(_: None, inputs: Any) -> Any:
        number, feature, key = inputs  # [K], [K, 3 F]
        hidden = span + antecedent[number] + (spans * spans[number]) @ params["fine_product"]
        hidden = nn.relu(hidden + feature @ params["fine_features"])
        return None, (_dropout(hidden, rate, key) @ params["fine_out"])[:, 0] + params["fine_out_bias"]

    keys = jax.random.split(key, antecedents.shape[1])
    _, scores = lax.scan(step, None, (antecedents.T, features.swapaxes(0, 1), keys))
    return scores.T


def refined(params: Mapping[str, jax.Array], spans: jax.Array, antecedents: jax.Array, scores: jax.Array) -> jax.Array:
    """float32 [K, G]: the spans, mixed by a gate with what their antecedents are expected to be."""
    weights = jax.nn.softmax(scores)
    expected = weights[:, :1] * spans + _mixed(weights[:, 1:], antecedents, spans)
    gate = nn.sigmoid(jnp.concatenate([spans, expected], axis=-1) @ params["gate"] + params["gate_bias"][None])
    return gate * spans + (1 - gate) * expected


def _mixed(weights: jax.Array, numbers: jax.Array, rows: jax.Array) -> jax.Array:
    """float32 [K, G]: sums of rows, [N, G], by their numbers, [K, C], with the weights, [K, C].

    By a matrix [K, N], which is much smaller than the rows, [K, C, G], that the backward pass would else keep.
    """
    K = len(numbers)
    matrix = jnp.zeros((K, len(rows))).at[jnp.arange(K)[:, None], numbers].add(weights)
    return matrix @ rows


def coreference_loss(output: Antecedents, starts: jax.Array, ends: jax.Array, clusters: jax.Array) -> jax.Array:
    """float32 [B]: minus the log-likelihood of any right antecedent, summed over the kept spans (Lee et al. 2017).

    Args:
      output: of `FindCoreference`.
      starts, ends, clusters: int32 [B, M], the tokens and the entity of each mention of the truth; the entity is
        negative where there is none.
    """
    same = (output.starts[:, :, None] == starts[:, None]) & (output.ends[:, :, None] == ends[:, None])
    same &= clusters[:, None] >= 0
    entity = jnp.where(same.any(-1), jnp.take_along_axis(clusters, same.argmax(-1), axis=1), -1)  # [B, K]
    of_antecedent = jax.vmap(lambda entity, index: entity[index])(entity, output.antecedents)
    right = (of_antecedent == entity[..., None]) & (entity[..., None] >= 0) & (output.scores[..., 1:] != -jnp.inf)
    right = jnp.concatenate([~right.any(-1, keepdims=True), right], axis=-1)
    total, wanted = (
        jax.nn.logsumexp(jnp.where(allowed, output.scores, -jnp.inf), axis=-1)
        for allowed in (output.scores != -jnp.inf, right)
    )
    return jnp.where(output.kept, total - wanted, 0.0).sum(-1)


def _dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    if not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
