"""The event contract: every source becomes the same four tables, and rows that break it are counted, not guessed at.

`write_events` fills a folder with events, items, users, history (if the source has one) and rejected. Events pass in
pieces, so that a log may be larger than memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources import kuairand, mapped, simulator
from pipeline.sources.raw import RawLog, require

TIME = pl.Datetime("us", "UTC")
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
SECONDS = {"s": 1.0, "ms": 1e-3}
DAY = 86_400_000_000
STRAY_GAP_DAYS = 7
STRAY_SHARE = 0.001
EXACT_FLOAT = 2.0**53
SAMPLED_TIMES = 1_000
MISTIMED = ("in the future", "before 1990")
KEYS = ("user_id", "item_id", "domain", "time")
FLAGS = {"shown": True, "random": False}
HISTORY = ("user_id", "item_id", "behaviour", "time", "rank")
REJECTED = {"table": pl.String, "row": pl.Int64, "reason": pl.String, "column": pl.String}


def write_events(source: config.Source, contract: config.Contract, out: Path) -> dict[str, Any]:
    """Fill `out` with the contract's tables and return counts: rows, rejections by reason, rates, first and last time.

    Raises `InputError` for a missing file or column, an empty log, a task without positives, times in another unit
    than `source.time_unit`, and when more than `contract.maximum_rejected` of a table's rows break the contract (exact
    duplicates do not count towards it).
    """
    raw = _open(source, out)
    check = _Check(raw, contract)
    seen = _write_log(raw, contract, check, out)
    _write_history(raw, check, seen, out)
    items = _entities("items", "item_id", raw.items, seen.items.all(), check)
    users = _entities("users", "user_id", raw.users, seen.users.all(), check)
    items.write_parquet(out / "items.parquet", compression="zstd", statistics=False)
    users.write_parquet(out / "users.parquet", compression="zstd", statistics=False)
    check.rejected().write_parquet(out / "rejected.parquet", compression="zstd", statistics=False)
    check.raise_if_too_many()
    _require_positives(seen, contract, check)
    return {
        "events": seen.rows,
        "items": items.height,
        "users": users.height,
        "domains": len(seen.domains),
        **{f"rate_{task}": seen.positives[task] / seen.rows for task in contract.tasks},
        "first_time": seen.first,
        "last_time": seen.last,
        "missing_days": seen.last // DAY - seen.first // DAY + 1 - len(seen.days),
        "rejected_rows": sum(check.reasons.values()),
        **{f"rejected_{reason.replace(' ', '_')}": count for reason, count in sorted(check.reasons.items())},
        **dict(sorted(check.repairs.items())),
        **raw.notes,
    }


def source_files(source: config.Source) -> list[Path]:
    """The raw files a source reads, for the fingerprint; none for the simulator."""
    match source:
        case config.KuaiRand():
            return kuairand.files(source)
        case config.MappedLog():
            return mapped.files(source)
        case _:
            return []


def check(source: config.Source, contract: config.Contract) -> dict[str, Any]:
    """What `write_events` would return or raise, leaving nothing behind."""
    with tempfile.TemporaryDirectory(prefix="recfunnel-check-") as folder:
        return write_events(source, contract, Path(folder))


def _open(source: config.Source, out: Path) -> RawLog:
    match source:
        case config.KuaiRand():
            return kuairand.read(source)
        case config.MappedLog():
            return mapped.read(source)
        case _:
            return simulator.simulate(source, out)


@dataclass
class _Ids:
    """The distinct ids of a growing table. New ones are merged only when they have become as many as the known, so
    that an id is not looked at again in every piece."""

    column: str
    known: list[pl.DataFrame] = field(default_factory=list)
    fresh: list[pl.DataFrame] = field(default_factory=list)

    def add(self, rows: pl.DataFrame) -> None:
        self.fresh.append(rows.select(self.column).unique())
        if sum(map(len, self.fresh)) >= sum(map(len, self.known)):
            self.all()

    def all(self) -> pl.DataFrame:
        """All of them, in no order."""
        merged = pl.concat([*self.known, *self.fresh]).unique()
        self.known, self.fresh = [merged], []
        return merged


@dataclass
class _Seen:
    """What the events that passed amount to; `days` are numbers of days since 1970."""

    rows: int = 0
    first: int = 0
    last: int = 0
    positives: Counter[str] = field(default_factory=Counter)
    domains: set[str] = field(default_factory=set)
    days: set[int] = field(default_factory=set)
    items: _Ids = field(default_factory=lambda: _Ids("item_id"))
    users: _Ids = field(default_factory=lambda: _Ids("user_id"))

    def add(self, events: pl.DataFrame, tasks: Sequence[str]) -> None:
        if not events.height:
            return
        times = events["time"].to_physical()
        self.first = int(times[0]) if not self.rows else self.first
        self.last = int(times[-1])
        self.rows += events.height
        self.positives.update({task: int(events[task].sum()) for task in tasks})
        self.domains.update(events["domain"].unique())
        self.days.update((times // DAY).unique())
        self.add_identities(events)

    def add_identities(self, rows: pl.DataFrame) -> None:
        self.items.add(rows)
        self.users.add(rows)


class _Check:
    """The rules. Rows that break one are set apart with the first reason and column; the rest are cast and returned."""

    def __init__(self, raw: RawLog, contract: config.Contract) -> None:
        self.raw = raw
        self.contract = contract
        self.now = datetime.now(UTC)
        self.bulk = (EARLIEST, self.now)
        self.identities: dict[str, pl.DataType] = {}
        self.frames: list[pl.DataFrame] = []
        self.rows: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()

    def name(self, table: str) -> str:
        return self.raw.names.get(table, table)

    def apply(
        self,
        table: str,
        frame: pl.DataFrame,
        *,
        needed: Sequence[str],
        times: Sequence[str],
        labels: Sequence[str] = (),
        durations: Sequence[str] = (),
        vectors: Sequence[str] = (),
    ) -> pl.DataFrame:
        """The rows of one piece of a table that keep the contract, in its types, with `row`, their number in the file.

        `needed` may not be null, `times` become UTC, `labels` must be 0 or 1 and, where they are delayed, not known
        before the row's own time, `durations` become seconds and may not be negative, the lists of `vectors` are of one
        length; no number may be NaN or infinite.
        """
        kinds = frame.schema
        parts = {"time": times, "label": labels, "duration": durations, "vector": vectors}
        roles = {column: role for role, columns in parts.items() for column in columns}
        for column in times:
            self._require_unit(table, frame[column])
        typed = frame.select(
            pl.int_range(self.rows[table], self.rows[table] + frame.height, dtype=pl.Int64).alias("row"),
            *(self._cast(column, kind, roles.get(column, "")).alias(column) for column, kind in kinds.items()),
        )
        flags = (flag for flag in FLAGS if flag in kinds)
        typing = dict.fromkeys((*needed, *times, *durations, *vectors, *flags))
        rules = [
            *(("not finite", column, _not_finite(frame[column])) for column, kind in kinds.items() if _is_float(kind)),
            *(("null", column, frame[column].is_null()) for column in needed),
            *(("wrong type", column, typed[column].is_null() & frame[column].is_not_null()) for column in typing),
            *(("label not 0 or 1", column, typed[column].is_null()) for column in labels),
            *(("not finite", column, _not_finite(typed[column])) for column in durations),
            *(("negative duration", column, typed[column] < 0) for column in durations),
            *(("in the future", column, typed[column] > self.now) for column in times),
            *(("before 1990", column, typed[column] < EARLIEST) for column in times),
            *(
                ("before its impression", f"{label}_time", typed[f"{label}_time"] < typed["time"])
                for label in labels
                if f"{label}_time" in kinds
            ),
        ]
        if table == "events":
            rules += [
                ("far before the log", "time", typed["time"] < self.bulk[0]),
                ("far after the log", "time", typed["time"] >= self.bulk[1]),
            ]
        return self._set_apart(table, typed, rules)

    def _set_apart(self, table: str, typed: pl.DataFrame, rules: list[tuple[str, str, pl.Series]]) -> pl.DataFrame:
        self.rows[table] += typed.height
        broken = [(reason, column, mask.fill_null(False)) for reason, column, mask in rules]
        broken = [(reason, column, mask) for reason, column, mask in broken if mask.any()]
        if not broken:
            return typed
        which = pl.coalesce(
            *(pl.when(mask).then(pl.lit(number, pl.Int32)) for number, (_, _, mask) in enumerate(broken))
        )
        marked = typed.with_columns(which.alias("rule"))
        told = marked.filter(pl.col("rule").is_not_null())
        reasons = pl.Series([reason for reason, _, _ in broken]).gather(told["rule"])
        columns = pl.Series([column for _, column, _ in broken]).gather(told["rule"])
        self.reject(table, told["row"], reasons, columns)
        return marked.filter(pl.col("rule").is_null()).drop("rule")

    def reject(self, table: str, row: pl.Series, reason: pl.Series, column: pl.Series) -> None:
        """Remember rejected rows, one reason and column for each."""
        told = pl.DataFrame(
            {"table": pl.repeat(table, len(row), eager=True), "row": row, "reason": reason, "column": column}
        )
        self.frames.append(told.cast(REJECTED))  # type: ignore[arg-type]
        self.reasons.update(dict(told["reason"].value_counts().iter_rows()))

    def _cast(self, column: str, kind: pl.DataType, role: str) -> pl.Expr:
        values = pl.col(column)
        if role == "time":
            return _utc(values, kind, self.raw.time_unit, self.raw.time_zone)
        if role == "label":
            number = values.cast(pl.Float64, strict=False)
            return pl.when(number.is_in([0.0, 1.0])).then(number).cast(pl.Int8)
        if role == "duration":
            seconds = values.cast(pl.Float64, strict=False) * SECONDS[self.contract.durations[column]]
            return seconds.cast(pl.Float32)
        if column in ("user_id", "item_id"):
            wanted = self.identities.setdefault(column, pl.Int64() if kind.is_numeric() else pl.String())
            if kind.is_float():
                values = pl.when((values == values.round()) & (values.abs() < EXACT_FLOAT)).then(values)
                values = values.cast(pl.Int64, strict=False)
            return values.cast(wanted, strict=False)
        if column in FLAGS:
            return values.cast(pl.Boolean, strict=False) if kind.is_numeric() or kind == pl.Boolean else pl.lit(None)
        if column in ("domain", "behaviour"):
            return values.cast(pl.String)
        if role == "vector" and not isinstance(kind, pl.Array):
            return _vectors(values) if isinstance(kind, pl.List) and kind.inner.is_numeric() else pl.lit(None)
        return values

    def _require_unit(self, table: str, values: pl.Series) -> None:
        """Raise where a column of numbers makes sense as times in a unit that is not the configured one alone."""
        if not (values.dtype.is_numeric() or values.dtype == pl.String):
            return
        some = values.drop_nulls().gather_every(len(values) // SAMPLED_TIMES + 1)
        middle = cast(float | None, some.cast(pl.Float64, strict=False).median()) or 0.0
        known = (EARLIEST.timestamp() * 1e6, self.now.timestamp() * 1e6)
        fits = [unit for unit, length in MICROSECONDS.items() if known[0] < middle * length < known[1]]
        if fits and self.raw.time_unit not in fits:
            when = datetime.fromtimestamp(middle * MICROSECONDS[fits[0]] / 1e6, UTC)
            raise InputError(
                f"{self.name(table)}: column {values.name!r} is not in {self.raw.time_unit}: its median {middle:.0f} "
                f'is {when:%Y-%m-%d %H:%M} in {fits[0]}; set source.time_unit = "{fits[0]}"'
            )

    def find_bulk(self, pieces: Sequence[pl.DataFrame]) -> None:
        """Set `bulk`, the time from the first to the last day of the log.

        A wrong clock puts a few events far from all others, which would move the slices that are counted back from
        the log's end: what holds under a thousandth of the rows beyond a gap of more than a week is no part of it.
        """
        days: Counter[int] = Counter()
        for piece in pieces:
            if "time" in piece.columns:
                times = piece.select(self._cast("time", piece.schema["time"], "time")).to_series()
                times = times.filter((times >= EARLIEST) & (times <= self.now)).to_physical()
                days.update(dict((times // DAY).rename("day").value_counts().iter_rows()))
        if days:
            first, last = _first_of_bulk(days), -_first_of_bulk(Counter({-day: rows for day, rows in days.items()}))
            begin, end = (datetime.fromtimestamp(day * 86_400, UTC) for day in (first, last + 1))
            self.bulk = (begin, end)

    def rejected(self) -> pl.DataFrame:
        return pl.concat(self.frames) if self.frames else pl.DataFrame(schema=REJECTED)

    def raise_if_too_many(self) -> None:
        """Raise when more than the stated share of some table's rows broke the contract, duplicates apart."""
        faults = self.rejected().filter(pl.col("reason") != "duplicate")
        for table, rows in sorted(self.rows.items()):
            counts = (
                faults.filter(pl.col("table") == table)
                .group_by("reason", "column")
                .len()
                .sort("len", "reason", "column")
            )
            share = counts["len"].sum() / max(rows, 1)
            if share > self.contract.maximum_rejected:
                reason, column, count = counts.row(-1)
                times = (
                    "source.time_unit or source.time_zone"
                    if reason in MISTIMED or column == "time"
                    else self.raw.advice
                )
                raise InputError(
                    f"{self.name(table)}: {share:.1%} of {rows} rows break the contract, most often column {column!r} "
                    f"({reason}: {count} rows); mend the file, correct {times}, or raise "
                    f"contract.maximum_rejected (now {self.contract.maximum_rejected})"
                )


