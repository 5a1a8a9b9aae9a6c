from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import match, sequences
from pipeline.features.match import Shared
from pipeline.features.timeline import Timeline

MINUTE = 60_000_000
EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9), st.integers(0, 3)), max_size=30).map(sorted)
QUESTIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 11), st.integers(0, 5)), min_size=1, max_size=12)


def columns(rows):
    return np.array(rows, np.int64).reshape(-1, 3).T


@given(EVENTS, QUESTIONS)
def test_shared_values_and_gaps_equal_plain_loops(events, questions):
    owners, minutes, values = columns(events)
    users, moments, candidates = columns(questions)
    times, event_times = moments * MINUTE, minutes * MINUTE
    ends, lengths = sequences.pointers(Timeline.of(owners, event_times), users, times, 4)
    found = match.found(Shared.of(owners, values), event_times, users, candidates, times, ends, lengths)
    counts, gaps = match.encode(*found)
    for (user, moment, candidate), count, gap in zip(questions, counts, gaps, strict=True):
        history = [event for event in events if event[0] == user and event[1] < moment][-4:]
        same = [event[1] for event in history if event[2] == candidate and candidate > 0]
        assert count == np.float32(np.log1p(len(same)))
        assert gap == (np.float32(np.log1p(float(moment - max(same)))) if same else match.NO_GAP)


def test_content_similarity_is_the_cosine_with_the_mean():
    history = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    candidates = np.array([[1, 0], [0, 1], [0, 0], [1, 0]], np.float32)
    ends, lengths = np.array([2, 3, 3, 1]), np.array([2, 1, 2, 0], np.int32)
    similarity = match.content_similarity(match.running_content(history), candidates, ends, lengths)
    np.testing.assert_allclose(similarity, [np.sqrt(0.5), 0.8, 0, 0], atol=1e-6)


def test_a_running_sum_that_overflows_still_gives_exact_differences():
    """A history of 5,000 events, the longest there may be, whose vectors all point the same way."""
    content = np.ones((20_000, 1), np.float32)
    totals = match.running_content(content)
    assert (totals < 0).any()
    for length in (3, 5_000):
        assert (totals[length:] - totals[:-length] == length * match.FIXED_POINT).all()
        found = match.content_similarity(totals, content[:1], np.array([20_000]), np.array([length], np.int32))
        assert found == 1


def test_the_cosine_with_thousands_of_events():
    random = np.random.default_rng(0)
    history = random.normal(size=(9_000, 8)) + 1
    history /= np.linalg.norm(history, axis=1, keepdims=True)
    candidates = random.normal(size=(20, 8)).astype(np.float32)
    ends, lengths = random.integers(5_000, 9_001, 20), random.integers(2_000, 5_001, 20).astype(np.int32)
    found = match.content_similarity(match.running_content(history.astype(np.float32)), candidates, ends, lengths)
    for row, candidate in enumerate(candidates):
        mean = history[ends[row] - lengths[row] : ends[row]].mean(axis=0)
        wanted = mean @ candidate / np.linalg.norm(mean) / np.linalg.norm(candidate)
        assert found[row] == pytest.approx(wanted, abs=1e-5)


def test_names():
    assert match.names("clicked", ("item", "category"), content=True) == [
        "clicked_same_item",
        "clicked_item_gap",
        "clicked_same_category",
        "clicked_category_gap",
        "clicked_content_similarity",
    ]
    assert match.names("liked", ("tag",), content=False) == ["liked_same_tag", "liked_tag_gap"]
