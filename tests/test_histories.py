from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from route_tables import HISTORY, engaged

from pipeline.recall.histories import Histories, first_of_each_user, hit_share, logged, sampler_of_all
from pipeline.recall.route import Found, Requests
from pipeline.recall.snapshot import Snapshot

ROWS = {"user": pl.Int32, "domain": pl.Int16, "time": pl.Int64}


def known(events: list[tuple[int, int, int]]) -> Snapshot:
    """From user, item and time."""
    history = pl.DataFrame(events, schema=HISTORY, orient="row").sort("user", "time", maintain_order=True)
    return replace(engaged([], [1]), history=history)


def test_what_was_at_the_same_time_is_not_before() -> None:
    taken = known([(1, 7, 10), (1, 8, 20), (1, 9, 20), (2, 5, 0)])
    rows = pl.DataFrame([(1, 0, 20), (1, 0, 21), (3, 1, 99), (2, -1, 0), (0, 0, 99)], schema=ROWS, orient="row")
    found = Histories.before(taken, rows).newest(2, 10)
    assert found.tolist() == [[7, 0], [9, 8], [0, 0], [0, 0], [0, 0]]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 6))),
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 7)), min_size=1),
    st.integers(1, 5),
)
def test_agrees_with_a_loop(events: list[tuple[int, int, int]], rows: list[tuple[int, int]], length: int) -> None:
    taken = known(events)
    asked = pl.DataFrame([(user, 0, time) for user, time in rows], schema=ROWS, orient="row")
    found = Histories.before(taken, asked).newest(length, 8)
    for row, (user, moment) in zip(found.tolist(), rows, strict=True):
        slow = [item for who, item, when in taken.history.iter_rows() if who == user and when < moment]
        slow = [item if item < 8 else 0 for item in slow[::-1][:length]]
        assert row == slow + [0] * (length - len(slow))


def test_a_request_at_the_snapshots_time_reads_what_a_training_row_would() -> None:
    taken = engaged([(1, 3), (2, 4), (1, 5), (1, 6)], [3, 4, 5, 6])
    asked = pl.DataFrame([(2, 0, taken.time), (1, 0, taken.time), (9, 0, taken.time)], schema=ROWS, orient="row")
    online = Histories.of(Requests.of(taken, asked))
    np.testing.assert_array_equal(online.newest(2, 7), Histories.before(taken, asked).newest(2, 7))
    assert online.newest(2, 7).tolist() == [[4, 0], [6, 5], [0, 0]]
    assert online.take(slice(1, 2)).newest(2, 7).tolist() == [[6, 5]]


def test_the_first_engagement_of_each_user() -> None:
    rows = [(1, 5, 0, 10, True), (1, 6, 0, 12, True), (2, 7, 1, 11, False), (2, 8, 1, 13, True), (0, 9, 0, 11, True)]
    schema = {"user": pl.Int32, "item": pl.Int32, "domain": pl.Int16, "time": pl.Int64, "engaged": pl.Boolean}
    taken = replace(engaged([], [1]), interactions=pl.DataFrame(rows, schema=schema, orient="row"))
    assert logged(taken)["item"].to_list() == [5, 6, 8]
    assert first_of_each_user(taken, 11, 10, seed=0).rows() == [(1, 6, 0, 12), (2, 8, 1, 13)]
    assert len(first_of_each_user(taken, 11, 1, seed=0)) == 1


def test_no_row_is_thinned_out() -> None:
    """Item 1 is 99 of 100 rows: the two-tower would leave most of them out."""
    sampler = sampler_of_all(np.array([1] * 99 + [2]), np.arange(1, 50), 50)
    np.testing.assert_allclose(sampler.positive[1:3], [0.99, 0.01])
    assert (sampler.keep == 1).all()


def test_hit_share_on_paper() -> None:
    found = Found(np.array([[1, 2], [3, 4], [5, -1]], np.int32), np.zeros((3, 2), np.float32))
    assert hit_share(found, np.array([2, 9, 5])) == 2 / 3
    assert hit_share(Found(np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32)), np.array([], np.int32)) == 0
