from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import statistics, timeline
from pipeline.features.statistics import Counter

WINDOWS = ("1m", "1h", "all")
MINUTE = 60_000_000
EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 90), st.integers(0, 1), st.integers(0, 1)), max_size=40)
QUESTIONS = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 100)), max_size=20)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "BLOCK", 3)
        yield


def arrays(events):
    table = np.array(events, np.int64).reshape(-1, 4)
    return table[:, 0], table[:, 1] * MINUTE, table[:, 2:]


def slow_twin(events, key, minute, window):
    length = {"1m": 1, "1h": 60, "all": 10**9}[window]
    chosen = [event[2:] for event in events if event[0] == key and minute - length <= event[1] < minute]
    return [sum(event[0] for event in chosen), sum(event[1] for event in chosen)]


@given(EVENTS, QUESTIONS)
def test_counts_equal_plain_loops(events, questions):
    keys = np.array([key for key, _ in questions], np.int64)
    minutes = np.array([minute for _, minute in questions], np.int64)
    counts = statistics.as_of(Counter.of(*arrays(events)), keys, minutes * MINUTE, WINDOWS)
    expected = [[slow_twin(events, key, minute, window) for window in WINDOWS] for key, minute in questions]
    np.testing.assert_array_equal(counts, np.array(expected, np.int64).reshape(-1, 3, 2))


@given(EVENTS, st.integers(0, 90), st.randoms())
def test_neither_the_future_nor_the_order_of_rows_matters(events, moment, random):
    past = [event for event in events if event[1] < moment]
    shuffled = random.sample(events, len(events))
    keys, times = np.arange(5), np.full(5, moment * MINUTE)
    whole, cut, mixed = (
        statistics.as_of(Counter.of(*arrays(one)), keys, times, WINDOWS) for one in (events, past, shuffled)
    )
    np.testing.assert_array_equal(whole, cut)
    np.testing.assert_array_equal(whole, mixed)


def test_equal_timestamps_never_see_each_other():
    keys, times = np.zeros(4, np.int64), np.array([5, 5, 5, 6]) * MINUTE
    counts = statistics.as_of(Counter.of(keys, times, np.ones((4, 1), np.int64)), keys, times, ("all",))
    assert counts.ravel().tolist() == [0, 0, 0, 3]


def test_features_on_paper():
    keys, times = np.array([7, 7, 7]), np.array([0, 50, 100]) * MINUTE
    values = np.array([[1, 1], [1, 0], [1, 1]])
    columns = statistics.features(
        Counter.of(keys, times, values), np.array([7, 8]), np.array([100, 100]) * MINUTE, ("1h", "all"), [(1.0, 4.0)]
    )
    overall = (1 + 1) / (2 + 4)
    recent = (0 + 4 * overall) / (1 + 4)
    expected = [[np.log(2), recent, np.log(3), overall], [0, 0.25, 0, 0.25]]
    np.testing.assert_allclose(columns, expected, rtol=1e-6)
    assert statistics.names("item", ("1h", "all"), ("click",)) == [
        "item_shows_1h",
        "item_click_rate_1h",
        "item_shows_all",
        "item_click_rate_all",
    ]


@given(EVENTS, QUESTIONS)
def test_features_are_the_encoded_counts(events, questions):
    keys, minutes = (np.array(column, np.int64) for column in (list(zip(*questions, strict=True)) or [(), ()]))
    counter, times = Counter.of(*arrays(events)), minutes * MINUTE
    columns = statistics.features(counter, keys, times, WINDOWS, [(1.0, 4.0)])
    counts = statistics.as_of(counter, keys, times, WINDOWS).astype(np.float64)
    assert columns.dtype == np.float32
    assert columns.shape == (len(questions), 6)
    overall = (counts[:, 2, 1] + 1) / (counts[:, 2, 0] + 4)
    for place in range(3):
        shows, positives = counts[:, place].T
        rate = overall if place == 2 else (positives + 4 * overall) / (shows + 4)
        np.testing.assert_allclose(columns[:, 2 * place], np.log1p(shows), rtol=1e-6)
        np.testing.assert_allclose(columns[:, 2 * place + 1], rate, rtol=1e-6)


def test_windows():
    assert statistics.window_length("30m") == 30 * MINUTE
    assert statistics.window_length("7d") == 7 * 24 * 60 * MINUTE
    assert statistics.window_length("all") is None
    for wrong in ("7", "d", "0d", "1w", ""):
        with pytest.raises(ValueError, match="is not a window"):
            statistics.window_length(wrong)
