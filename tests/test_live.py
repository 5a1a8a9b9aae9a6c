from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from event_tables import CONTRACT, DAY, FEATURES, MINUTE, START, write_events
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Split
from pipeline.features.build import build
from pipeline.features.store import FeatureStore
from pipeline.features.timeline import Clock
from pipeline.serving import tallies
from pipeline.serving.bundle import write_features
from pipeline.serving.live import LiveStore, Strips
from pipeline.serving.tallies import Tally

SPARE = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    events = write_events(tmp_path_factory.mktemp("root") / "events")
    behaviours = {"clicked": "click", "wanted": "like", "converted": "convert"}  # not in the order of their names
    build(events, folder, features=replace(FEATURES, behaviours=behaviours), contract=CONTRACT, split=Split())
    return FeatureStore.open(folder)


def live_of(store, moment, folder, users=400) -> LiveStore:
    """What a bundle of the log before a moment knows."""
    write_features(store.cut(moment), folder / "features", SPARE)
    return LiveStore.of(folder / "features", users=users)


def happen(live, store, begin, end) -> None:
    """Tell the live store what the log has of [begin, end)."""
    told = store.events
    for row in np.flatnonzero((told["time"] >= begin) & (told["time"] < end)):
        who = [int(told[name][row]) for name in ("user", "item", "domain", "time")]
        rates = {rate: bool(told[rate][row]) for rate in store.recipe.rates}
        live.add(*who, shown=bool(told["shows"][row]), happened=rates)
    for name, table in store.behaviours.items():
        for row in np.flatnonzero((table["time"] >= begin) & (table["time"] < end)):
            who = [int(table[column][row]) for column in ("user", "item", "domain", "time")]
            live.add(*who, shown=False, happened={f"behaviour_{name}": True})
    live.recount()


def asked(store, begin, end, count=400):
    random = np.random.default_rng(1)
    return (
        random.integers(0, len(store.users["code_user_id"]), count),
        random.integers(0, len(store.items["code_item_id"]), count),
        random.integers(-1, 3, count),
        begin + random.integers(0, end - begin, count) // MINUTE * MINUTE,
    )


def assert_same(live, store, begin, end) -> None:
    question = asked(store, begin, end)
    ours, theirs = live.rows(*question), store.rows(*question)
    np.testing.assert_equal(ours.numbers, theirs.numbers)
    np.testing.assert_equal(ours.context, theirs.context)
    for name in store.behaviours:
        np.testing.assert_equal(ours.lengths[name], theirs.lengths[name])
        for column in ("item", "domain", "time"):
            for row in range(len(ours)):
                mine, other = (
                    one.behaviours[name][column][rows.ends[name][row] - rows.lengths[name][row] : rows.ends[name][row]]
                    for one, rows in ((live, ours), (store, theirs))
                )
                np.testing.assert_equal(mine, other)


def test_a_bundle_knows_what_the_store_knows(store, tmp_path):
    end = START + 11 * DAY
    assert_same(live_of(store, end, tmp_path), store, end, end + DAY)


def test_what_happens_since_counts_as_if_it_were_of_the_log(store, tmp_path):
    begin = START + 7 * DAY
    live = live_of(store, begin, tmp_path)
    happen(live, store, begin, begin + DAY)
    assert_same(live, store.cut(begin + DAY), begin, begin + DAY)
    happen(live, store, begin + DAY, begin + 20 * DAY)
    assert_same(live, store, begin, begin + 4 * DAY)
    assert_same(live, store, begin + 20 * DAY, begin + 21 * DAY)


def test_rows_with_one_key_and_time_between_others_count_alike(store, tmp_path):
    """What was counted of a key is taken over, by rows of the same moment alone, however many keys share a slot."""
    begin = START + 7 * DAY
    live, random = live_of(store, begin, tmp_path), np.random.default_rng(2)
    user, item, domain = (random.integers(0, size, 5_000) for size in (4, len(store.items["code_item_id"]), 3))
    question = user, item, domain, begin + random.integers(0, 2, 5_000) * 3 * DAY
    np.testing.assert_equal(live.rows(*question).numbers, store.cut(begin).rows(*question).numbers)


def test_statistics_wait_for_a_recount(store, tmp_path):
    begin = START + 7 * DAY
    live = live_of(store, begin, tmp_path)
    question = [np.array([one]) for one in (3, 5, 1, begin + DAY)]
    before = live.rows(*question).numbers
    live.add(3, 5, 1, begin, shown=True, happened={"click": True})
    np.testing.assert_equal(live.rows(*question).numbers, before)
    assert live.since.stale
    live.recount()
    assert not live.since.stale
    names = [number.name for number in live.schema.numbers]
    now = live.rows(*question).numbers
    shows = names.index("user_shows_all")
    assert np.isclose(np.expm1(now[0, shows]), np.expm1(before[0, shows]) + 1)


