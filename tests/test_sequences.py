from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import sequences
from pipeline.features.timeline import Timeline

EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30).map(sorted)
QUESTIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 11)), max_size=12)


@given(EVENTS, QUESTIONS)
def test_a_history_is_the_last_events_strictly_before(events, questions):
    table, asked = (np.array(rows, np.int64).reshape(-1, 2) for rows in (events, questions))
    ends, lengths = sequences.pointers(Timeline.of(table[:, 0], table[:, 1]), asked[:, 0], asked[:, 1], 3)
    for (user, time), end, length in zip(questions, ends, lengths, strict=True):
        expected = [event for event in events if event[0] == user and event[1] < time][-3:]
        assert events[end - length : end] == expected


def test_types():
    nothing = np.empty(0, np.int64)
    ends, lengths = sequences.pointers(Timeline.of(nothing, nothing), np.array([1]), np.array([5]), 3)
    assert (ends.dtype, lengths.dtype, ends.tolist(), lengths.tolist()) == (np.int64, np.int32, [0], [0])


def test_gap_buckets_double():
    minutes = np.array([-5, 0, 0.9, 1, 2.9, 3, 7, 2**15 - 1, 2**30])
    times = (minutes * sequences.MINUTE).astype(np.int64)
    assert sequences.gap_bucket(times, np.zeros_like(times)).tolist() == [0, 0, 0, 1, 1, 2, 3, 15, 15]
