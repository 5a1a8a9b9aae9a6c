from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recall import exposure
from pipeline.recall.snapshot import DAY, Snapshot


def snapshot(rows: list[tuple[int, int, int]], time: int) -> Snapshot:
    schema = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}
    shown = pl.DataFrame(rows, schema=schema, orient="row").filter(pl.col("time") < time)
    return Snapshot(time=time, interactions=shown, history=shown, items=pl.DataFrame(), store=None)  # type: ignore[arg-type]


def asked(filter_: exposure.Exposure, *pairs: tuple[int, int]) -> list[bool]:
    users, items = np.array(pairs).T
    return filter_.contains(users, items).tolist()  # type: ignore[no-any-return]


def test_remembers_the_last_days_and_no_more(tmp_path: Path) -> None:
    rows = [(1, 10, 0), (1, 11, 5 * DAY), (2, 12, 9 * DAY), (2, 13, 10 * DAY)]
    shown = exposure.fit(snapshot(rows, 10 * DAY), tmp_path, days=5, error=1e-6)
    assert asked(shown, (1, 10), (1, 11), (2, 12), (2, 13), (2, 11)) == [False, True, True, False, False]
    assert shown.since == 5 * DAY


def test_user_0_is_nobody(tmp_path: Path) -> None:
    shown = exposure.fit(snapshot([(0, 10, 1), (1, 11, 1)], DAY), tmp_path, days=1, error=1e-6)
    assert asked(shown, (0, 10), (1, 11)) == [False, True]


def test_the_oldest_window_is_dropped_for_a_new_day() -> None:
    first = exposure.empty(2, 0, capacity=10, error=1e-6)
    first = first.add(np.array([1, 1]), np.array([10, 11]), np.array([0, DAY]))
    later = first.add(np.array([1]), np.array([12]), np.array([2 * DAY]))
    assert asked(later, (1, 10), (1, 11), (1, 12)) == [False, True, True]
    assert asked(first, (1, 10), (1, 11), (1, 12)) == [True, True, False]
    much_later = later.add(np.array([1]), np.array([13]), np.array([90 * DAY]))
    assert asked(much_later, (1, 11), (1, 12), (1, 13)) == [False, False, True]


def test_an_impression_before_the_windows_is_forgotten() -> None:
    shown = exposure.empty(2, 5, capacity=10, error=1e-6).add(np.array([1]), np.array([10]), np.array([0]))
    assert asked(shown, (1, 10)) == [False]


def test_nothing_shown(tmp_path: Path) -> None:
    shown = exposure.fit(snapshot([], DAY), tmp_path, days=3, error=0.01)
    assert asked(shown, (1, 10)) == [False]
    assert exposure.false_positive_rate(shown, snapshot([], DAY).interactions) == 0.0


def test_saved_and_loaded_it_answers_alike(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [(int(user), int(item), 0) for user, item in generator.integers(1, 100, (500, 2))]
    shown = exposure.fit(snapshot(rows, DAY), tmp_path, days=2, error=0.05)
    pairs = generator.integers(1, 100, (5_000, 2))
    again = exposure.load(tmp_path)
    assert asked(again, *pairs) == asked(shown, *pairs)
    assert (again.first, again.capacity, again.error) == (shown.first, shown.capacity, shown.error)


@pytest.mark.parametrize("error", [0.05, 0.001])
def test_false_positives_are_as_rare_as_asked_for(tmp_path: Path, error: float) -> None:
    pairs = np.random.default_rng(1).integers(1, 2_000, (50_000, 2))
    rows = [(user, item, day % 7 * DAY) for day, (user, item) in enumerate(pairs.tolist())]
    taken = snapshot(rows, 7 * DAY)
    shown = exposure.fit(taken, tmp_path, days=7, error=error)
    rate = exposure.false_positive_rate(shown, taken.interactions.select("user", "item").unique(maintain_order=True))
    assert error / 3 < rate < error * 1.3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 3 * DAY - 1)), min_size=1))
def test_never_misses_what_was_shown(rows: list[tuple[int, int, int]]) -> None:
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    assert exposure.empty(3, 0, capacity=1, error=0.5).add(users, items, times).contains(users, items).all()


def test_keys_do_not_change_between_runs() -> None:
    keys = exposure.pair_keys(np.array([1, 2, 2]), np.array([2, 1, 1]))
    assert keys.tolist() == [12929899232056340514, 14160868677571091529, 14160868677571091529]
    assert keys[0] != keys[1]


pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40)