def test_one_who_came_later_has_a_row_of_his_own(store, tmp_path):
    begin = START + 7 * DAY
    live = live_of(store, begin, tmp_path)
    newcomer = len(store.users["code_user_id"]) + 3
    live.add(newcomer, 5, 1, begin, shown=True, happened={"click": True, "behaviour_clicked": True})
    live.recount()
    rows = live.rows(*(np.array(one) for one in ([newcomer, newcomer + 1], [5, 5], [1, 1], [begin + 1] * 2)))
    assert rows.lengths["clicked"].tolist() == [1, 0]
    match = [number.name for number in live.schema.numbers].index("clicked_same_item")
    assert rows.numbers[:, match].tolist() == pytest.approx([np.log(2), 0])


def strips(users: int) -> Strips:
    """Users 1 and 3 have events of the times 10, 20, … 50, and 5."""
    table = {
        "user": np.array([1, 1, 1, 1, 1, 3], np.int32),
        "item": np.array([7, 8, 9, 10, 11, 12], np.int32),
        "time": np.array([10, 20, 30, 40, 50, 5], np.int64),
    }
    return Strips(table, length=3, users=users)


def history(strips: Strips, user: int, time: int) -> list[int]:
    end, length = strips.find(user, time)
    return strips.columns["item"][end - length : end].tolist()


def test_strips_on_paper():
    one = strips(users=2)
    assert history(one, 1, 51) == [9, 10, 11]
    assert history(one, 1, 40) == [7, 8, 9]
    assert history(one, 2, 99) == []
    one.add(1, 60, {"item": 13})
    one.add(2, 7, {"item": 14})
    assert history(one, 1, 61) == [10, 11, 13]
    assert history(one, 1, 60) == [9, 10, 11]
    assert history(one, 2, 8) == [14]
    assert history(one, 3, 99) == [12]


def test_a_late_event_takes_its_place_in_time():
    one = strips(users=1)
    one.add(1, 60, {"item": 13})
    one.add(1, 55, {"item": 14})
    assert history(one, 1, 99) == [11, 14, 13]


def test_the_user_whose_events_are_oldest_gives_up_his_strip():
    one = strips(users=2)
    for user, time in ((1, 60), (3, 61), (1, 62), (4, 63)):
        one.add(user, time, {"item": user})
    assert one.forgotten == 1
    assert history(one, 3, 99) == [12]
    assert history(one, 1, 99) == [11, 1, 1]
    assert history(one, 4, 99) == [4]
    one.forget(1)
    assert history(one, 1, 99) == [9, 10, 11]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(51, 70)), max_size=60))
def test_strips_equal_sorted_lists(events):
    one = strips(users=4)
    plain = {1: [(10, 7), (20, 8), (30, 9), (40, 10), (50, 11)], 3: [(5, 12)]}
    newest: dict[int, int] = {}
    for number, (user, time) in enumerate(events, 100):
        if time < newest.get(user, 0):
            continue
        newest[user] = time
        one.add(user, time, {"item": number})
        plain.setdefault(user, []).append((time, number))
    for user in (1, 2, 3, 4):
        for time in (51, 60, 71):
            known = [item for moment, item in plain.get(user, []) if moment < time]
            if time > newest.get(user, 0):
                assert history(one, user, time) == known[-3:]


def test_tallies_count_by_hand(tmp_path):
    keys, times = np.array([5, 5, 9, 5]), np.array([10, 20, 20, 30])
    tally = Tally.of(keys, times, np.array([[1, 0], [1, 1], [1, 1], [0, 1]]))
    tally.save(tmp_path / "tally")
    for one in (tally, Tally.load(tmp_path / "tally")):
        counted = tallies.features(
            one,
            Tally.of(np.array([7]), np.array([98]), np.array([[1, 0]])),
            *(np.array([5, 5, 9, 7]), np.array([30, 31, 21, 99])),
            *(np.array([10, -1, -1]), np.array([[0.5, 1.0]])),
        )
        shows, rates = np.expm1(counted[:, ::2]), counted[:, 1::2]
        np.testing.assert_allclose(shows, [[1, 2], [0, 2], [1, 1], [1, 1]], rtol=1e-6)
        overall = np.array([1.5 / 3, 2.5 / 3, 1.5 / 2, 0.5 / 2])
        np.testing.assert_allclose(rates[:, 1], overall, rtol=1e-6)
        np.testing.assert_allclose(rates[:, 0], (overall + np.array([1, 1, 1, 0])) / [2, 1, 2, 2], rtol=1e-6)


def test_a_clock_of_ranks_is_stored(tmp_path):
    tally = Tally.of(np.array([5, 9]), np.array([10, 20]), np.array([[1], [1]]))
    ranked = Tally(tally.keys, tally.starts, np.array([3, 10]), tally.totals, Clock(10, 1, 2, np.array([10, 20])))
    ranked.save(tmp_path / "tally")
    np.testing.assert_equal(Tally.load(tmp_path / "tally").clock.moments, [10, 20])
