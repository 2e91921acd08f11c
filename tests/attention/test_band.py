"""The geometry of the band, and what make_band refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.attention.band import Band, HeadGroup, make_band

GOOD: dict = {"window": 1, "dilation": 1, "causal": False, "key_offset": 0, "num_heads": 2}


@pytest.mark.parametrize(
    ("window", "causal", "sides"),
    [
        (3, False, (3, 3)),
        (3, True, (3, 0)),
        (0, False, (0, 0)),
        ((2, 5), False, (2, 5)),
        ([2, 5], False, (2, 5)),
        ((4, 0), True, (4, 0)),
        (np.int64(3), False, (3, 3)),
        (jnp.int32(3), True, (3, 0)),
    ],
)
def test_window(window, causal: bool, sides: tuple[int, int]) -> None:
    assert make_band(window, 1, causal, 0, 2) == Band(*sides, dilation=(1, 1), key_offset=0)


PER_HEAD = (2, 2, 3), [2, 2, 3], [np.int32(2), 2, np.uint8(3)], np.array([2, 2, 3])


@pytest.mark.parametrize("dilation", PER_HEAD, ids=repr)
def test_dilation_for_each_head(dilation) -> None:
    assert make_band(1, dilation, False, 0, 3) == Band(1, 1, (2, 2, 3), 0)


def test_one_dilation_for_all_heads() -> None:
    assert make_band(1, 4, False, -7, 3) == Band(1, 1, (4, 4, 4), -7)


def test_a_band_is_plain_integers() -> None:
    """Hashable and comparable, whatever the numbers came as."""
    numbers: dict = {"window": (np.int64(1), jnp.int32(2)), "dilation": [np.int8(1), 2], "key_offset": np.int16(5)}
    band = make_band(**GOOD | numbers)
    assert {type(x) for x in (band.left, band.right, *band.dilation, band.key_offset)} == {int}
    assert hash(band) == hash(Band(1, 2, (1, 2), 5))


@pytest.mark.parametrize(
    ("dilation", "groups"),
    [
        ((1,), [(1, 0, 1)]),
        ((1, 1, 1), [(1, 0, 3)]),
        ((1, 1, 2), [(1, 0, 2), (2, 2, 3)]),
        ((2, 1, 1, 2), [(2, 0, 1), (1, 1, 3), (2, 3, 4)]),
    ],
)
def test_head_groups_are_runs_of_equal_dilation(dilation: tuple[int, ...], groups: list[tuple[int, int, int]]) -> None:
    assert Band(1, 1, dilation).head_groups == tuple(HeadGroup(*group) for group in groups)


BAD_WINDOW = r"expected an integer >= 0 or a pair \(left, right\) of them$"
BAD_DILATION = r"expected an integer >= 1, or one for each head$"
BAD_OFFSET = r"expected an integer known when the call is traced$"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"window": -1}, rf"^window is -1; {BAD_WINDOW}"),
        ({"window": 2.0}, rf"^window is 2\.0; {BAD_WINDOW}"),
        ({"window": True}, rf"^window is True; {BAD_WINDOW}"),
        ({"window": None}, rf"^window is None; {BAD_WINDOW}"),
        ({"window": "512"}, rf"^window is '512'; {BAD_WINDOW}"),
        ({"window": (1, 2, 3)}, rf"^window is \(1, 2, 3\); {BAD_WINDOW}"),
        ({"window": (3, -2)}, rf"^window is \(3, -2\); {BAD_WINDOW}"),
        ({"window": (3, 0.5)}, rf"^window is \(3, 0\.5\); {BAD_WINDOW}"),
        ({"window": np.array(1.7)}, rf"^window is array\(1\.7\); {BAD_WINDOW}"),
        ({"window": jnp.array(1.7)}, rf"^window is Array\(1\.7.*; {BAD_WINDOW}"),
        ({"window": (4, 2), "causal": True}, r"^window is \(4, 2\), which looks 2 steps ahead; .*expects \(left, 0\)$"),
        ({"dilation": 0}, rf"^dilation is 0; {BAD_DILATION}"),
        ({"dilation": 1.5}, rf"^dilation is 1\.5; {BAD_DILATION}"),
        ({"dilation": True}, rf"^dilation is True; {BAD_DILATION}"),
        ({"dilation": (1, 0)}, rf"^dilation is \(1, 0\); {BAD_DILATION}"),
        ({"dilation": np.array([1.0, 2.0])}, rf"^dilation is array\(\[1\., 2\.\]\); {BAD_DILATION}"),
        ({"dilation": (1, 2, 3)}, r"^dilation has 3 entries; expected one for each of the 2 heads$"),
        ({"dilation": ()}, r"^dilation has 0 entries; expected one for each of the 2 heads$"),
        ({"key_offset": 0.0}, rf"^key_offset is 0\.0; {BAD_OFFSET}"),
        ({"key_offset": None}, rf"^key_offset is None; {BAD_OFFSET}"),
        ({"key_offset": np.array([4])}, rf"^key_offset is array\(\[4\]\); {BAD_OFFSET}"),
    ],
)  # fmt: skip
def test_refusals(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make_band(**GOOD | arguments)


@pytest.mark.parametrize("name", ["window", "dilation", "key_offset"])
def test_traced_numbers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*; expected an integer"):
        jax.jit(lambda x: make_band(**GOOD | {name: x}) and None)(1)