def _write_log(raw: RawLog, contract: config.Contract, check: _Check, out: Path) -> _Seen:
    seen = _Seen()
    if isinstance(raw.events, Sequence):
        check.find_bulk(raw.events)
    with _writing(out / "events.parquet") as write:
        for piece in raw.events:
            events = _events(piece, raw, contract, check)
            seen.add(events, contract.tasks)
            write(events)
    check.raise_if_too_many()
    if not seen.rows:
        raise InputError(f"{check.name('events')}: no usable row; the log is empty, correct {raw.advice}")
    return seen


def _events(piece: pl.DataFrame, raw: RawLog, contract: config.Contract, check: _Check) -> pl.DataFrame:
    """One piece of the log: checked, without exact duplicates, sorted by time, user and item."""
    name = check.name("events")
    require(piece, KEYS, name=name, advice=raw.advice)
    require(piece, contract.tasks, name=name, advice=f"{raw.advice}, or take it out of contract.tasks")
    require(piece, [*contract.durations], name=name, advice=f"{raw.advice}, or take it out of contract.durations")
    piece = piece.with_columns(pl.lit(value).alias(flag) for flag, value in FLAGS.items() if flag not in piece.columns)
    leading = [*KEYS, *FLAGS, *contract.tasks, *contract.durations]
    piece = piece.select(*leading, *(column for column in piece.columns if column not in leading))
    delays = [f"{task}_time" for task in contract.tasks if f"{task}_time" in piece.columns]
    kept = check.apply(
        "events",
        piece,
        needed=KEYS,
        times=("time", *delays),
        labels=contract.tasks,
        durations=[*contract.durations],
    )
    kept = kept.sort("time", "user_id", "item_id", maintain_order=True)
    return _without_duplicates(kept, check).drop("row")


