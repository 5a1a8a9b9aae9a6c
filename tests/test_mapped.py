"""A log of one's own, described by TOML alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import config, lake
from pipeline.lake import InputError
from pipeline.sources import contract, mapped

NAMES = {"user_id": "uid", "item_id": "video", "time": "ts", "domain": "tab", "click": "clicked"}
LOG = "uid,video,ts,tab,clicked,noise\nann,7,1700000000,a,1,x\nbob,8,1700000001,b,0,y\n"


def source(path: Path | str, columns: dict[str, str] = NAMES, **options: Any) -> config.MappedLog:
    return config.MappedLog(events=config.Table(path=str(path), columns=columns), **options)


def write(tmp_path: Path, log: config.MappedLog, *tasks: str) -> pl.DataFrame:
    out = tmp_path / "out"
    out.mkdir()
    contract.write_events(log, config.Contract(tasks=tasks or ("click",)), out)
    return pl.read_parquet(out / "events.parquet")


def test_a_csv_log_from_toml_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "run.toml").write_text(f"""
        [contract]
        tasks = ["click"]
        [source]
        kind = "mapped"
        events.path = "{tmp_path}/log.csv"
        events.columns = {{ user_id = "uid", item_id = "video", time = "ts", domain = "tab", click = "clicked" }}
    """)
    loaded = config.load(tmp_path / "run.toml").source
    assert isinstance(loaded, config.MappedLog)
    events = write(tmp_path, loaded)
    assert events.select("user_id", "item_id", "domain", "shown", "click").rows() == [
        ("ann", 7, "a", True, 1),
        ("bob", 8, "b", True, 0),
    ]
    assert "noise" not in events.columns


def test_a_parquet_log_in_parts_with_tables(tmp_path: Path) -> None:
    for part in (1, 2):
        pl.DataFrame({"u": [part], "i": [part], "t": [1_700_000_000_000 + part], "ok": [True]}).write_parquet(
            tmp_path / f"log-{part}.parquet"
        )
    pl.DataFrame({"id": [1], "genre": ["x"], "made": [1_600_000_000_000]}).write_parquet(tmp_path / "videos.parquet")
    pl.DataFrame({"u": [1, 1], "i": [2, 1], "t": [1_690_000_000_000, 1_680_000_000_000]}).write_parquet(
        tmp_path / "before.parquet"
    )
    identity = {"user_id": "u", "item_id": "i", "time": "t"}
    log = source(
        tmp_path / "log-*.parquet",
        {**identity, "click": "ok"},
        time_unit="ms",
        items=config.Table(str(tmp_path / "videos.parquet"), {"item_id": "id", "published": "made"}),
        history=config.Table(str(tmp_path / "before.parquet"), identity),
    )
    events = write(tmp_path, log)
    assert events["domain"].to_list() == ["all", "all"]
    assert events["time"].to_physical().to_list() == [1_700_000_000_001_000, 1_700_000_000_002_000]
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.columns == ["item_id", "published", "genre"]
    assert items["published"].to_physical().to_list() == [1_600_000_000_000_000, None]
    history = pl.read_parquet(tmp_path / "out" / "history.parquet")
    assert history.select("user_id", "item_id", "behaviour", "rank").rows() == [(1, 1, "click", 0), (1, 2, "click", 1)]
    names = [path.name for path in mapped.files(log)]
    assert names == ["log-1.parquet", "log-2.parquet", "videos.parquet", "before.parquet"]


def test_a_history_with_behaviours_and_ranks_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "before.csv").write_text("uid,video,what,ts,rank\nann,7,like,1600000000,1\nann,8,like,1600000000,0\n")
    columns = {"user_id": "uid", "item_id": "video", "behaviour": "what", "time": "ts"}
    write(tmp_path, source(tmp_path / "log.csv", history=config.Table(str(tmp_path / "before.csv"), columns)))
    history = pl.read_parquet(tmp_path / "out" / "history.parquet")
    assert history.select("item_id", "behaviour", "rank").rows() == [(8, "like", 0), (7, "like", 1)]


@pytest.mark.parametrize(
    ("unit", "zone", "text", "seconds"),
    [
        ("s", "UTC", "1700000000", 1_700_000_000),
        ("s", "UTC", "1700000000.5", 1_700_000_000.5),
        ("us", "UTC", "1700000000000000", 1_700_000_000),
        ("iso", "UTC", "2023-11-14T22:13:20", 1_700_000_000),
        ("iso", "Asia/Shanghai", "2023-11-15 06:13:20", 1_700_000_000),
        ("iso", "Asia/Shanghai", "2023-11-15T06:13:20+08:00", 1_700_000_000),
        ("iso", "Asia/Shanghai", "2023-11-14T22:13:20Z", 1_700_000_000),
    ],
)
def test_times(tmp_path: Path, unit: Any, zone: str, text: str, seconds: float) -> None:
    (tmp_path / "log.csv").write_text(f"uid,video,ts,tab,clicked\n1,1,{text},a,1\n")
    events = write(tmp_path, source(tmp_path / "log.csv", time_unit=unit, time_zone=zone))
    assert events["time"].to_physical().item() == seconds * 1_000_000


@pytest.mark.parametrize("kind", [pl.Datetime("ms"), pl.Datetime("us", "UTC"), pl.Date])
def test_columns_that_are_dates_already(tmp_path: Path, kind: Any) -> None:
    day = pl.Series("ts", [1_699_920_000_000_000]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    frame = pl.DataFrame({"uid": [1], "video": [1], "tab": ["a"], "clicked": [1]}).with_columns(day)
    naive = frame.with_columns(pl.col("ts").dt.replace_time_zone(None).cast(kind) if kind != day.dtype else "ts")
    naive.write_parquet(tmp_path / "log.parquet")
    events = write(tmp_path, source(tmp_path / "log.parquet"))
    assert events["time"].to_physical().item() == 1_699_920_000_000_000


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file; correct source\.events\.path"):
        mapped.read(source(tmp_path / "nowhere.csv"))


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    with pytest.raises(InputError, match=r"log\.csv: no column 'watched'; it has uid, video.*source\.events\.columns"):
        mapped.read(source(tmp_path / "log.csv", {**NAMES, "click": "watched"}))


def test_an_unmapped_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    with pytest.raises(InputError, match=r"log\.csv: no column 'time'.*source\.events\.columns"):
        write(tmp_path, source(tmp_path / "log.csv", {k: v for k, v in NAMES.items() if k != "time"}))


@pytest.mark.parametrize("text", ["", LOG.splitlines()[0] + "\n"])
def test_an_empty_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=r"log\.csv: (the file is empty|no usable row)"):
        write(tmp_path, source(tmp_path / "log.csv"))


def test_labels_that_are_counts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG.replace(",a,1,", ",a,3,"))
    with pytest.raises(InputError, match=r"50\.0% of 2 rows .* column 'click' \(label not 0 or 1: 1 rows\)"):
        write(tmp_path, source(tmp_path / "log.csv"))


GOOD = {"uid": [1, 2], "video": [7, 8], "ts": [1_700_000_000, 1_700_000_001], "tab": ["a", "b"], "clicked": [1, 0]}
LATER = {**GOOD, "ts": [1_700_000_002, 1_700_000_003]}


def days(tmp_path: Path, later: dict[str, Any] | pl.DataFrame, suffix: str = "parquet") -> config.MappedLog:
    """A log of two files: a good day, and another after it."""
    for name, table in (("day-1", GOOD), ("day-2", later)):
        frame = pl.DataFrame(table)
        getattr(frame, {"parquet": "write_parquet", "csv": "write_csv"}[suffix])(tmp_path / f"{name}.{suffix}")
    return source(tmp_path / f"day-*.{suffix}")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_day_that_lacks_a_column_is_named(tmp_path: Path, suffix: str) -> None:
    log = days(tmp_path, {name: values for name, values in LATER.items() if name != "tab"}, suffix)
    with pytest.raises(InputError, match=rf"day-2\.{suffix}: no column 'tab'; it has uid, video, ts, clicked; correct"):
        write(tmp_path, log)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_day_with_one_more_column(tmp_path: Path, suffix: str) -> None:
    events = write(tmp_path, days(tmp_path, {"app": ["x", "y"], **LATER}, suffix))
    assert (events.height, "app" in events.columns) == (4, False)


@pytest.mark.parametrize(
    ("later", "ids"),
    [
        (["1", "x"], ["1", "1", "2", "x"]),
        ([1.0, 9.0], [1, 1, 2, 9]),
        ([1.0, None], [1, 1, 2]),
        (pl.Series([1, 1 << 63], dtype=pl.UInt64), ["1", "1", "2", str(1 << 63)]),
        (pl.Series([1, 9], dtype=pl.Int16), [1, 1, 2, 9]),
        (pl.Series(["1", "x"], dtype=pl.Categorical), ["1", "1", "2", "x"]),
    ],
)
def test_an_id_that_changes_type_stays_the_same_id(tmp_path: Path, later: Any, ids: list[Any]) -> None:
    log = days(tmp_path, {**LATER, "uid": later})
    (tmp_path / "out").mkdir()
    told = contract.write_events(log, config.Contract(tasks=("click",), maximum_rejected=0.3), tmp_path / "out")
    assert sorted(pl.read_parquet(tmp_path / "out" / "events.parquet")["user_id"]) == ids
    assert told["users"] == len(set(ids))
    assert told["retyped_columns"] == isinstance(ids[0], str)


def test_large_ids_survive_a_day_of_floats(tmp_path: Path) -> None:
    """As floats 2⁶² and 2⁶² + 1 would be one user."""
    big = [1 << 62, (1 << 62) + 1]
    pl.DataFrame({**GOOD, "uid": big}).write_parquet(tmp_path / "day-0.parquet")
    log = days(tmp_path, {**LATER, "uid": [1.0, 9.0]})
    assert sorted(write(tmp_path, log)["user_id"]) == [1, 1, 2, 9, *big]


def test_a_day_without_a_value_takes_the_others_type(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pl.DataFrame(LATER).with_columns(price=pl.lit(None if name == "b" else 2.5)).write_csv(tmp_path / f"{name}.csv")
    events = write(tmp_path, source(tmp_path / "?.csv", {**NAMES, "price": "price"}))
    assert events["price"].dtype == pl.Float64
    assert events["price"].to_list() == [2.5, None, 2.5, None]


def test_times_that_change_their_form_are_told(tmp_path: Path) -> None:
    log = days(tmp_path, pl.DataFrame(LATER).with_columns(pl.from_epoch("ts")))
    with pytest.raises(
        InputError, match=r"column 'ts' holds times without a zone in .*day-2.*, whole numbers in .*day-1"
    ):
        write(tmp_path, log)


def test_times_that_become_text_are_counted(tmp_path: Path) -> None:
    log = days(tmp_path, {**LATER, "ts": ["2023-11-14T22:13:22", "1700000003"]})
    (tmp_path / "out").mkdir()
    told = contract.write_events(log, config.Contract(tasks=("click",), maximum_rejected=0.3), tmp_path / "out")
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet").rows()
    assert rejected == [("events", 2, "wrong type", "time")]
    assert (told["events"], told["retyped_columns"]) == (3, 1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_named_and_nothing_is_written(tmp_path: Path, share: float) -> None:
    log = days(tmp_path, LATER)
    whole, cut = (tmp_path / f"day-{day}.parquet" for day in (1, 2))
    before = whole.read_bytes()
    cut.write_bytes(cut.read_bytes()[: int(share * cut.stat().st_size)])
    stage = lake.stage(tmp_path / "runs", "events", "0")
    told = r"day-2\.parquet: not a readable Parquet file, truncated or corrupt"
    with pytest.raises(InputError, match=told), stage.writing() as out:
        contract.write_events(log, config.Contract(tasks=("click",)), out)
    assert list((tmp_path / "runs").iterdir()) == []
    assert whole.read_bytes() == before


def test_a_file_with_a_corrupt_page_is_named(tmp_path: Path) -> None:
    log = days(tmp_path, LATER)
    path = tmp_path / "day-2.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"day-2\.parquet: not a readable Parquet file, truncated or corrupt"):
        write(tmp_path, log)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("3,9,1700000002,a,1,2,3", "line 4 has 7 fields, the header 6"),
        ('3,9,1700000002,"a,1,2', "mend the file, or move it away"),
        ("3,9,1700000002,\xff,1,2", "invalid utf-8"),
    ],
)
def test_a_broken_line_of_a_csv_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "log.csv").write_bytes((LOG + line + "\n").encode("latin-1"))
    with pytest.raises(InputError, match=rf"log\.csv: .*{told}"):
        write(tmp_path, source(tmp_path / "log.csv"))


def test_a_line_cut_short_is_counted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG + "3,9\n")
    (tmp_path / "out").mkdir()
    contract.write_events(
        source(tmp_path / "log.csv"), config.Contract(tasks=("click",), maximum_rejected=0.5), tmp_path / "out"
    )
    assert pl.read_parquet(tmp_path / "out" / "rejected.parquet").rows() == [("events", 2, "null", "domain")]


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    log = days(tmp_path, LATER, "csv")
    (tmp_path / "day-2.csv").write_text("")
    with pytest.raises(InputError, match=r"day-2\.csv: the file is empty"):
        write(tmp_path, log)


def test_a_file_of_a_header_only_adds_nothing(tmp_path: Path) -> None:
    log = days(tmp_path, LATER, "csv")
    (tmp_path / "day-2.csv").write_text(",".join(GOOD) + "\n")
    events = write(tmp_path, log)
    assert events["user_id"].to_list() == [1, 2]


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = contract.write_events(days(tmp_path, GOOD), config.Contract(tasks=("click",)), tmp_path / "out")
    assert (told["events"], told["rejected_duplicate"]) == (2, 2)
