"""Events → numbers for life, and a file for each day and part of the users, so that no later step needs the whole log.

Users, items and domains are numbered in order of their first day (what stands in the prior history comes before all
days), within a day by id; those that never occurred come last. A longer log therefore changes no number that a day
before it has used. A part holds the users whose number leaves the same remainder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake import InputError, hash_file, hash_value

DAY = 86_400_000_000
BEFORE = -(1 << 31)
STRETCH = 1 << 21
KEYS = ("user", "item", "domain", "time")


@dataclass(frozen=True)
class Numbered:
    """The tables of users and items, in order of their numbers: row 0 is the unknown one, `first_day` counts from 1970
    and is null for those that never occurred. `domains` are in order of their numbers, which begin at 0."""

    users: pl.DataFrame
    items: pl.DataFrame
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Stretch:
    """Days to be cut out of the log in one go, the row groups they lie in, and what is kept of them."""

    events: Path
    work: Path
    days: tuple[int, ...]
    row_groups: tuple[int, ...]
    columns: tuple[str, ...]
    delays: tuple[str, ...]
    domains: tuple[str, ...]
    parts: int


@dataclass(frozen=True)
class Day:
    """A day of the log: rows, the first and last time of its shown rows (µs; 0 if there are none), and the hash of all
    it holds."""

    day: int
    events: int
    shown: int
    first: int
    last: int
    digest: str

    @property
    def date(self) -> str:
        return date(self.day)


def date(day: int) -> str:
    return f"{datetime.fromtimestamp(day * 86_400, UTC):%Y-%m-%d}"


def events_file(work: Path, day: int, part: int) -> Path:
    """A part of a day's events: user, item, domain (numbers), time (µs), shown and what the stretch names; sorted by
    time, user, item, domain and then the rest."""
    return work / date(day) / f"events-{part:02d}.parquet"


def late_file(work: Path, day: int, part: int) -> Path:
    """A day's positives that became known at a time of their own: user, item, domain, time (of that) and task."""
    return work / date(day) / f"late-{part:02d}.parquet"


def history_file(work: Path, part: int) -> Path:
    """A part of what happened before the log: user, item, behaviour, time, rank."""
    return work / f"history-{part:02d}.parquet"


def number(events: Path, work: Path) -> Numbered:
    """Number users, items and domains; what `cut` needs of it is written to `work`."""
    log = pl.scan_parquet(events / "events.parquet")
    day = pl.col("time").dt.epoch("us").min() // DAY
    tables = {}
    for side in ("user", "item"):
        first = log.group_by(f"{side}_id").agg(first_day=day.cast(pl.Int32))
        if (path := events / "history.parquet").exists():
            prior = pl.scan_parquet(path).select(f"{side}_id", pl.lit(BEFORE, pl.Int32).alias("first_day"))
            first = pl.concat([first, prior]).group_by(f"{side}_id").agg(pl.col("first_day").min())
        table = pl.read_parquet(events / f"{side}s.parquet")
        table = table.join(first.collect(engine="streaming"), on=f"{side}_id", how="left")
        table = table.sort("first_day", f"{side}_id", nulls_last=True)
        numbers = table.select(f"{side}_id", pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias(side), "first_day")
        numbers.drop_nulls("first_day").drop("first_day").write_parquet(work / f"{side}_numbers.parquet")
        tables[side] = pl.concat([table.clear(1), table])
    domains = log.group_by("domain").agg(day=day).sort("day", "domain").collect()["domain"].to_list()
    return Numbered(tables["user"], tables["item"], tuple(domains))


