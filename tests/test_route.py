"""Requests with their histories, and the answers of routes."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recall import route
from pipeline.recall.route import NOTHING, Found, Requests, best, only, same_for_all
from pipeline.recall.snapshot import Snapshot


def requests(*users: int) -> Requests:
    history = pl.DataFrame({"user": [2, 2, 5], "item": [7, 8, 9], "time": [10, 20, 15]})
    asked = pl.DataFrame({"user": users, "domain": [0] * len(users)})
    return Requests.of(Snapshot(99, history, history, history, store=None), asked)  # type: ignore[arg-type]


def test_histories_are_packed_in_the_order_of_the_requests() -> None:
    asked = requests(5, 0, 2, 5)
    assert asked.offsets.tolist() == [0, 1, 1, 3, 4]
    assert asked.items.tolist() == [9, 7, 8, 9]
    assert asked.times.tolist() == [15, 10, 20, 15]
    assert asked.row.tolist() == [0, 2, 2, 3]
    assert asked.back.tolist() == [1, 2, 1, 1]
    assert asked.time.tolist() == [99] * 4


def test_nobody_asks() -> None:
    asked = requests()
    assert len(asked) == len(asked.items) == 0
    assert best(asked.row, asked.items, asked.items * 1.0, requests=0, k=3).items.shape == (0, 0)


def test_found_as_a_table() -> None:
    found = Found(np.array([[4, 5], [6, NOTHING], [NOTHING, NOTHING]], np.int32), np.full((3, 2), 0.5, np.float32))
    table = found.frame(pl.Series([10, 20, 30], dtype=pl.UInt32))
    assert table.rows() == [(10, 4, 1, 0.5), (10, 5, 2, 0.5), (20, 6, 1, 0.5)]


def test_one_list_for_all() -> None:
    found = same_for_all(np.array([3, 1, 2], np.int32), np.array([3.0, 2, 1], np.float32), requests(2, 5), 2)
    assert found.items.tolist() == [[3, 1], [3, 1]]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 4)), max_size=40, unique_by=lambda x: x[:2]
    )
)
def test_best_agrees_with_sorting_each_request(scored: list[tuple[int, int, int]]) -> None:
    row, item, score = np.array(scored, np.int64).reshape(-1, 3).T
    found = best(row, item, score.astype(np.float64), requests=4, k=3)
    for request in range(4):
        expected = sorted((-value, one) for owner, one, value in scored if owner == request)[:3]
        kept = found.items[request] != NOTHING
        assert found.items[request][kept].tolist() == [one for _, one in expected]
        assert found.scores[request][kept].tolist() == [-value for value, _ in expected]


def test_withdrawn_items_are_left_out_and_the_rest_moves_up() -> None:
    items = np.array([[3, 9, 4], [9, 1, NOTHING], [1, 3, 4]], np.int32)
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.0], [3.0, 2.0, 1.0]], np.float32)
    kept = only(Found(items, scores), np.array([1, 3, 4]))
    assert kept.items.tolist() == [[3, 4, NOTHING], [1, NOTHING, NOTHING], [1, 3, 4]]
    np.testing.assert_allclose(kept.scores, [[0.9, 0.1, 0], [0.7, 0, 0], [3, 2, 1]])
    assert only(Found(items, scores), np.array([], np.int64)).items.tolist() == [[NOTHING] * 3] * 3


def test_numbers_too_wide_for_one_key_are_ordered_alike(monkeypatch):
    columns = np.random.default_rng(0).integers(0, 9, (3, 50))
    columns[2] = np.arange(50)
    expected = np.lexsort(columns[::-1])
    np.testing.assert_equal(route.packed_order(*columns), expected)
    monkeypatch.setattr(route, "KEY_BITS", 3)
    np.testing.assert_equal(route.packed_order(*columns), expected)
