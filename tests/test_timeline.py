from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import timeline
from pipeline.features.timeline import Clock, Timeline

MINUTE = 60_000_000
FAR = 1 << 61
KEYS = st.one_of(st.integers(-2, 3), st.sampled_from([-FAR, FAR, FAR + 1, 7 << 40]))
TIMES = st.one_of(
    st.integers(-3, 12).map(lambda minute: minute * MINUTE),
    st.integers(-3, 12),
    st.sampled_from([-FAR, FAR, 1_700_000_000_000_001]),
)
PAIRS = st.lists(st.tuples(KEYS, TIMES), max_size=30)
LAGS = st.sampled_from([0, 1, MINUTE, 3 * MINUTE + 1])

each_room = pytest.mark.parametrize("bits", [63, 40, 1], ids=["microseconds", "coarse units", "ranks"])


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "BLOCK", 3)
        yield


def arrays(pairs):
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@each_room
@given(events=PAIRS, asked=PAIRS, lag=LAGS)
def test_places_equal_plain_loops(bits, events, asked, lag):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "CODE_BITS", bits)
        questions = Timeline.of(*arrays(events)).ask(*arrays(asked))
    first, before = questions.first()[questions.inverse], questions.before(lag)[questions.inverse]
    ordered = sorted(events)
    for (key, time), begin, end in zip(asked, first, before, strict=True):
        expected = [event for event in ordered if event[0] == key and event[1] < time - lag]
        assert ordered[begin:end] == expected
        assert begin == sum(event[0] < key for event in events)


@given(PAIRS)
def test_the_order_is_by_key_then_time_then_place(events):
    found = Timeline.of(*arrays(events))
    assert found.order.tolist() == sorted(range(len(events)), key=lambda place: (*events[place], place))
    assert found.keys.tolist() == sorted({key for key, _ in events})
    assert [events[place][0] for place in found.order[found.starts[:-1]]] == found.keys.tolist()


@given(PAIRS)
def test_pairs_are_distinct_sorted_and_point_to_their_first_question(asked):
    questions = Timeline.of(*arrays([(1, 5)])).ask(*arrays(asked))
    assert len(questions) == len(set(asked))
    assert [asked[place] for place in questions.asked] == sorted(set(asked))
    assert [asked.index(pair) for pair in sorted(set(asked))] == questions.asked.tolist()
    assert [asked[questions.asked[pair]] for pair in questions.inverse] == asked


@given(PAIRS)
def test_blocks_give_every_question_once(asked):
    questions = Timeline.of(*arrays([])).ask(*arrays(asked))
    pairs = np.full(len(asked), -1)
    for block in questions.blocks():
        rows, places = questions.rows(block)
        assert (pairs[rows] == -1).all()
        pairs[rows] = np.arange(block.start, block.stop)[places]
    assert pairs.tolist() == questions.inverse.tolist()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(-1, 12)), max_size=12))
def test_other_times_than_those_asked_may_come_in_any_order(asked):
    events = [(key, time) for key in (0, 2) for time in (1, 1, 4, 8)]
    keys, times, others = np.array(asked, np.int64).reshape(-1, 3).T
    questions = Timeline.of(*arrays(events)).ask(keys, times)
    other = others[questions.asked]
    counts = questions.before_times(other) - questions.first()
    pairs = sorted({(key, time) for key, time, _ in asked})
    expected = [sum(e == (key, e[1]) and e[1] < t for e in events) for (key, _), t in zip(pairs, other, strict=True)]
    assert counts.tolist() == expected


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2), max_size=40))
def test_sorting_is_stable_whatever_the_range(values):
    array = np.array(values, np.int64)
    ordered, order = timeline.stable_sort(array)
    assert order.tolist() == np.argsort(array, kind="stable").tolist()
    assert ordered.tolist() == sorted(values)
    assert array.tolist() == values


def test_values_that_do_not_fit_beside_their_place_are_sorted_by_halves():
    random = np.random.default_rng(0)
    values = random.integers(-(1 << 62), 1 << 62, 3_000).repeat(2)
    random.shuffle(values)
    ordered, order = timeline.stable_sort(values)
    assert order.tolist() == np.argsort(values, kind="stable").tolist()
    assert (ordered == values[order]).all()


def test_a_clock_takes_the_coarsest_ticks_it_needs():
    times = np.array([10, 40, 70], np.int64) * MINUTE + 5
    assert Clock.of(times, keys=3) == Clock(10 * MINUTE + 5, 1, 60 * MINUTE + 1)
    coarse = Clock.of(times, keys=1 << 40)
    assert (coarse.unit, coarse.size, coarse.moments) == (30 * MINUTE, 3, None)
    assert coarse.before(np.array([0, times[0], times[0] + 1, times[1], times[2], times[2] + 1])).tolist() == [
        0,
        0,
        1,
        1,
        2,
        3,
    ]
    ranks = Clock.of(np.array([0, 1, 1 << 60], np.int64), keys=1 << 40)
    assert ranks.moments is not None
    assert ranks.before(np.array([-1, 1, 2, 1 << 61])).tolist() == [0, 1, 2, 3]
