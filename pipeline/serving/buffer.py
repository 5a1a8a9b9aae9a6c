"""The buffer of feedback: what was acknowledged is on the disk, and is there after a kill or a power cut.

One SQLite file with a write-ahead log that is synced before a commit returns. Events are numbered in the order in which
they came, and a number is never given twice. An engine that is opened later hears from here what it has missed
(`since`), and training gets what happened as Parquet (`drain`), each event in exactly one file.

Nothing is lost or doubled by a kill while draining: files are named by the numbers of their events and appear whole, by
a rename. That a file is there is what counts. The number up to which events were drained is remembered after the
rename, and a file that begins with the next number, found when draining begins, is one whose remembering was cut off.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.parquet as pq

from pipeline.sources.contract import DAY, TIME

NAME = "live.db"
AT_ONCE = 100_000
BUSY_SECONDS = 10.0
TABLES = """
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, item TEXT NOT NULL, domain TEXT NOT NULL,
    time INTEGER NOT NULL, shown INTEGER NOT NULL, labels BLOB NOT NULL, context BLOB NOT NULL, request TEXT
);
CREATE TABLE IF NOT EXISTS responses (
    request TEXT NOT NULL, time INTEGER NOT NULL, user TEXT NOT NULL, domain TEXT NOT NULL, bundle TEXT NOT NULL,
    arms BLOB NOT NULL, items BLOB NOT NULL, degraded BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS withdrawn (item TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS drained (last INTEGER PRIMARY KEY);
"""
ROW = "user, item, domain, time, shown, labels, context, request"


class BufferFullError(Exception):
    """There is no room on the disk: nothing of what was to be written is there."""


@dataclass(frozen=True)
class Happened:
    """An event: `time` in µs, `labels` are tasks or durations by name."""

    user: str
    item: str
    domain: str
    time: int
    shown: bool
    labels: Mapping[str, float]


@dataclass(frozen=True)
class Received:
    """An event with the values of its context columns and the answer that it was shown by."""

    happened: Happened
    context: Mapping[str, str | float | None] = field(default_factory=dict)
    request: str | None = None


@dataclass(frozen=True)
class Response:
    """What was answered to whom: `items` in the order of the list, `arms` by layer; `time` in µs."""

    request: str
    time: int
    user: str
    domain: str
    bundle: str
    arms: Mapping[str, str]
    items: Sequence[str]
    degraded: Sequence[str]


class Buffer:
    """The buffer in a folder, which is made if need be. Threads may share it, and processes the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = threading.Lock()
        self._connection = self._connect()
        with _full_disk_told(folder):
            self._connection.executescript(TABLES)
        _sync(folder)
        self._events: int = self._connection.execute("SELECT count(*) FROM events").fetchone()[0]

    def __len__(self) -> int:
        """How many events are kept, as far as this object had a hand in it."""
        return self._events

    @property
    def bytes(self) -> int:
        """The size on the disk, what is not yet moved from the write-ahead log included."""
        files = (self.folder / f"{NAME}{suffix}" for suffix in ("", "-wal"))
        return sum(path.stat().st_size for path in files if path.exists())

    def append(self, events: Sequence[Received]) -> int:
        """Keep all events or none; returns the number of the last. It is on the disk when this returns.

        The events of a call are numbered without a gap. Raises `BufferFullError`.
        """
        rows = [
            (
                *(one.user, one.item, one.domain, one.time, one.shown),
                *(orjson.dumps(one.labels), orjson.dumps(event.context), event.request),
            )
            for event in events
            for one in (event.happened,)
        ]
        with self._writing() as connection:
            connection.executemany(f"INSERT INTO events ({ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            number = _last(connection)
        self._events += len(rows)
        return number

    def log(self, responses: Sequence[Response]) -> None:
        """Keep what was answered. Raises `BufferFullError`."""
        rows = [
            (
                *(one.request, one.time, one.user, one.domain, one.bundle),
                *(orjson.dumps(one.arms), orjson.dumps(one.items), orjson.dumps(one.degraded)),
            )
            for one in responses
        ]
        with self._writing() as connection:
            connection.executemany("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def withdraw(self, items: Sequence[str]) -> None:
        """Remember that these items may no longer be shown. Raises `BufferFullError`."""
        with self._writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO withdrawn VALUES (?)", [(item,) for item in items])

    def withdrawn(self) -> list[str]:
        with closing(self._connect()) as connection:
            return [item for (item,) in connection.execute("SELECT item FROM withdrawn")]

    def last_time(self) -> int:
        """The latest time (µs) of an event; 0 without one."""
        with closing(self._connect()) as connection:
            return int(connection.execute("SELECT coalesce(max(time), 0) FROM events").fetchone()[0])

    def last(self) -> int:
        """The number of the last event; 0 without one."""
        with closing(self._connect()) as connection:
            return _last(connection)

    def since(self, time: int, *, after: int = 0) -> Iterator[tuple[int, Happened]]:
        """All events later than a time (µs) with their numbers, those above `after`, in the order they came in."""
        with closing(self._connect()) as connection:
            rows = connection.execute(
                f"SELECT sequence, {ROW} FROM events WHERE sequence > ? AND time > ? ORDER BY sequence", (after, time)
            )
            for sequence, user, item, domain, when, shown, labels, _, _ in rows:
                yield sequence, Happened(user, item, domain, when, bool(shown), orjson.loads(labels))

    def drain(
        self, before: int, *, tasks: Sequence[str], durations: Sequence[str] = (), contexts: Sequence[str] = ()
    ) -> Path | None:
        """Write the events of the whole days (UTC) before a time (µs) as a file of the event contract's columns.

        Tasks are 0 or 1, durations seconds or null, context columns text. A file has all events up to the first of a
        later day, in the order in which they came, so that one that came late is in the next file. Returns None where
        there is nothing to write. Raises `BufferFullError`; what was to be written is then still in the buffer.
        """
        with self._lock, closing(self._connect()) as connection:
            first = self._adopt(connection) + 1
            until = connection.execute(
                "SELECT coalesce(min(sequence) - 1, (SELECT max(sequence) FROM events)) FROM events "
                "WHERE sequence >= ? AND time >= ?",
                (first, before // DAY * DAY),
            ).fetchone()[0]
            if until is None or until < first:
                return None
            path = self.folder / f"events-{first}-{until}.parquet"
            temporary = path.with_name(f".{path.name}.tmp")
            rows = connection.execute(f"SELECT {ROW} FROM events WHERE sequence BETWEEN ? AND ?", (first, until))
            with _full_disk_told(self.folder):
                try:
                    _write(temporary, rows, tasks, durations, contexts)
                    temporary.rename(path)
                finally:
                    temporary.unlink(missing_ok=True)
                _sync(self.folder)
                connection.execute("INSERT INTO drained VALUES (?)", (until,))
            return path

    def forget(self, before: int, *, most: int = AT_ONCE) -> int:
        """Forget at most so many drained events and as many responses of before a time (µs); returns how many."""
        forgotten = []
        with self._writing() as connection:
            for table, which in (("events", "rowid <= (SELECT max(last) FROM drained) AND "), ("responses", "")):
                rows = f"SELECT rowid FROM {table} WHERE {which} time < ? ORDER BY rowid LIMIT ?"
                deleted = connection.execute(f"DELETE FROM {table} WHERE rowid IN ({rows})", (before, most))
                forgotten.append(deleted.rowcount)
        self._events -= forgotten[0]
        return sum(forgotten)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _adopt(self, connection: sqlite3.Connection) -> int:
        """The number up to which events were drained, in files that were not remembered as well."""
        drained = int(connection.execute("SELECT coalesce(max(last), 0) FROM drained").fetchone()[0])
        while found := next(self.folder.glob(f"events-{drained + 1}-*.parquet"), None):
            drained = int(found.stem.rsplit("-", 1)[1])
            connection.execute("INSERT INTO drained VALUES (?)", (drained,))
        return drained

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.folder / NAME, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is done within the block, or nothing."""
        with self._lock, _full_disk_told(self.folder):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _last(connection: sqlite3.Connection) -> int:
    found = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")
    return int(found.fetchone()[0])


def _write(
    path: Path, rows: sqlite3.Cursor, tasks: Sequence[str], durations: Sequence[str], contexts: Sequence[str]
) -> None:
    writer: pq.ParquetWriter | None = None
    with path.open("wb") as file:
        while chunk := rows.fetchmany(AT_ONCE):
            table = _frame(chunk, tasks, durations, contexts).to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
        file.flush()
        os.fsync(file.fileno())


def _frame(
    rows: Sequence[tuple[Any, ...]], tasks: Sequence[str], durations: Sequence[str], contexts: Sequence[str]
) -> pl.DataFrame:
    users, items, domains, times, shown, labels, context, requests = zip(*rows, strict=True)
    told, around = [orjson.loads(one) for one in labels], [orjson.loads(one) for one in context]
    return pl.DataFrame(
        [
            pl.Series("user_id", users, pl.String),
            pl.Series("item_id", items, pl.String),
            pl.Series("domain", domains, pl.String),
            pl.Series("time", times, pl.Int64).cast(TIME),
            pl.Series("shown", map(bool, shown), pl.Boolean),
            *(pl.Series(task, [one.get(task, 0) > 0 for one in told], pl.Boolean).cast(pl.Int8) for task in tasks),
            *(pl.Series(name, [one.get(name) for one in told], pl.Float64) for name in durations),
            *(pl.Series(name, [_text(one.get(name)) for one in around], pl.String) for name in contexts),
            pl.Series("request", requests, pl.String),
        ]
    )


def _text(value: str | float | None) -> str | None:
    """A context's value as its text, in which 7 and 7.0 are the same."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    return None if value is None else str(value)


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise BufferFullError(f"{folder}: the disk is full; free some space") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise BufferFullError(f"{folder}: the disk is full; free some space") from error