def _without_duplicates(events: pl.DataFrame, check: _Check) -> pl.DataFrame:
    """Drop rows equal to an earlier one in every column. They share their sort key, so only such rows are compared."""
    key = ("time", "user_id", "item_id")
    after = pl.all_horizontal(pl.col(column) == pl.col(column).shift(1) for column in key).fill_null(False)
    before = pl.all_horizontal(pl.col(column) == pl.col(column).shift(-1) for column in key).fill_null(False)
    alike = events.filter(after | before)
    if not alike.height:
        return events
    content = [column for column in events.columns if column != "row"]
    doubles = alike.filter(~alike.select(content).select(pl.struct(pl.all()).is_first_distinct()).to_series())["row"]
    check.reject(
        "events", doubles, pl.repeat("duplicate", len(doubles), eager=True), pl.repeat("", len(doubles), eager=True)
    )
    return events.filter(~pl.col("row").is_in(doubles.implode()))


def _entities(table: str, key: str, frame: pl.DataFrame | None, seen: pl.DataFrame, check: _Check) -> pl.DataFrame:
    """The table of items or users: one row an id, the last one given, and a bare row for ids that only events know."""
    if frame is None:
        frame = seen
    require(frame, [key], name=check.name(table), advice=check.raw.advice)
    optional: dict[str, Any] = {"published": TIME} if table == "items" else {}
    frame = frame.with_columns(
        pl.lit(None, kind).alias(column) for column, kind in optional.items() if column not in frame.columns
    )
    vectors = [column for column in ("content",) if column in frame.columns]
    kept = check.apply(table, frame, needed=[key], times=list(optional), vectors=vectors).drop("row")
    if "content" in kept.columns and kept["content"].null_count() == kept.height:
        kept = kept.drop("content")
    if isinstance(kept.schema.get("content"), pl.List):
        width = kept["content"].list.len().max()
        kept = kept.with_columns(pl.col("content").cast(pl.List(pl.Float32)).list.to_array(cast(int, width)))
    single = kept.unique(key, keep="last", maintain_order=True)
    bare = seen.join(single, on=key, how="anti")
    check.repairs[f"repeated_{table}"] = kept.height - single.height
    check.repairs[f"bare_{table}"] = bare.height
    return pl.concat([single, bare], how="diagonal").sort(key).select(key, pl.exclude(key))


