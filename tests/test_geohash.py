from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import geohash


@pytest.mark.parametrize(
    ("text", "longitude", "latitude"), [("ezs42", -5.603, 42.605), ("u4pruydqqvj", 10.40744, 57.64911)]
)
def test_known_places(text: str, longitude: float, latitude: float) -> None:
    """The two examples that articles on geohashes use."""
    for precision in range(1, len(text) + 1):
        x, y = geohash.decode([text], precision)
        rows = 1 << 5 * precision // 2
        assert x[0] == int((longitude + 180) / 360 * geohash.columns(precision))
        assert y[0] == int((latitude + 90) / 180 * rows)


@given(st.integers(1, 9), st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=5))
def test_back_and_forth(precision: int, cells: list[tuple[int, int]]) -> None:
    columns, rows = geohash.columns(precision), 1 << 5 * precision // 2
    x, y = np.array([(x % columns, y % rows) for x, y in cells], np.int64).reshape(-1, 2).T
    texts = geohash.encode(x, y, precision)
    assert all(len(text) == precision for text in texts)
    again = geohash.decode([f"{text}z" for text in texts], precision)
    np.testing.assert_array_equal(again, (x, y))


def test_what_is_no_geohash_or_too_coarse() -> None:
    x, y = geohash.decode(["", "u33", "berlin", "u33dé", "u33db", "u33dbc", "u33dbA"], 5)
    assert (x >= 0).tolist() == [False, False, False, False, True, True, False]
    assert ((y >= 0) == (x >= 0)).all()
