"""Events → numbers for life, and a file for each day and part of the users, so that no later step needs the whole log.

Users, items and domains are numbered in order of their first day (what stands in the prior history comes before all
days), within a day by id; those that never occurred come last. A longer log therefore changes no number that a day
before it has used. A part holds the users whose number leaves the same remainder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import xxhash

from pipeline.lake import InputError, code_version, hash_file, hash_value

DAY = 86_400_000_000
BEFORE = -(1 << 31)
STRETCH = 1 << 21
KEYS = ("user", "item", "domain", "time")
DAY_FILE = "day.json"


@dataclass(frozen=True)
class Numbered:
    """The tables of users and items, in order of their numbers: row 0 is the unknown one, `first_day` counts from 1970
    and is null for those that never occurred. `domains` are in order of their numbers, which begin at 0. `prints` has
    by first day a hash of all that are numbered then."""

    users: pl.DataFrame
    items: pl.DataFrame
    domains: tuple[str, ...]
    prints: dict[int, str]


@dataclass(frozen=True)
class Kept:
    """What is kept of every row: `columns`, of which those in `delays` say when a task's positive became known."""

    columns: tuple[str, ...]
    delays: tuple[str, ...]
    parts: int


@dataclass(frozen=True)
class Stretch:
    """Days to be cut out of the log in one go, into folders of `out`, and the row groups they lie in; `work` has the
    numbers."""

    events: Path
    work: Path
    out: Path
    kept: Kept
    domains: tuple[str, ...]
    days: tuple[int, ...]
    row_groups: tuple[int, ...]


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


def day_file(work: Path, day: int) -> Path:
    """What is known of a day: a `Day`."""
    return work / date(day) / DAY_FILE


def read(path: Path) -> Day:
    return Day(**json.loads(path.read_text()))


def number(events: Path, work: Path, first: Mapping[str, pl.DataFrame]) -> Numbered:
    """Number users, items and domains by the day on which each occurred first in the log (`Survey.first`); what `cut`
    needs of it is written to `work`."""
    tables, prints = {}, {}
    for side in ("user", "item"):
        seen = first[f"{side}_id"]
        if (path := events / "history.parquet").exists():
            prior = pl.scan_parquet(path).select(f"{side}_id", pl.lit(BEFORE, pl.Int32).alias("first_day")).unique()
            seen = pl.concat([seen, prior.collect(engine="streaming")])
            seen = seen.group_by(f"{side}_id").agg(pl.col("first_day").min())
        table = pl.read_parquet(events / f"{side}s.parquet").join(seen, on=f"{side}_id", how="left")
        table = table.sort("first_day", f"{side}_id", nulls_last=True)
        numbers = table.select(f"{side}_id", pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias(side), "first_day")
        numbers = numbers.drop_nulls("first_day")
        numbers.drop("first_day").write_parquet(work / f"{side}_numbers.parquet")
        prints[side] = _by_first_day(numbers[f"{side}_id"], numbers["first_day"])
        tables[side] = pl.concat([table.clear(1), table])
    domains = first["domain"].sort("first_day", "domain")
    prints["domain"] = _by_first_day(domains["domain"], domains["first_day"])
    return Numbered(
        users=tables["user"],
        items=tables["item"],
        domains=tuple(domains["domain"]),
        prints={
            day: hash_value([one.get(day) for one in prints.values()])
            for day in sorted({day for one in prints.values() for day in one})
        },
    )


def _by_first_day(values: pl.Series, first_day: pl.Series) -> dict[int, str]:
    """By first day, which ascends, a hash of its values."""
    days, begins = np.unique(first_day.to_numpy(), return_index=True)
    hashes = np.split(values.hash().to_numpy(), begins[1:])
    return {int(day): xxhash.xxh3_128_hexdigest(some.tobytes()) for day, some in zip(days, hashes, strict=True)}


def fingerprints(made_from: Mapping[int, Sequence[str]], numbered: Numbered, kept: Kept) -> dict[int, str]:
    """Of each day, in order; `made_from` has the hashes of the row groups that it lies in (`Survey.made_from`)."""
    given = hash_value([code_version(cut), pl.__version__, asdict(kept)])
    unused = sorted(numbered.prints.items(), reverse=True)
    found = {}
    for day, raw in made_from.items():
        while unused and unused[-1][0] <= day:
            given = hash_value([given, *unused.pop()])
        found[day] = hash_value([given, day, raw])[:16]
    return found


def stretches(
    events: Path,
    work: Path,
    out: Path,
    days: Sequence[int],
    groups: Sequence[Mapping[int, int]],
    *,
    kept: Kept,
    domains: tuple[str, ...],
) -> list[Stretch]:
    """Some days of the log in runs of about two million rows; `groups` say how many rows of which day each of its row
    groups has."""
    rows = {day: sum(group.get(day, 0) for group in groups) for day in days}
    return [
        Stretch(
            events,
            work,
            out,
            kept,
            domains,
            days=tuple(run),
            row_groups=tuple(place for place, group in enumerate(groups) if not group.keys().isdisjoint(run)),
        )
        for run in runs(sorted(days), rows, STRETCH)
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


def cut(stretch: Stretch) -> None:
    """Write the files of the stretch's days; the order of the rows in the log does not matter.

    Raises InputError for a delayed task that is known before its impression.
    """
    kept = stretch.kept
    file = pq.ParquetFile(stretch.events / "events.parquet")
    wanted = ["user_id", "item_id", "domain", "time", *kept.columns]
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
    ).select("day", (pl.col("user") % kept.parts).alias("part"), *KEYS, *kept.columns)
    for delay in kept.delays:
        if early := table.filter(pl.col(delay) < pl.col("time")).height:
            raise InputError(
                f"{stretch.events / 'events.parquet'}: column {delay!r} lies before its impression in {early} rows; "
                "mend these times, or run the events stage again, which sets such rows apart"
            )
    parts = _in_order(table).partition_by("day", "part", as_dict=True, maintain_order=True)
    for day in stretch.days:
        (stretch.out / date(day)).mkdir(exist_ok=True)
        digests = []
        for part in range(kept.parts):
            events = parts.get((day, part), table.clear()).drop("day", "part")
            _write(events, events_file(stretch.out, day, part))
            _write(_late(events, kept.delays), late_file(stretch.out, day, part))
            digests.append(hash_file(events_file(stretch.out, day, part)))
        whole = [parts[day, part] for part in range(kept.parts) if (day, part) in parts]
        times = pl.concat([part.filter("shown")["time"] for part in whole])
        first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)  # type: ignore[arg-type]
        told = Day(day, sum(part.height for part in whole), len(times), first, last, hash_value(digests))
        day_file(stretch.out, day).write_text(json.dumps(asdict(told)))


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