def _write_history(raw: RawLog, check: _Check, seen: _Seen, out: Path) -> None:
    if raw.history is None:
        return
    with _writing(out / "history.parquet") as write:
        for piece in raw.history:
            rows = _history(piece, check)
            seen.add_identities(rows)
            write(rows)


def _history(piece: pl.DataFrame, check: _Check) -> pl.DataFrame:
    require(piece, HISTORY, name=check.name("history"), advice=check.raw.advice)
    kept = check.apply("history", piece.select(HISTORY), needed=HISTORY, times=("time",))
    return kept.select(pl.exclude("row", "rank"), pl.col("rank").cast(pl.Int32)).sort("user_id", "behaviour", "rank")


def _require_positives(seen: _Seen, contract: config.Contract, check: _Check) -> None:
    for task in contract.tasks:
        if not seen.positives[task]:
            raise InputError(
                f"{check.name('events')}: column {task!r} has no positive among {seen.rows} rows, so nothing can be "
                "learnt from it; remove it from contract.tasks"
            )


def _vectors(values: pl.Expr) -> pl.Expr:
    """Lists as vectors of the commonest length; null where one has another length."""
    width = values.list.len().drop_nulls().mode().max()
    return pl.when(values.list.len() == width).then(values)


def _first_of_bulk(days: Counter[int]) -> int:
    """The first of the days, with their numbers of rows, that is not cut off from the log's bulk."""
    ordered = sorted(days)
    first, before = ordered[0], 0
    for day, following in pairwise(ordered):
        before += days[day]
        if before >= STRAY_SHARE * days.total():
            break
        if following - day > STRAY_GAP_DAYS:
            first = following
    return first