def stretches(
    events: Path, work: Path, *, columns: tuple[str, ...], delays: tuple[str, ...], domains: tuple[str, ...], parts: int
) -> list[Stretch]:
    """The log's days in runs of about two million rows."""
    rows: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    file = pq.ParquetFile(events / "events.parquet")
    for group in range(file.num_row_groups):
        times = file.read_row_group(group, ["time"])["time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        for day, count in zip(*np.unique(times.to_numpy() // DAY, return_counts=True), strict=True):
            rows[int(day)] = rows.get(int(day), 0) + int(count)
            groups.setdefault(int(day), []).append(group)
    return [
        Stretch(
            events,
            work,
            days=tuple(run),
            row_groups=tuple(sorted({group for day in run for group in groups[day]})),
            columns=columns,
            delays=delays,
            domains=domains,
            parts=parts,
        )
        for run in runs(sorted(rows), rows, STRETCH)
    ]


def runs(days: list[int], rows: dict[int, int], limit: int) -> Iterator[list[int]]:
    """Successive days in runs of at most `limit` rows, a day at least."""
    run: list[int] = []
    for day in days:
        if run and sum(rows[one] for one in run) + rows[day] > limit:
            yield run
            run = []
        run.append(day)
    if run:
        yield run


def cut(stretch: Stretch) -> list[Day]:
    """Write the parts of the stretch's days; the order of the rows in the log does not matter.

    Raises InputError for a delayed task that is known before its impression.
    """
    file = pq.ParquetFile(stretch.events / "events.parquet")
    wanted = ["user_id", "item_id", "domain", "time", *stretch.columns]
    table = pl.from_arrow(file.read_row_groups(list(stretch.row_groups), columns=wanted))
    assert isinstance(table, pl.DataFrame)
    table = table.with_columns(pl.col(pl.Datetime).dt.epoch("us"), day=pl.col("time").dt.epoch("us") // DAY)
    table = table.filter(pl.col("day").is_in(stretch.days))
    for side in ("user", "item"):
        numbers = pl.read_parquet(stretch.work / f"{side}_numbers.parquet")
        table = table.join(numbers, on=f"{side}_id", how="left", maintain_order="left").drop(f"{side}_id")
    table = table.with_columns(
        pl.col("user", "item").fill_null(0),
        pl.col("domain").replace_strict(stretch.domains, list(range(len(stretch.domains))), return_dtype=pl.Int16),
    ).select("day", (pl.col("user") % stretch.parts).alias("part"), *KEYS, *stretch.columns)
    for delay in stretch.delays:
        if early := table.filter(pl.col(delay) < pl.col("time")).height:
            raise InputError(
                f"{stretch.events / 'events.parquet'}: column {delay!r} lies before its impression in {early} rows; "
                "mend these times, or run the events stage again, which sets such rows apart"
            )
    days = []
    parts = _in_order(table).partition_by("day", "part", as_dict=True, maintain_order=True)
    for day in stretch.days:
        folder = stretch.work / date(day)
        folder.mkdir(exist_ok=True)
        digests = []
        for part in range(stretch.parts):
            events = parts.get((day, part), table.clear()).drop("day", "part")
            _write(events, events_file(stretch.work, day, part))
            _write(_late(events, stretch.delays), late_file(stretch.work, day, part))
            digests.append(hash_file(events_file(stretch.work, day, part)))
        whole = [parts[day, part] for part in range(stretch.parts) if (day, part) in parts]
        times = pl.concat([part.filter("shown")["time"] for part in whole])
        first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)  # type: ignore[arg-type]
        events_count = sum(part.height for part in whole)
        days.append(Day(day, events_count, len(times), first, last, hash_value(digests)))
    return days


def cut_history(events: Path, work: Path, parts: int) -> str:
    """Write the parts of the prior history; returns its hash, empty if the source has none."""
    path = events / "history.parquet"
    if not path.exists():
        return ""
    history = pl.read_parquet(path)
    if "rank" not in history.columns:
        history = history.with_columns(rank=pl.int_range(pl.len(), dtype=pl.Int32))
    for side in ("user", "item"):
        numbers = pl.read_parquet(work / f"{side}_numbers.parquet")
        history = history.join(numbers, on=f"{side}_id", how="left", maintain_order="left")
    history = history.select("user", "item", "behaviour", pl.col("time").dt.epoch("us"), "rank")
    history = history.with_columns(pl.col("user", "item").fill_null(0))
    history = history.sort("user", "behaviour", "time", "rank", "item")
    for part in range(parts):
        _write(history.filter(pl.col("user") % parts == part), history_file(work, part))
    return hash_value([hash_file(history_file(work, part)) for part in range(parts)])


def _in_order(table: pl.DataFrame) -> pl.DataFrame:
    """Sorted by every column; the many are looked at only where day, part, time, user and item are equal."""
    first = ["day", "part", "time", "user", "item"]
    table = table.sort(first)
    equal = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in first).fill_null(value=False)
    alike = np.flatnonzero(table.select(equal | equal.shift(-1, fill_value=False)).to_series().to_numpy())
    if len(alike) == 0:
        return table
    rest = [name for name in table.columns if name not in first]
    order = np.arange(table.height)
    order[alike] = alike[table[alike].with_row_index("row").sort(*first, *rest)["row"].to_numpy()]
    return table[order]


def _late(events: pl.DataFrame, delays: tuple[str, ...]) -> pl.DataFrame:
    parts = [
        events.filter("shown", pl.col(delay.removesuffix("_time")) > 0, pl.col(delay).is_not_null()).select(
            "user", "item", "domain", pl.col(delay).alias("time"), pl.lit(delay.removesuffix("_time")).alias("task")
        )
        for delay in delays
    ]
    empty = events.select(*KEYS, pl.lit("").alias("task")).clear()
    return pl.concat([empty, *parts]).sort("time", "user", "item", "domain", "task")


def _write(table: pl.DataFrame, path: Path) -> None:
    arrow = table.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(arrow, path, compression="lz4", use_dictionary=["task"], write_statistics=False)
