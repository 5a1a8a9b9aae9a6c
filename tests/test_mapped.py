"""A log of one's own, described by TOML alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import config
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
