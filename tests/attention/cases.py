"""The cases every implementation is held to, and how they are run. A new implementation is picked up by itself."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.attention import api, banded_attention
from pallas_kernels.dropout import batch_streams, keep_mask
from tests.attention.oracle import visibility, with_shared

# The kernels are held to the cases under the interpreter here, and on a GPU by `python -m benchmarks.gpu`. The Hopper
# kernels take few head_dims and no float32: tests/pallas_kernels/test_mosaic.py holds them to the cases.
INTERPRETED = "pallas_triton_interpret"
IMPLEMENTATIONS = [
    name for name in api.IMPLEMENTATIONS if name != "pallas_triton" and not name.startswith("pallas_mosaic")
]


SEED = 7  # of dropout


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of `banded_attention`; the arrays follow from the fields.

    Blockwise paths take short or nearly full cases as one block, and walk over others in tiles of 32 to 128 rows:
    cases of 300 rows and more are walks, with several sizes of tiles, and those of many tiles walk in lanes.
    """

    name: str = "drawn"
    B: int = 1
    T: int = 40
    S: int | None = None  # T where None
    H: int = 2
    Dk: int = 8
    Dv: int = 8
    R: int = 0  # of the shared key; 0 where there is none
    shared_by: str = "batch"  # or "heads": the shared key is [S, R] or [B, S, R]
    window: int | tuple[int, int] = 5
    dilation: int | tuple[int, ...] = 1
    causal: bool = False
    key_offset: int = 0
    scale: float | None = None
    dropout_rate: float = 0.0
    masked: bool = False  # a random key_mask, which hides a long run of keys too, and all keys of the last of a batch
    padded: bool = False  # a key_mask that hides a few keys at the begin, as global tokens, and a sixth at the end
    # "shared": one array of packed documents; "long": of two, one of them long; "pair": random ids of queries and keys
    segments: str | None = None
    dead_rows: bool = False  # whether some rows are known to see nothing

    @property
    def num_keys(self) -> int:
        return self.T if self.S is None else self.S

    @property
    def band(self) -> dict:
        return {name: getattr(self, name) for name in ("window", "dilation", "causal", "key_offset")}

    @property
    def limits(self) -> dict:
        """key_mask and segment_ids, where they apply."""
        rng = np.random.default_rng(1)
        limits, B, S = {}, self.B, self.num_keys
        if self.masked:
            mask = rng.random((B, S)) < 0.7
            mask[:, S // 4 : S // 4 + S // 3] = False
            if B > 1:
                mask[-1] = False
            limits["key_mask"] = mask
        if self.padded:
            limits["key_mask"] = np.broadcast_to((np.arange(S) > 4) & (np.arange(S) < 5 * S // 6), (B, S))
        if self.segments == "shared":
            limits["segment_ids"] = np.sort(rng.integers(0, 4, (B, self.T)), axis=1)
        elif self.segments == "long":
            limits["segment_ids"] = np.broadcast_to(np.arange(self.T) >= 7 * self.T // 10, (B, self.T)).astype(int)
        elif self.segments == "extreme":
            limits["segment_ids"] = np.where(np.arange(self.T) < self.T // 2, -(2**31), 2**31 - 1)[None]
        elif self.segments == "pair":
            limits["segment_ids"] = rng.integers(0, 3, (B, self.T)), rng.integers(0, 3, (B, S))
        return limits

    @property
    def options(self) -> dict:
        dropout = {"dropout_rate": self.dropout_rate, "dropout_seed": SEED} if self.dropout_rate else {}
        return {**self.band, **self.limits, **dropout, "scale": self.scale}

    @property
    def keep(self) -> np.ndarray:
        """The dropout mask, [B, H, T, S]."""
        b, h, i, j = jnp.ogrid[: self.B, : self.H, : self.T, : self.num_keys]
        return np.asarray(keep_mask(self.dropout_rate, batch_streams(jnp.int32(SEED), b), h, i, j))

    def attend(self, implementation: str) -> Callable:
        """A function of query, key, value and, where R > 0, the shared key, that returns out and lse."""
        options: dict = {**self.options, "return_lse": True, "implementation": implementation}

        def attend(query, key, value, shared_key=None, **others):
            return banded_attention(query, key, value, shared_key=shared_key, **options | others)

        return attend

    def inputs(self, dtype: str = "float32") -> tuple[jax.Array, ...]:
        rng = np.random.default_rng(2)
        B, S, H = self.B, self.num_keys, self.H
        shapes = [(B, self.T, H, self.Dk + self.R), (B, S, H, self.Dk), (B, S, H, self.Dv)]
        if self.R:
            shapes.append((B, S, self.R) if self.shared_by == "heads" else (S, self.R))
        return tuple(jnp.array(rng.normal(size=shape), dtype) for shape in shapes)

    def cotangents(self, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
        rng = np.random.default_rng(3)
        rows = (self.B, self.T, self.H)
        return jnp.array(rng.normal(size=(*rows, self.Dv)), dtype), jnp.array(rng.normal(size=rows), jnp.float32)


CASES = [
    Case("bidirectional"),
    Case("bidirectional_walk", T=300, window=50),
    Case("causal", causal=True),
    Case("causal_walk", T=300, window=100, causal=True),
    Case("asymmetric", T=300, window=(3, 90)),
    Case("right_only", T=300, window=(0, 70)),
    Case("window_of_int32", window=2**31 - 1),
    Case("causal_pair", T=200, window=(70, 0), causal=True),
    Case("window_0", T=200, window=0),
    Case("window_1_many_tiles", T=700, window=1),
    Case("window_of_many_tiles", T=600, window=290),
    Case("window_beyond_everything", window=1000),
    Case("window_beyond_everything_walk", T=600, window=1000),
    Case("one_row", T=1),
    Case("one_row_no_neighbours", T=1, window=0, H=1, Dk=1, Dv=1),
    Case("whole_tiles", T=384, window=64),
    Case("whole_tiles_and_a_row", T=385, window=30),
    Case("decode", T=1, S=300, window=100, causal=True, key_offset=299),
    Case("few_queries", T=5, S=300, window=40, key_offset=150),
    Case("few_keys", T=300, S=5, window=40, key_offset=-100, dead_rows=True),
    Case("prefill_chunk", T=300, S=420, window=100, causal=True, key_offset=120),
    Case("fewer_keys", T=420, S=300, window=60, dead_rows=True),
    Case("keys_behind", T=300, window=60, key_offset=130, dead_rows=True),
    Case("keys_ahead", T=300, S=200, window=60, key_offset=-130, dead_rows=True),
    Case("keys_out_of_reach", T=300, window=60, key_offset=10_000, dead_rows=True),
    Case("keys_out_of_reach_dilated", T=300, window=6, dilation=(1, 3), key_offset=-10_001, dead_rows=True),
    Case("dilation", T=40, dilation=3),
    Case("dilation_walk", T=402, window=50, dilation=2),
    Case("dilation_not_a_divisor", T=301, S=299, window=30, dilation=4, key_offset=7),
    Case("dilation_per_head", T=300, window=40, dilation=(1, 1, 3, 2), H=4),
    Case("dilation_per_head_not_a_divisor", T=301, S=310, window=(20, 60), dilation=(2, 1, 2), H=3, key_offset=-5),
    Case("dilation_many_tiles", T=1101, window=(10, 14), dilation=(1, 2), masked=True, dead_rows=True),
    Case("dilation_beyond_everything", T=40, dilation=50),
    Case("masked", masked=True, dead_rows=True),
    Case("masked_walk", B=2, T=300, window=20, masked=True, dead_rows=True),
    Case("masked_dilated", B=2, T=300, window=9, dilation=(3, 1), masked=True, dead_rows=True),
    Case("padded", T=700, window=(150, 80), padded=True),
    Case("padded_dilated", T=700, S=650, window=(70, 60), dilation=(1, 2), key_offset=9, padded=True, dead_rows=True),
    Case("segments_extreme", T=200, window=150, segments="extreme"),
    Case("segments", B=2, T=300, window=80, segments="shared"),
    Case("segments_long", T=700, window=(150, 80), segments="long"),
    Case("segments_pair", B=2, T=200, S=330, window=3, segments="pair", key_offset=50, dead_rows=True),
    Case("segments_dilated", B=2, T=299, window=30, dilation=(2, 3), segments="pair"),
    Case("value_narrower", T=200, Dk=16, Dv=3),
    Case("value_wider", T=200, Dk=3, Dv=16),
    Case("head_dim_in_pieces", Dk=112, Dv=40),
    Case("head_dim_beyond_128", Dk=192, Dv=130),
    Case("scale", T=200, scale=1.5),
    Case("scale_negative", T=200, scale=-0.3),
    Case("dropout", B=2, dropout_rate=0.3),
    Case("dropout_walk", B=2, T=300, window=60, dropout_rate=0.3),
    Case("dropout_dilated", B=2, T=301, S=290, window=30, dilation=(3, 1), key_offset=4, dropout_rate=0.5),
    Case("many_tiles", T=2100, window=(40, 10)),
    Case(
        "many_tiles_everything",
        B=2, T=1033, S=1050, H=3, Dk=6, Dv=10, window=(14, 9), dilation=(1, 1, 2), key_offset=5,
        dropout_rate=0.2, masked=True, segments="pair", dead_rows=True,
    ),
    Case(
        "everything",
        B=2, T=310, S=333, H=3, Dk=6, Dv=10, window=(60, 10), dilation=(2, 2, 1), key_offset=11,
        scale=0.7, dropout_rate=0.2, masked=True, segments="pair", dead_rows=True,
    ),
]  # fmt: skip
SHARED_CASES = [
    Case("shared", R=5),
    Case("shared_by_heads", B=2, R=1, shared_by="heads"),
    Case("shared_walk", B=2, T=300, window=100, causal=True, R=12),
    Case("shared_decode", T=1, S=300, window=100, causal=True, key_offset=299, R=16),
    Case("shared_in_pieces", Dk=24, R=40, Dv=16),
    Case("shared_beyond_128", R=130, shared_by="heads"),
    Case("shared_out_of_reach", T=300, window=6, dilation=(1, 3), key_offset=-10_001, R=3, dead_rows=True),
    Case("shared_dilated", B=2, T=402, window=50, dilation=(1, 3, 2, 2), H=4, R=6),
    Case("shared_documents", B=2, T=200, S=330, window=3, segments="pair", key_offset=50, R=4, dead_rows=True),
    Case("shared_many_tiles", T=2100, window=(40, 10), R=7),
    Case(
        "shared_everything",
        B=2, T=310, S=333, H=3, Dk=6, Dv=10, R=9, shared_by="heads", window=(60, 10), dilation=(2, 2, 1), key_offset=11,
        scale=0.7, dropout_rate=0.2, masked=True, segments="pair", dead_rows=True,
    ),
]  # fmt: skip
CASE = {case.name: case for case in (*CASES, *SHARED_CASES)}
# Those that tell most, which are in the fast suite; kernels under an interpreter get the others by `make exhaustive`.
FIRST = {
    "causal_walk", "decode", "everything", "few_keys", "head_dim_in_pieces", "many_tiles_everything", "one_row",
    "padded", "prefill_chunk", "segments_long", "shared_walk", "whole_tiles",
}  # fmt: skip


def with_head_dims(case: Case, head_dims: Sequence[tuple[int, int]], number: int) -> Case:
    """The case with one of some pairs of head_dims, by its number in turn."""
    key_dim, value_dim = head_dims[number % len(head_dims)]
    return dataclasses.replace(case, Dk=key_dim, Dv=value_dim)


ARRAYS = ("out", "lse", "dquery", "dkey", "dvalue")
ALL_ARRAYS = (*ARRAYS, "dshared_key")  # where there is one


def value_and_gradients(attend: Callable) -> Callable:
    """A function of inputs and cotangents that returns the ARRAYS, for attend(*inputs) -> (out, lse)."""

    def run(inputs: tuple, cotangents: tuple) -> tuple:
        outputs, pullback = jax.vjp(attend, *inputs)
        return *outputs, *pullback(cotangents)

    return run


def whole_and_part(
    case: Case, implementation: str, dtype: str = "float32"
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Values and gradients of the whole, cut, and of a part of its arrays, which is told where in it it begins.

    Of both only rows that see nothing before the part have a cotangent.
    """
    first, reach = 16, case.window
    assert isinstance(reach, int) and case.num_keys == case.T and case.dilation == 1
    inputs, cotangents = case.inputs(dtype), case.cotangents(dtype)
    cotangents = tuple(x.at[:, : first + reach].set(0) for x in cotangents)
    own = (slice(1, None), slice(first, None), slice(1, None))
    attend = functools.partial(case.attend(implementation), dropout_origin=(1, 1, first, first))
    whole = value_and_gradients(case.attend(implementation))(inputs, cotangents)
    part = value_and_gradients(attend)(tuple(x[own] for x in inputs), tuple(x[own] for x in cotangents))

    def seen(arrays: Iterable[jax.Array]) -> list[np.ndarray]:
        out, lse, *gradients = (np.asarray(x, np.float32) for x in arrays)
        return [out[:, reach:], lse[:, reach:], *gradients]

    return seen(x[own] for x in whole), seen(part)


def plain_attention(case: Case) -> Callable:
    """What anyone would write down: dense, every step in the inputs' dtype. Its error is the measure of others.

    Rows that see nothing give zeros, lse -inf and no gradients: one NaN would spoil all of dvalue.
    """
    visible = visibility(case.B, case.T, case.num_keys, case.H, **case.band, **case.limits)
    live = visible.any(axis=-1, keepdims=True)
    keep = case.keep if case.dropout_rate else None

    def attend(query, key, value, shared_key=None) -> tuple[jax.Array, jax.Array]:
        if shared_key is not None:
            key = with_shared(key, shared_key)
        scale = query.shape[-1] ** -0.5 if case.scale is None else case.scale
        scores = jnp.einsum("bthd,bshd->bhts", query, key) * scale
        scores = jnp.where(visible | ~live, scores, -jnp.inf)
        weights = jnp.where(live, jax.nn.softmax(scores, axis=-1), 0)
        if keep is not None:
            weights = jnp.where(keep, weights / (1 - case.dropout_rate), 0)
        out = jnp.einsum("bhts,bshd->bthd", weights, value)
        lse = jnp.where(live[..., 0], jax.nn.logsumexp(scores, axis=-1), -jnp.inf)
        return out, lse.transpose(0, 2, 1).astype(jnp.float32)

    return attend


def compiled(attend: Callable, compiler_options: dict | None = None) -> Callable[..., dict[str, np.ndarray]]:
    """A function of inputs and cotangents of out and lse: what attend(*inputs) -> (out, lse) and its gradients are."""
    run = jax.jit(value_and_gradients(attend), compiler_options=compiler_options)

    def named(inputs: tuple, cotangents: tuple) -> dict[str, np.ndarray]:
        return dict(zip(ALL_ARRAYS[: 2 + len(inputs)], map(np.asarray, run(inputs, cotangents)), strict=True))

    return named


def with_gradients(attend: Callable, inputs: tuple, cotangents: tuple) -> dict[str, np.ndarray]:
    """What a function that is compiled for one call gives."""
    return compiled(attend)(inputs, cotangents)


@functools.cache
def reference_with_gradients(case: Case) -> dict[str, np.ndarray]:
    """In float32."""
    return with_gradients(case.attend("reference"), case.inputs(), case.cotangents())


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Equal to float32's rounding: to 16 units in the last place of the largest entry, and -inf in the same places."""
    finite = np.isfinite(expected)
    assert np.array_equal(np.isneginf(found), ~finite), f"{name} is -inf in other places"
    error = np.abs(np.where(finite, found, 0.0) - np.where(finite, expected, 0.0)).max()
    bound = 16 * np.finfo(np.float32).eps * max(1.0, np.abs(expected[finite]).max(initial=0.0))
    assert error <= bound, f"{name} is off by {error:.2e}, allowed are {bound:.2e}"