def _utc(values: pl.Expr, kind: pl.DataType, unit: str, zone: str) -> pl.Expr:
    """A column of times as UTC in microseconds; null where it is no time."""
    if isinstance(kind, pl.Datetime):
        aware = values if kind.time_zone else _local(values, zone)
        return aware.dt.convert_time_zone("UTC").cast(TIME)
    if kind == pl.Date:
        return _local(values.cast(pl.Datetime("us")), zone).dt.convert_time_zone("UTC")
    if unit == "iso" and kind == pl.String:
        offset = values.str.contains(r"(Z|[+-]\d\d:?\d\d)$")
        aware = values.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        naive = _local(values.str.to_datetime(time_unit="us", strict=False), zone).dt.convert_time_zone("UTC")
        return pl.when(offset).then(aware).otherwise(naive)
    if not (kind.is_numeric() or kind == pl.String) or unit == "iso":
        return pl.lit(None, TIME)
    whole = values.cast(pl.Int64 if kind.is_integer() else pl.Float64, strict=False)
    sensible = pl.when(whole.abs() < (1 << 62) // MICROSECONDS[unit]).then(whole)
    return (
        (sensible * MICROSECONDS[unit]).cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )


def _local(values: pl.Expr, zone: str) -> pl.Expr:
    """Wall-clock times of a zone; an hour that occurs twice is the first, one that does not occur is null."""
    return values.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def _is_float(kind: pl.DataType) -> bool:
    inner = kind.inner if isinstance(kind, pl.Array | pl.List) else kind
    return inner.is_float()


def _not_finite(values: pl.Series) -> pl.Series:
    """Whether a number, or any number of a vector, is NaN or infinite; null is neither."""
    if isinstance(values.dtype, pl.Array | pl.List):
        finite = pl.col(values.name).cast(pl.List(values.dtype.inner)).list.eval(pl.element().is_finite()).list.all()
        return values.to_frame().select(~finite).to_series()
    return ~values.is_finite()


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """A function that appends frames of one schema to a Parquet file, a row group or more each."""
    writer: pq.ParquetWriter | None = None

    def write(frame: pl.DataFrame) -> None:
        nonlocal writer
        table: pa.Table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_statistics=False)
        writer.write_table(table.cast(writer.schema))

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
