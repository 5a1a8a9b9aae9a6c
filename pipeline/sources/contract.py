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
from pathlib import Path
from typing import Any

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
KEYS = ("user_id", "item_id", "domain", "time")
FLAGS = {"shown": True, "random": False}
HISTORY = ("user_id", "item_id", "behaviour", "time", "rank")
REJECTED = {"table": pl.String, "row": pl.Int64, "reason": pl.String, "column": pl.String}


def write_events(source: config.Source, contract: config.Contract, out: Path) -> dict[str, Any]:
    """Fill `out` with the contract's tables and return counts: rows, rejections by reason, rates, first and last time.

    Raises `InputError` for a missing file or column, an empty log, a task without positives, and when more than
    `contract.maximum_rejected` of a table's rows break the contract (exact duplicates do not count towards it).
    """
    raw = _open(source, out)
    check = _Check(raw, contract)
    seen = _write_log(raw, contract, check, out)
    _write_history(raw, check, seen, out)
    items = _entities("items", "item_id", raw.items, seen.items, check)
    users = _entities("users", "user_id", raw.users, seen.users, check)
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
class _Seen:
    """What the events that passed amount to."""

    rows: int = 0
    first: int = 0
    last: int = 0
    positives: Counter[str] = field(default_factory=Counter)
    domains: set[str] = field(default_factory=set)
    items: pl.DataFrame = field(default_factory=pl.DataFrame)
    users: pl.DataFrame = field(default_factory=pl.DataFrame)

    def add(self, events: pl.DataFrame, tasks: Sequence[str]) -> None:
        if not events.height:
            return
        times = events["time"].to_physical()
        self.first = int(times[0]) if not self.rows else self.first
        self.last = int(times[-1])
        self.rows += events.height
        self.positives.update({task: int(events[task].sum()) for task in tasks})
        self.domains.update(events["domain"].unique())
        self.add_identities(events)

    def add_identities(self, rows: pl.DataFrame) -> None:
        self.items = pl.concat([self.items, rows.select("item_id")], how="diagonal").unique()
        self.users = pl.concat([self.users, rows.select("user_id")], how="diagonal").unique()


class _Check:
    """The rules. Rows that break one are set apart with the first reason and column; the rest are cast and returned."""

    def __init__(self, raw: RawLog, contract: config.Contract) -> None:
        self.raw = raw
        self.contract = contract
        self.now = datetime.now(UTC)
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
    ) -> pl.DataFrame:
        """The rows of one piece of a table that keep the contract, in its types, with `row`, their number in the file.

        `needed` may not be null, `times` become UTC, `labels` must be 0 or 1 and, where they are delayed, not known
        before the row's own time; no number may be NaN or infinite.
        """
        kinds = frame.schema
        typed = frame.select(
            pl.int_range(self.rows[table], self.rows[table] + frame.height, dtype=pl.Int64).alias("row"),
            *(self._cast(column, kind, times, labels).alias(column) for column, kind in kinds.items()),
        )
        typing = dict.fromkeys((*needed, *times, *(flag for flag in FLAGS if flag in kinds)))
        rules = [
            *(("not finite", column, _not_finite(frame[column])) for column, kind in kinds.items() if _is_float(kind)),
            *(("null", column, frame[column].is_null()) for column in needed),
            *(("wrong type", column, typed[column].is_null() & frame[column].is_not_null()) for column in typing),
            *(("label not 0 or 1", column, typed[column].is_null()) for column in labels),
            *(("in the future", column, typed[column] > self.now) for column in times),
            *(("before 1990", column, typed[column] < EARLIEST) for column in times),
            *(
                ("before its impression", f"{label}_time", typed[f"{label}_time"] < typed["time"])
                for label in labels
                if f"{label}_time" in kinds
            ),
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

    def _cast(self, column: str, kind: pl.DataType, times: Sequence[str], labels: Sequence[str]) -> pl.Expr:
        values = pl.col(column)
        if column in times:
            return _utc(values, kind, self.raw.time_unit, self.raw.time_zone)
        if column in labels:
            number = values.cast(pl.Float64, strict=False)
            return pl.when(number.is_in([0.0, 1.0])).then(number).cast(pl.Int8)
        if column in ("user_id", "item_id"):
            wanted = self.identities.setdefault(column, pl.Int64() if kind.is_numeric() else pl.String())
            if kind.is_float():
                values = pl.when(values == values.round()).then(values)
                values = values.cast(pl.Int64, strict=False)
            return values.cast(wanted, strict=False)
        if column in FLAGS:
            return values.cast(pl.Boolean, strict=False) if kind.is_numeric() or kind == pl.Boolean else pl.lit(None)
        if column in ("domain", "behaviour"):
            return values.cast(pl.String)
        return values

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
                raise InputError(
                    f"{self.name(table)}: {share:.1%} of {rows} rows break the contract, most often column {column!r} "
                    f"({reason}: {count} rows); mend the file, correct {self.raw.advice}, or raise "
                    f"contract.maximum_rejected (now {self.contract.maximum_rejected})"
                )


def _write_log(raw: RawLog, contract: config.Contract, check: _Check, out: Path) -> _Seen:
    seen = _Seen()
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
    piece = piece.with_columns(pl.lit(value).alias(flag) for flag, value in FLAGS.items() if flag not in piece.columns)
    leading = [*KEYS, *FLAGS, *contract.tasks]
    piece = piece.select(*leading, *(column for column in piece.columns if column not in leading))
    delays = [f"{task}_time" for task in contract.tasks if f"{task}_time" in piece.columns]
    kept = check.apply("events", piece, needed=KEYS, times=("time", *delays), labels=contract.tasks)
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
    times = [column for column in optional if column in frame.columns]
    kept = check.apply(table, frame, needed=[key], times=times).drop("row")
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
    whole = values if kind.is_integer() else values.cast(pl.Float64, strict=False)
    return (whole * MICROSECONDS[unit]).cast(pl.Int64, strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


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
