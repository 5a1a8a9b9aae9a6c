"""Days of facts: whatever way they come to be, their bytes are the same, and only what changed is computed again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from event_tables import CONTRACT, DAY, FEATURES, START, write_events

from pipeline import config
from pipeline.features.build import build
from pipeline.features.days import one_by_one
from pipeline.features.facts import spans
from pipeline.features.partition import runs
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError

SETTINGS = replace(
    FEATURES,
    context=("hour", "device"),
    windows=("1h", "30h", "2d", "7d"),
    lengths={"clicked": 9},
    crosses=config.Crosses(pairs=("segment*age", "age*device"), columns=("segment", "category", "hour"), keep=1),
)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(tmp_path_factory.mktemp("root") / "events", events=900, users=60, items=40, days=9)


@pytest.fixture(scope="module")
def whole(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(events, out)
    return out


def run(events: Path, out: Path, features: config.Features = SETTINGS, split: float = 1.0, **told) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return build(events, out, features=features, contract=CONTRACT, split=config.Split(split, split), **told)


def changed(source: Path, target: Path, /, **tables: pl.DataFrame) -> Path:
    target.mkdir()
    for path in source.glob("*.parquet"):
        tables.get(path.stem, pl.read_parquet(path)).write_parquet(target / path.name, row_group_size=100)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def facts_of(kept: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in kept.items() if not name.startswith("partitions")}


def by_day(source: Path, target: Path, log: pl.DataFrame) -> Path:
    """The tables of a source whose log has a row group for each day, as from a raw file for each."""
    changed(source, target)
    dated = log.with_columns(day=pl.col("time").dt.date())
    days = dated.partition_by("day", maintain_order=True, include_key=False)
    with pq.ParquetWriter(target / "events.parquet", days[0].to_arrow().schema) as writer:
        for day in days:
            writer.write_table(day.to_arrow())
    return target


def until(events: Path, target: Path, day: int) -> Path:
    """The log as it was at the end of a day, with the items that had been seen by then and ten more."""
    log = pl.read_parquet(events / "events.parquet").filter(pl.col("time").dt.epoch("us") < day * DAY)
    items = pl.read_parquet(events / "items.parquet")
    seen = items["item_id"].is_in(log["item_id"].unique().implode())
    return changed(events, target, events=log, items=pl.concat([items.filter(seen), items.filter(~seen).head(10)]))


def test_day_after_day_gives_the_bytes_of_one_go(events: Path, whole: Path, tmp_path: Path) -> None:
    first = START // DAY
    for day in range(first + 4, first + 10):
        told = run(until(events, tmp_path / f"events-{day}", day + 1), tmp_path / f"{day}", kept=tmp_path / "kept")
        assert told["days_computed"] == (5 if day == first + 4 else 1)
        assert told["late_events"] == told["missing_days"] == told["changed_days"] == 0
    last = run(events, tmp_path / "last", kept=tmp_path / "kept")
    assert last["days_computed"] == 0
    assert contents(tmp_path / "last") == contents(whole)
    assert contents(tmp_path / str(first + 9) / "days") == contents(whole / "days")


def test_of_a_log_that_grows_only_the_new_day_is_partitioned(events: Path, whole: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(events / "events.parquet")
    first = START // DAY
    for day in range(first + 7, first + 10):
        part = by_day(events, tmp_path / f"{day}", log.filter(pl.col("time").dt.epoch("us") < (day + 1) * DAY))
        told = run(part, tmp_path / f"out-{day}", kept=tmp_path / "kept")
        assert told["days_partitioned"] == (8 if day == first + 7 else 1)
    assert len(list((tmp_path / "kept/partitions").glob("????-??-??-*"))) == 10
    assert contents(tmp_path / f"out-{first + 9}") == contents(whole)
    assert run(part, tmp_path / "again", kept=tmp_path / "kept")["days_partitioned"] == 0
    other = replace(SETTINGS, parts=2)
    assert run(part, tmp_path / "other", other, kept=tmp_path / "kept")["days_partitioned"] == 10


@pytest.mark.parametrize("what", ["late", "gone", "label", "history", "shuffled"])
def test_a_log_that_changes_is_partitioned_as_anew(events: Path, tmp_path: Path, what: str) -> None:
    """Late rows of users who are new on that day, which gives all after them other numbers; a day that is gone; one
    label; what happened before the log; and rows in another order in the same days."""
    log = pl.read_parquet(events / "events.parquet")
    third = pl.col("time").dt.epoch("us") // DAY == START // DAY + 3
    seen = log.filter(pl.col("time").dt.epoch("us") // DAY < START // DAY + 3)["user_id"].unique()
    newcomers = third & ~pl.col("user_id").is_in(seen.implode())
    base = by_day(events, tmp_path / "base", log.filter(~newcomers) if what == "late" else log)
    (base / "history.parquet").unlink()
    run(base, tmp_path / "first", kept=tmp_path / "kept")
    after = {
        "gone": log.filter(~third),
        "label": log.with_columns(like=pl.when(third).then(1 - pl.col("like")).otherwise("like").cast(pl.Int8)),
        "shuffled": log.sample(fraction=1, shuffle=True, seed=1).sort(pl.col("time").dt.date(), maintain_order=True),
    }.get(what, log)
    second = by_day(events, tmp_path / "second", after)
    if what != "history":
        (second / "history.parquet").unlink()
    assert log.filter(newcomers).height > 0
    told = run(second, tmp_path / "out", kept=tmp_path / "kept")
    assert told["days_partitioned"] == {"late": 7, "gone": 6, "label": 1, "history": 10, "shuffled": 10}[what]
    run(second, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_neither_blocks_nor_jobs_nor_row_groups_change_a_byte(
    events: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.features.facts.BLOCK", 150)
    monkeypatch.setattr("pipeline.features.days.STRETCH", 100)
    monkeypatch.setattr("pipeline.features.partition.STRETCH", 250)
    monkeypatch.setattr("pipeline.features.build.BEHAVIOUR_ROWS", 50)
    called = []

    def backwards(function, values):
        called.extend(values)
        return one_by_one(function, values[::-1])[::-1]

    log = pl.read_parquet(events / "events.parquet").sample(fraction=1, shuffle=True, seed=1)
    run(changed(events, tmp_path / "events", events=log), tmp_path / "out", each=backwards)
    assert len(called) > 8
    for name, content in contents(tmp_path / "out").items():
        if name.startswith("days"):
            assert content == (whole / name).read_bytes(), name
    for name, table in FeatureStore.open(whole).behaviours.items():
        for column, values in FeatureStore.open(tmp_path / "out").behaviours[name].items():
            np.testing.assert_array_equal(values, table[column])


def test_blocks_of_a_day_count_as_the_store_does(events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.features.facts.BLOCK", 1)
    run(events, tmp_path / "out", replace(SETTINGS, parts=3))
    store = FeatureStore.open(tmp_path / "out")
    log = store.log()
    assert (np.diff(log.time) >= 0).all()
    assert len(list((tmp_path / "out/days").glob("*/user-02.parquet"))) == len(store.days())
    rows = store.rows(log.user, log.item, log.domain, log.time)
    np.testing.assert_array_equal(log.numbers, rows.numbers)
    np.testing.assert_equal(log.ends, rows.ends)
    np.testing.assert_equal(log.lengths, rows.lengths)


def test_parts_change_no_row(events: Path, whole: Path, tmp_path: Path) -> None:
    run(events, tmp_path / "out", replace(SETTINGS, parts=4))
    for name, column in vars(FeatureStore.open(tmp_path / "out").log()).items():
        np.testing.assert_equal(column, getattr(FeatureStore.open(whole).log(), name), err_msg=name)


def test_another_split_computes_no_day(events: Path, tmp_path: Path) -> None:
    run(events, tmp_path / "first", kept=tmp_path / "kept")
    told = run(events, tmp_path / "second", split=1.5, kept=tmp_path / "kept")
    assert told["days_computed"] == 0
    assert contents(tmp_path / "first" / "days") == contents(tmp_path / "second" / "days")


def test_late_events_are_counted_and_recompute_from_their_day_on(events: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(events / "events.parquet")
    closed = pl.col("time").dt.epoch("us") // DAY == START // DAY + 5
    late = log.filter(closed).tail(3)
    before = changed(events, tmp_path / "before", events=log.filter(~(closed & pl.col("time").is_in(late["time"]))))
    missing = log.height - pl.read_parquet(before / "events.parquet").height
    run(before, tmp_path / "first", kept=tmp_path / "kept")
    told = run(events, tmp_path / "second", kept=tmp_path / "kept")
    assert told["late_events"] == missing >= 3
    assert told["days_computed"] == told["days"] - 5
    assert told["changed_days"] == told["days"] - 5 - 1


def test_what_is_known_of_an_item_recomputes_from_its_first_day_on(events: Path, tmp_path: Path) -> None:
    base = changed(events, tmp_path / "base")
    (base / "history.parquet").unlink()
    run(base, tmp_path / "first", kept=tmp_path / "kept")
    log = FeatureStore.open(tmp_path / "first").log()
    last = log.item.max()
    day = int(log.time[log.item == last].min() // DAY)
    name = pl.read_parquet(tmp_path / "first/items.parquet")["item_id"][int(last)]
    items = pl.read_parquet(events / "items.parquet")
    category = pl.when(pl.col("item_id") == name).then(pl.lit("new")).otherwise("category").alias("category")
    moved = changed(base, tmp_path / "moved", items=items.with_columns(category, price=pl.col("price") + 1))
    told = run(moved, tmp_path / "second", kept=tmp_path / "kept")
    assert told["days"] - told["days_computed"] == day - START // DAY > 0
    run(moved, tmp_path / "alone")
    assert contents(tmp_path / "second") == contents(tmp_path / "alone")


def test_a_missing_day_is_told(events: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(events / "events.parquet")
    gap = pl.col("time").dt.epoch("us") // DAY == START // DAY + 3
    told = run(changed(events, tmp_path / "events", events=log.filter(~gap)), tmp_path / "out")
    assert told["missing_days"] == 1


def test_a_failure_leaves_the_days_as_they_were(events: Path, whole: Path, tmp_path: Path) -> None:
    old = until(events, tmp_path / "old", START // DAY + 6)
    run(old, tmp_path / "first", kept=tmp_path / "kept")
    before = contents(tmp_path / "kept")

    def fails(function, values):
        results = one_by_one(function, values[:-1])
        if function.__name__ == "write":
            raise OSError("the worker died")
        return [*results, *one_by_one(function, values[-1:])]

    with pytest.raises(OSError, match="the worker died"):
        run(events, tmp_path / "second", kept=tmp_path / "kept", each=fails)
    after = contents(tmp_path / "kept")
    partial = (".staging", "partitions")
    assert facts_of(before) == {name: content for name, content in after.items() if not name.startswith(partial)}
    run(events, tmp_path / "third", kept=tmp_path / "kept")
    assert contents(tmp_path / "third") == contents(whole)
    assert not list((tmp_path / "kept").glob(".*"))


def test_days_of_another_chain_are_dropped_and_links_survive(events: Path, tmp_path: Path) -> None:
    run(events, tmp_path / "first", kept=tmp_path / "kept")
    before = contents(tmp_path / "first")
    run(events, tmp_path / "second", replace(SETTINGS, lengths={"clicked": 8}), kept=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*-*"))) == len(FeatureStore.open(tmp_path / "first").days())
    assert contents(tmp_path / "first") == before


def test_a_conversion_before_its_impression_is_an_error(events: Path, tmp_path: Path) -> None:
    log = pl.read_parquet(events / "events.parquet").with_columns(pl.col("convert_time") - pl.duration(days=2))
    with pytest.raises(
        InputError, match=r"events\.parquet: column 'convert_time' lies before its impression in \d+ row"
    ):
        run(changed(events, tmp_path / "events", events=log), tmp_path / "out")


def test_numbers_are_for_life(events: Path, whole: Path, tmp_path: Path) -> None:
    day = START // DAY + 5
    run(until(events, tmp_path / "events", day), tmp_path / "out", kept=tmp_path / "kept")
    manifest = json.loads((tmp_path / "kept/manifest.json").read_text())
    assert list(manifest["days"]) == FeatureStore.open(tmp_path / "out").days()
    for side in ("user", "item"):
        numbered = [pl.read_parquet(folder / f"{side}s.parquet")[f"{side}_id"] for folder in (tmp_path / "out", whole)]
        seen = int(getattr(FeatureStore.open(tmp_path / "out").log(), side).max()) + 1
        assert numbered[0][:seen].equals(numbered[1][:seen])


def test_spans_by_hand() -> None:
    """Days 10 and 11: an hour begins from day 9 on, two days on 8 and 9, a week on 3 and 4, long before day 8."""
    assert spans(10, 11, ("1h", "2d", "7d", "all")) == (8, {"7d": (3, 4)})
    assert spans(10, 10, ("1h", "30h")) == (8, {})
    assert spans(10, 30, ("7d",)) == (3, {})


def test_runs_by_hand() -> None:
    assert list(runs([1, 2, 4, 5], {1: 3, 2: 3, 4: 9, 5: 1}, 6)) == [[1, 2], [4], [5]]
