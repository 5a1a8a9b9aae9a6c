"""The event contract: what is rejected and counted, what stops the run, and what is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources import contract

NOON = 1_700_000_000
LENIENT = config.Contract(tasks=("click",), maximum_rejected=0.9)
COLUMNS = {"user_id": "user", "item_id": "item", "time": "at", "domain": "tab", "click": "click"}


def rows(count: int = 4, **columns: list[Any]) -> dict[str, list[Any]]:
    """A sound log of `count` rows, some columns of which may be given."""
    good = {
        "user": [1] * count,
        "item": list(range(10, 10 + count)),
        "at": [NOON + k for k in range(count)],
        "tab": ["a"] * count,
        "click": [1] * count,
    }
    return {**good, **columns}


def write(
    folder: Path,
    events: dict[str, list[Any]],
    settings: config.Contract = LENIENT,
    extra: dict[str, str] | None = None,
    **tables: pl.DataFrame,
) -> dict[str, Any]:
    """Run the contract over a mapped log made of these tables; output goes to `folder/out`."""
    pl.DataFrame(events, strict=False).write_parquet(folder / "log.parquet")
    told = {}
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
        told[name] = config.Table(path=str(folder / f"{name}.parquet"), columns={c: c for c in table.columns})
    source = config.MappedLog(
        events=config.Table(path=str(folder / "log.parquet"), columns={**COLUMNS, **(extra or {})}), **told
    )
    (folder / "out").mkdir()
    return contract.write_events(source, settings, folder / "out")


def rejected(folder: Path) -> list[tuple[Any, ...]]:
    return pl.read_parquet(folder / "out" / "rejected.parquet").rows()


def test_a_sound_log_passes_whole(tmp_path: Path) -> None:
    told = write(tmp_path, rows(click=[1, 0, 1, 0]))
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.columns == ["user_id", "item_id", "domain", "time", "shown", "random", "click"]
    assert events["click"].dtype == pl.Int8
    assert events["shown"].all()
    assert not events["random"].any()
    assert told == {
        "events": 4,
        "items": 4,
        "users": 1,
        "domains": 1,
        "rate_click": 0.5,
        "first_time": NOON * 1_000_000,
        "last_time": (NOON + 3) * 1_000_000,
        "missing_days": 0,
        "rejected_rows": 0,
        "repeated_items": 0,
        "bare_items": 0,
        "repeated_users": 0,
        "bare_users": 0,
        "retyped_columns": 0,
    }
    assert rejected(tmp_path) == []


TOMORROW = int((datetime.now(UTC) + timedelta(days=1)).timestamp())


@pytest.mark.parametrize(
    ("column", "value", "reason", "name"),
    [
        ("user", None, "null", "user_id"),
        ("item", None, "null", "item_id"),
        ("tab", None, "null", "domain"),
        ("at", None, "null", "time"),
        pytest.param("at", TOMORROW, "in the future", "time", id="tomorrow"),
        ("at", 100, "before 1990", "time"),
        ("click", 2, "label not 0 or 1", "click"),
        ("click", None, "label not 0 or 1", "click"),
        ("click", 0.5, "label not 0 or 1", "click"),
        ("click", float("nan"), "not finite", "click"),
        ("user", 1.5, "wrong type", "user_id"),
        ("at", float("inf"), "not finite", "time"),
    ],
)
def test_a_bad_row_is_set_apart(tmp_path: Path, column: str, value: Any, reason: str, name: str) -> None:
    log = rows()
    log[column] = [*log[column][:2], value, *log[column][3:]]
    told = write(tmp_path, log)
    assert rejected(tmp_path) == [("events", 2, reason, name)]
    assert told["events"] == 3
    assert told[f"rejected_{reason.replace(' ', '_')}"] == told["rejected_rows"] == 1


def test_a_delayed_label_is_a_time_not_before_its_impression(tmp_path: Path) -> None:
    known = [NOON - 1, None, "soon", NOON + 9]
    told = write(tmp_path, rows(known=[str(one) if one else None for one in known]), extra={"click_time": "known"})
    assert rejected(tmp_path) == [
        ("events", 0, "before its impression", "click_time"),
        ("events", 2, "wrong type", "click_time"),
    ]
    assert told["rejected_before_its_impression"] == 1
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events["click_time"].dt.epoch("s").to_list() == [None, NOON + 9]


def test_infinite_context_is_set_apart(tmp_path: Path) -> None:
    write(tmp_path, rows(seconds=[1.0, float("inf"), None, float("nan")]), extra={"seconds": "seconds"})
    assert rejected(tmp_path) == [("events", 1, "not finite", "seconds"), ("events", 3, "not finite", "seconds")]


def test_text_where_a_number_belongs(tmp_path: Path) -> None:
    write(tmp_path, rows(at=[str(NOON), "soon", str(NOON + 2), str(NOON + 3)], click=["1", "1", "yes", "0"]))
    assert rejected(tmp_path) == [("events", 1, "wrong type", "time"), ("events", 2, "label not 0 or 1", "click")]


def test_flags_must_be_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log\.parquet: 100\.0% of 4 rows .* column 'random' \(wrong type: 4 rows\)"):
        write(tmp_path, rows(lottery=["no"] * 4), extra={"random": "lottery"})


def test_exact_duplicates_are_dropped_and_do_not_count_as_faults(tmp_path: Path) -> None:
    log = rows(6, item=[1, 1, 1, 2, 3, 1], at=[NOON] * 6, click=[1, 1, 0, 1, 1, 1])
    told = write(tmp_path, log, config.Contract(tasks=("click",), maximum_rejected=0.0))
    assert rejected(tmp_path) == [("events", 1, "duplicate", ""), ("events", 5, "duplicate", "")]
    assert (told["events"], told["rejected_duplicate"]) == (4, 2)


def test_order_of_rows_in_the_file_does_not_matter(tmp_path: Path) -> None:
    log = pl.DataFrame(rows(5, user=[3, 1, 2, 1, 1], at=[NOON + 9, NOON, NOON + 5, NOON, NOON + 1]))
    for name, frame in (("one", log), ("two", log.reverse())):
        (tmp_path / name).mkdir()
        write(tmp_path / name, frame.to_dict(as_series=False))
    one, two = (pl.read_parquet(tmp_path / name / "out" / "events.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert one["item_id"].to_list() == [11, 13, 14, 12, 10]


def test_too_many_bad_rows_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        write(tmp_path, rows(click=[1, 7, 8, 1], user=[1, 1, 1, None]), config.Contract(tasks=("click",)))
    assert "75.0% of 4 rows" in str(told.value)
    assert "column 'click' (label not 0 or 1: 2 rows)" in str(told.value)
    assert "contract.maximum_rejected (now 0.05)" in str(told.value)


def test_a_task_without_positives_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"column 'click' has no positive .* remove it from contract\.tasks"):
        write(tmp_path, rows(click=[0, 0, 0, 0]))


def test_a_missing_task_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'convert'; it has user_id, item_id.*contract\.tasks"):
        write(tmp_path, rows(), config.Contract(tasks=("click", "convert")))


def test_an_empty_log_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable row"):
        write(tmp_path, rows(0))


def test_item_table_keeps_the_last_row_and_adds_what_only_the_log_knows(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [11, 10, 10, 99, None], "category": ["x", "old", "new", "y", "z"]})
    told = write(tmp_path, rows(), items=items)
    table = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert table.select("item_id", "category").rows() == [(10, "new"), (11, "x"), (12, None), (13, None), (99, "y")]
    assert table["published"].dtype == pl.Datetime("us", "UTC")
    assert (told["repeated_items"], told["bare_items"]) == (1, 2)
    assert rejected(tmp_path) == [("items", 4, "null", "item_id")]


def test_items_with_bad_numbers_are_set_apart(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": [10, 11, 12, 13],
            "content": pl.Series([[0.0, 1.0], [float("nan"), 0.0], None, [1.0, 1.0]], dtype=pl.Array(pl.Float32, 2)),
            "price": [1.0, 2.0, None, float("inf")],
        }
    )
    write(tmp_path, rows(), items=items)
    assert rejected(tmp_path) == [("items", 1, "not finite", "content"), ("items", 3, "not finite", "price")]
    table = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert table["content"].to_list() == [[0.0, 1.0], None, None, None]


def test_ids_of_all_tables_take_the_type_they_have_in_the_log(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["10", "12", "many"], "category": ["x", "y", "z"]})
    users = pl.DataFrame({"user_id": [1.0, 2.0], "age": [30, 40]})
    write(tmp_path, rows(), items=items, users=users)
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"].to_list() == [10, 11, 12, 13]
    assert pl.read_parquet(tmp_path / "out" / "users.parquet").rows() == [(1, 30), (2, 40)]
    assert rejected(tmp_path) == [("items", 2, "wrong type", "item_id")]


def test_history_is_checked_and_ordered(tmp_path: Path) -> None:
    history = pl.DataFrame(
        {
            "user_id": [2, 1, 1, None],
            "item_id": [77, 11, 12, 13],
            "behaviour": ["click"] * 4,
            "time": [NOON - 1, NOON - 2, NOON - 3, NOON - 4],
        }
    )
    write(tmp_path, rows(), history=history)
    table = pl.read_parquet(tmp_path / "out" / "history.parquet")
    assert table.select("user_id", "item_id", "rank").rows() == [(1, 12, 0), (1, 11, 1), (2, 77, 0)]
    assert table["rank"].dtype == pl.Int32
    assert rejected(tmp_path) == [("history", 3, "null", "user_id")]
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["item_id"].to_list() == [10, 11, 12, 13, 77]
    assert pl.read_parquet(tmp_path / "out" / "users.parquet")["user_id"].to_list() == [1, 2]


def test_check_is_a_dry_run(tmp_path: Path) -> None:
    pl.DataFrame(rows()).write_parquet(tmp_path / "log.parquet")
    source = config.MappedLog(events=config.Table(path=str(tmp_path / "log.parquet"), columns=COLUMNS))
    assert contract.check(source, LENIENT)["events"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]
    assert contract.source_files(source) == [tmp_path / "log.parquet"]
    assert contract.source_files(config.Simulator()) == []


@pytest.mark.parametrize(
    ("factor", "unit", "right"), [(1_000, "s", "ms"), (1_000_000, "s", "us"), (1, "ms", "s"), (1, "iso", "s")]
)
@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_times_in_another_unit_are_told(tmp_path: Path, factor: int, unit: Any, right: str, kind: Any) -> None:
    log = pl.DataFrame(rows(at=[(NOON + k) * factor for k in range(4)])).with_columns(pl.col("at").cast(kind))
    log.write_parquet(tmp_path / "log.parquet")
    source = config.MappedLog(events=config.Table(str(tmp_path / "log.parquet"), COLUMNS), time_unit=unit)
    with pytest.raises(InputError) as told:
        contract.check(source, LENIENT)
    assert f"log.parquet: column 'time' is not in {unit}" in str(told.value)
    assert f'2023-11-14 22:13 in {right}; set source.time_unit = "{right}"' in str(told.value)


def test_a_time_too_large_for_its_unit_is_set_apart(tmp_path: Path) -> None:
    """2⁵⁸ s more are a multiple of 2⁶⁴ µs, so that the product wraps around to a time that would pass."""
    told = write(tmp_path, rows(at=[NOON, NOON + 1, NOON + 2, NOON + (1 << 58)]))
    assert rejected(tmp_path) == [("events", 3, "wrong type", "time")]
    assert told["last_time"] == (NOON + 2) * 1_000_000


def test_seconds_in_few_bytes(tmp_path: Path) -> None:
    pl.DataFrame(rows()).with_columns(pl.col("at").cast(pl.Int32)).write_parquet(tmp_path / "log.parquet")
    source = config.MappedLog(events=config.Table(str(tmp_path / "log.parquet"), COLUMNS))
    assert contract.check(source, LENIENT)["first_time"] == NOON * 1_000_000


def test_wrong_times_advise_on_unit_and_zone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'time' \(in the future: 4 rows\).*source\.time_unit or source\.time_zone"):
        write(tmp_path, rows(at=[TOMORROW] * 4))


DAYS = [NOON + day * 86_400 for day in (0, 1, 2, 3)]


def test_missing_days_are_counted(tmp_path: Path) -> None:
    told = write(tmp_path, rows(3, at=[DAYS[0], DAYS[0], DAYS[3]]))
    assert (told["events"], told["missing_days"]) == (3, 2)


@pytest.mark.parametrize(("days", "reason"), [(400, "far after the log"), (-400, "far before the log")])
def test_a_wrong_clock_far_from_the_log_is_set_apart(tmp_path: Path, days: int, reason: str) -> None:
    """Two rows of 3,002 lie more than a year off, and one another day from them: no part of the log."""
    count = 3_002
    times = [NOON + (k % 4) * 86_400 for k in range(count)]
    times[7], times[9] = NOON + days * 86_400, NOON + (days + 3) * 86_400
    told = write(tmp_path, rows(count, at=times))
    assert rejected(tmp_path) == [("events", 7, reason, "time"), ("events", 9, reason, "time")]
    assert told[f"rejected_{reason.replace(' ', '_')}"] == 2
    assert (told["events"], told["missing_days"]) == (3_000, 0)


def test_a_log_with_a_long_pause_stays_whole(tmp_path: Path) -> None:
    """One row of a hundred behind the pause is too many to be a wrong clock."""
    told = write(tmp_path, rows(100, at=[*DAYS * 24, *DAYS[:3], NOON + 30 * 86_400]))
    assert (told["events"], told["missing_days"]) == (100, 31 - 5)


def test_floats_beyond_their_precision_are_no_ids(tmp_path: Path) -> None:
    write(tmp_path, rows(item=[1.0, 2.0, 2.0**53, 4.0]))
    assert rejected(tmp_path) == [("events", 2, "wrong type", "item_id")]


def test_a_column_of_nulls_only(tmp_path: Path) -> None:
    """As context, as an attribute or as a time it is unknown everywhere; as a key it stops the run."""
    items = pl.DataFrame(
        {"item_id": [10, 11], "published": [None, None], "price": [None, None], "content": [None, None]}
    )
    told = write(tmp_path, rows(device=[None] * 4), extra={"device": "device"}, items=items)
    assert told["rejected_rows"] == 0
    assert pl.read_parquet(tmp_path / "out" / "events.parquet")["device"].null_count() == 4
    (tmp_path / "key").mkdir()
    with pytest.raises(InputError, match=r"column 'domain' \(null: 4 rows\)"):
        write(tmp_path / "key", rows(tab=[None] * 4))


def test_an_event_may_have_a_column_called_content(tmp_path: Path) -> None:
    assert write(tmp_path, rows(words=["a"] * 4), extra={"content": "words"})["rejected_rows"] == 0


def test_content_of_another_length_is_set_apart(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [10, 11, 12, 13], "content": [[0.0, 1.0], [1.0], [2.0, 3.0], None]})
    write(tmp_path, rows(), items=items)
    assert rejected(tmp_path) == [("items", 1, "wrong type", "content")]
    table = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert table["content"].dtype == pl.Array(pl.Float32, 2)
    assert table["content"].to_list() == [[0.0, 1.0], None, [2.0, 3.0], None]


def test_content_that_is_no_vector_stops_the_run(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [10, 11], "content": ["0.1 0.2", "0.3 0.4"]})
    with pytest.raises(InputError, match=r"items\.parquet: 100\.0% of 2 rows .* 'content' \(wrong type: 2 rows\)"):
        write(tmp_path, rows(), config.Contract(tasks=("click",)), items=items)


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_ids_of_many_pieces_are_counted_once(piece: int) -> None:
    ids = [(k * k) % 17 for k in range(100)]
    seen = contract._Ids("item_id")
    for begin in range(0, 100, piece):
        seen.add(pl.DataFrame({"item_id": ids[begin : begin + piece]}))
    assert sorted(seen.all()["item_id"]) == sorted(set(ids))
    assert sorted(seen.all()["item_id"]) == sorted(set(ids))


WATCHED = config.Contract(tasks=("click",), durations={"watch": "ms"}, maximum_rejected=0.9)


def test_a_duration_becomes_seconds(tmp_path: Path) -> None:
    """Unknown stays unknown; what is negative, not finite or no number at all is set apart."""
    log = rows(6, watched=["1500", None, "-1", "long", "inf", "0"])
    write(tmp_path, log, WATCHED, extra={"watch": "watched"})
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.columns == ["user_id", "item_id", "domain", "time", "shown", "random", "click", "watch"]
    assert events["watch"].dtype == pl.Float32
    assert events["watch"].to_list() == [1.5, None, 0.0]
    assert rejected(tmp_path) == [
        ("events", 2, "negative duration", "watch"),
        ("events", 3, "wrong type", "watch"),
        ("events", 4, "not finite", "watch"),
    ]


def test_a_missing_duration_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column 'watch'; it has user_id.*contract\.durations"):
        write(tmp_path, rows(), WATCHED)
