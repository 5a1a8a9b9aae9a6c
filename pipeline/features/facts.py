"""Facts of every impression as of its own moment, day by day: counts, histories and matches, and nothing fitted.

A job writes one side of some days for some parts of the users: either what each user's own events tell (side "user"),
or what is counted over all users ("shared"). It reads the days that its windows reach back to; what came before them
are totals by key. So memory is set by a day or a part, and no file depends on which job wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.features import identity, match, sequences
from pipeline.features.entities import Entities, is_of_one_user
from pipeline.features.partition import KEYS, date, events_file, history_file, late_file, runs
from pipeline.features.statistics import ALL, Counter, as_of, count_name, window_length
from pipeline.features.timeline import Integers, Timeline
from pipeline.parquet import read_parquet

DAY = 86_400_000_000
BLOCK = 1 << 21
ROW_GROUP = 1 << 16
BEFORE_THE_LOG = -1

Side = Literal["user", "shared"]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """What the facts are: `behaviours` maps a sequence to its task, and `lengths` to how many events a history has at
    most; `delays` are the columns `<task>_time` of the log, `context` names columns that are kept as feature ids,
    `kept` those that are kept as they are."""

    statistics: tuple[str, ...]
    windows: tuple[str, ...]
    rates: tuple[str, ...]
    behaviours: dict[str, str]
    attributes: tuple[str, ...]
    match_content: bool
    lengths: dict[str, int]
    delays: tuple[str, ...]
    context: tuple[str, ...]
    kept: tuple[str, ...]
    parts: int

    def entities(self, side: Side) -> tuple[str, ...]:
        """The entities that a side counts."""
        return tuple(name for name in self.statistics if is_of_one_user(name) == (side == "user"))


@dataclass(frozen=True)
class Job:
    """One side of the last days of `days`, from `first` on, for some parts; `events` are the rows of each of the days.

    `work` holds the partitioned log and the keys of users and items. The files go to folders of `out` named by date.
    """

    side: Side
    work: Path
    out: Path
    settings: Settings
    domains: int
    parts: tuple[int, ...]
    days: tuple[int, ...]
    events: tuple[int, ...]
    first: int


def facts_file(folder: Path, side: Side, part: int) -> Path:
    return folder / f"{side}-{part:02d}.parquet"


def counted_windows(windows: tuple[str, ...]) -> tuple[str, ...]:
    """The windows that are counted: those asked for, and all time, towards which the others are shrunk."""
    return tuple(dict.fromkeys((*windows, ALL)))


def write_keys(work: Path, users: pl.DataFrame, items: pl.DataFrame) -> None:
    """Keep the keys of users and items by number, and the items' content, for the jobs."""
    users.write_parquet(work / "user_keys.parquet", statistics=False)
    items.write_parquet(work / "item_keys.parquet", statistics=False)


def write(job: Job) -> None:
    """Write the job's files, each under a temporary name first, so that a failed job can be run again."""
    entities, content = _read_keys(job)
    matched = content if job.settings.match_content else None
    if job.side == "shared":
        _write_side(job, job.parts, entities, [], lambda rows, tables: {})
        return
    for part in job.parts:
        behaviours = [
            _Behaviour.of(job, part, name, task, entities, matched) for name, task in job.settings.behaviours.items()
        ]
        columns = [*job.settings.kept, *job.settings.context]
        _write_side(job, (part,), entities, columns, partial(_own, job.settings, behaviours))


def _own(settings: Settings, behaviours: list[_Behaviour], rows: Columns, tables: list[pa.Table]) -> Columns:
    """What a user's impressions are, and what its histories tell of them."""
    columns = dict(rows)
    for name in (*settings.kept, *settings.context):
        values = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks])
        if name in settings.context:
            columns[f"fid_{name}"] = identity.fids(name, pl.Series(values)).fill_null(-1).to_numpy()
        else:
            columns[name] = values
    for behaviour in behaviours:
        columns |= behaviour.facts(rows)
    return columns


@dataclass(frozen=True)
class Tally:
    """What a job's parts counted before a time (µs), by how many keys have the same counts."""

    job: Job
    until: int


def tally_file(job: Job, entity: str) -> Path:
    """A row is a combination of `shows` and the rates' positives, and `keys` how many keys of the entity have it."""
    return job.work / f"tally-{job.side}-{job.parts[0]:02d}-{entity}.parquet"


def tally(wanted: Tally) -> None:
    """Write the tallies of all entities of the job's side."""
    job = wanted.job
    ledger = _Ledger(_Log(job, job.parts), _read_keys(job)[0])
    totals = ledger.at({wanted.until // DAY})[wanted.until // DAY]
    last = ledger.log.countable(wanted.until // DAY, wanted.until // DAY + 1)
    before = last["time"] < wanted.until
    last = {name: column[before] for name, column in last.items()}
    names = ["shows", *job.settings.rates]
    for entity in ledger.names:
        totals.add(entity, ledger.keys(entity, last), last["values"])
        table = pl.DataFrame(totals.values[entity], schema=names, orient="row").group_by(names).agg(keys=pl.len())
        table.sort(names).write_parquet(tally_file(job, entity))


def _write_side(
    job: Job,
    parts: tuple[int, ...],
    entities: Entities,
    columns: list[str],
    further: Callable[[Columns, list[pa.Table]], Columns],
) -> None:
    """Write a side, block by block: what is `further` known of a block's rows and their `columns`, and the counts."""
    log = _Log(job, parts)
    ledger = _Ledger(log, entities)
    for block in runs([day for day in job.days if day >= job.first], log.sizes, BLOCK):
        tables = log.shown(block, [*KEYS, *columns])
        rows = {name: _concatenated(tables, name) for name in KEYS}
        found = further(rows, tables)
        for entity, counts in _counts(log, ledger, block, rows):
            kinds = ("shows", *job.settings.rates)
            for place, window in enumerate(counted_windows(job.settings.windows)):
                found |= {count_name(entity, kind, window): counts[place, number] for number, kind in enumerate(kinds)}
        begin = 0
        for (day, part), table in zip([(day, part) for day in block for part in parts], tables, strict=True):
            end = begin + table.num_rows
            _write(found, begin, end, facts_file(job.out / date(day), job.side, part))
            begin = end


def _write(columns: dict[str, Any], begin: int, end: int, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    pq.write_table(
        pa.table({name: column[begin:end] for name, column in columns.items()}),
        temporary,
        row_group_size=ROW_GROUP,
        compression="lz4",
        use_dictionary=False,
        write_statistics=False,
    )
    temporary.replace(path)


def _read_keys(job: Job) -> tuple[Entities, npt.NDArray[np.float32] | None]:
    users, items = (_columns(read_parquet(job.work / f"{side}_keys.parquet")) for side in ("user", "item"))
    content = items.pop("content", None)
    return Entities(users, items, job.domains), content


@dataclass(frozen=True)
class _Log:
    """The partitioned log of some parts of the users, read a few days at a time."""

    job: Job
    parts: tuple[int, ...]

    @property
    def sizes(self) -> dict[int, int]:
        """About how many rows each day has."""
        share = len(self.parts) / self.job.settings.parts
        return {day: round(events * share) for day, events in zip(self.job.days, self.job.events, strict=True)}

    def shown(self, days: list[int], columns: list[str]) -> list[pa.Table]:
        """The impressions of each part of each day, day by day."""
        return [self._shown(day, part, columns) for day in days for part in self.parts]

    def countable(self, begin: int, end: int) -> Columns:
        """What was counted on the days from `begin` until `end`: user, item, domain, time, and values (N, 1 + rates),
        the impression and its positives. Positives of a delayed task count when they became known, without an
        impression."""
        rates = self.job.settings.rates
        plain = [rate for rate in rates if f"{rate}_time" not in self.job.settings.delays]
        days = [day for day in self.job.days if begin <= day < end]
        tables = self.shown(days, [*KEYS, *plain])
        low, high = np.searchsorted(self._late["time"], [begin * DAY, end * DAY])
        late = {name: column[low:high] for name, column in self._late.items()}
        columns = {name: np.concatenate([_concatenated(tables, name), late[name]]) for name in KEYS}
        rows = len(columns["time"]) - (high - low)
        values = np.zeros((len(columns["time"]), 1 + len(rates)), np.int8)
        values[:rows, 0] = 1
        for place, rate in enumerate(rates):
            if rate in plain:
                values[:rows, 1 + place] = _concatenated(tables, rate)
            else:
                values[rows:, 1 + place] = late["rate"] == place
        return {**columns, "values": values}

    def positives(self, task: str) -> Columns:
        """All of a task's positives with their user, item, domain and time, that of the positive where it is delayed;
        those of rows that were not shown among them."""
        when = f"{task}_time" if f"{task}_time" in self.job.settings.delays else "time"
        names = ["user", "item", "domain", when]
        files = [events_file(self.job.work, day, part) for day in self.job.days for part in self.parts]
        table = pl.scan_parquet(files).filter(pl.col(task) > 0, pl.col(when).is_not_null()).select(names).collect()
        return {name: table[column].to_numpy() for name, column in zip(KEYS, names, strict=True)}

    def _shown(self, day: int, part: int, columns: list[str]) -> pa.Table:
        table = read_parquet(events_file(self.job.work, day, part), [*columns, "shown"])
        shown, table = table["shown"], table.select(columns)
        return table if pc.all(shown).as_py() in (True, None) else table.filter(shown)

    @cached_property
    def _late(self) -> Columns:
        """Delayed positives of all days in order of the time at which they count; `rate` is a place in the rates."""
        rates = self.job.settings.rates
        days = self.job.days if self.job.settings.delays else self.job.days[:1]
        table = pl.read_parquet([late_file(self.job.work, day, part) for day in days for part in self.parts])
        places = pl.DataFrame({"task": rates, "rate": range(len(rates))}, schema={"task": pl.String, "rate": pl.Int8})
        table = table.join(places, on="task", maintain_order="left").sort("time", maintain_order=True)
        return {name: table[name].to_numpy() for name in (*KEYS, "rate")}


@dataclass(frozen=True)
class _Behaviour:
    """A part's events of one behaviour, prior history first, sorted by user and time, and what is asked of them."""

    name: str
    length: int
    user: npt.NDArray[np.int32]
    time: Integers
    timeline: Timeline
    items: dict[str, Integers]
    shared: dict[str, match.Shared]
    content: npt.NDArray[np.float32] | None
    contents: npt.NDArray[np.int32] | None

    @classmethod
    def of(
        cls, job: Job, part: int, name: str, task: str, entities: Entities, content: npt.NDArray[np.float32] | None
    ) -> _Behaviour:
        logged = _Log(job, (part,)).positives(task)
        prior: Columns = {"user": np.empty(0, np.int32), "item": np.empty(0, np.int32), "time": np.empty(0, np.int64)}
        if (path := history_file(job.work, part)).exists():
            history = pl.read_parquet(path).filter(pl.col("behaviour") == task)
            prior = {column: history[column].to_numpy() for column in prior}
        columns = {column: np.concatenate([prior[column], logged[column]]) for column in prior}
        domain = np.concatenate([np.full(len(prior["user"]), BEFORE_THE_LOG, np.int16), logged["domain"]])
        rank = np.arange(len(domain))
        rank[len(prior["user"]) :] = 0
        order = np.lexsort((domain, columns["item"], rank, domain >= 0, columns["time"], columns["user"]))
        user, item, time = (column[order] for column in columns.values())
        owners = user.astype(np.int64)
        keys = {attribute: entities.items[attribute].astype(np.int64) for attribute in job.settings.attributes}
        return cls(
            name=name,
            length=job.settings.lengths[name],
            user=user,
            time=time,
            timeline=Timeline.of(owners, time),
            items=keys,
            shared={attribute: match.Shared.of(owners, values[item]) for attribute, values in keys.items()},
            content=content,
            contents=None if content is None else match.running_content(content[item]),
        )

    def facts(self, rows: Columns) -> Columns:
        """How many events each row's user had before, and per attribute how many of the last ones share the item's
        value, and how long ago the newest did; and the similarity of their content."""
        owner = rows["user"].astype(np.int64)
        ends, lengths = sequences.pointers(self.timeline, owner, rows["time"], self.length)
        columns: Columns = {f"{self.name}_before": (ends - np.searchsorted(self.user, owner)).astype(np.int32)}
        for attribute, index in self.shared.items():
            values = self.items[attribute][rows["item"]]
            counts, gaps = match.found(index, self.time, owner, values, rows["time"], ends, lengths)
            columns |= {f"{self.name}_same_{attribute}": counts, f"{self.name}_{attribute}_gap": gaps}
        if self.content is not None and self.contents is not None:
            similarity = match.content_similarity(self.contents, self.content[rows["item"]], ends, lengths)
            columns[f"{self.name}_content_similarity"] = similarity
        return columns


@dataclass
class _Totals:
    """Sums by key of what was counted before a day; keys are ascending."""

    day: int
    keys: dict[str, Integers]
    values: dict[str, npt.NDArray[np.int32]]

    def copy(self) -> _Totals:
        return _Totals(self.day, dict(self.keys), {entity: values.copy() for entity, values in self.values.items()})

    def add(self, entity: str, keys: Integers, values: npt.NDArray[np.integer]) -> None:
        columns = {str(place): values[:, place] for place in range(values.shape[1])}
        summed = pl.DataFrame({"key": keys, **columns}).group_by("key").agg(pl.all().sum()).sort("key")
        added, sums = summed["key"].to_numpy(), summed.drop("key").to_numpy().astype(np.int32)
        places, known = self._places(entity, added)
        self.values[entity][places[known]] += sums[known]
        if not known.all():
            self.keys[entity] = np.insert(self.keys[entity], places[~known], added[~known])
            self.values[entity] = np.insert(self.values[entity], places[~known], sums[~known], axis=0)

    def of(self, entity: str, keys: Integers) -> npt.NDArray[np.int32]:
        """The totals of each key (N, 1 + rates); 0 for one that was never counted. Fastest for ascending keys."""
        places, known = self._places(entity, keys)
        totals = np.zeros((len(keys), self.values[entity].shape[1]), np.int32)
        totals[known] = self.values[entity][places[known]]
        return totals

    def _places(self, entity: str, keys: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        places = np.searchsorted(self.keys[entity], keys)
        known = places < len(self.keys[entity])
        known[known] = self.keys[entity][places[known]] == keys[known]
        return places, known


class _Ledger:
    """Totals of a side's entities as of the beginning of any day; those asked for last are remembered."""

    def __init__(self, log: _Log, entities: Entities) -> None:
        self.log = log
        self.entities = entities
        self.names = log.job.settings.entities(log.job.side)
        self._kept: list[_Totals] = []

    def at(self, days: set[int]) -> dict[int, _Totals]:
        """Totals over everything counted before each of the days."""
        found: dict[int, _Totals] = {}
        for day in sorted(days):
            earlier = [totals for totals in (*self._kept, *found.values()) if totals.day <= day]
            found[day] = self._advanced(max(earlier, key=lambda one: one.day).copy() if earlier else self._none(), day)
        self._kept = list(found.values())
        return found

    def _none(self) -> _Totals:
        width = 1 + len(self.log.job.settings.rates)
        keys = {name: np.empty(0, np.int64) for name in self.names}
        return _Totals(self.log.job.days[0], keys, {name: np.empty((0, width), np.int32) for name in self.names})

    def _advanced(self, totals: _Totals, day: int) -> _Totals:
        sizes = dict.fromkeys(range(totals.day, day), 0) | self.log.sizes
        for run in runs(list(range(totals.day, day)), sizes, BLOCK):
            counted = self.log.countable(run[0], run[-1] + 1)
            for name in self.names:
                totals.add(name, self.keys(name, counted), counted["values"])
        totals.day = max(day, totals.day)
        return totals

    def keys(self, entity: str, rows: Columns) -> Integers:
        return self.entities.keys(entity, rows["user"], rows["item"], rows["domain"])


def spans(first: int, last: int, windows: tuple[str, ...]) -> tuple[int, dict[str, tuple[int, int]]]:
    """From which day on all events are read for the rows of the days first … last, and, for the windows that begin long
    before these, the first and last day in which they begin."""
    near, far = first, {}
    lengths = {window: length for window in windows if (length := window_length(window)) is not None}
    for window, length in sorted(lengths.items(), key=lambda one: one[1]):
        begin, end = (first * DAY - length) // DAY, ((last + 1) * DAY - 1 - length) // DAY
        if end >= near - 1:
            near = min(near, begin)
        else:
            far[window] = (begin, end)
    return near, far


def _counts(log: _Log, ledger: _Ledger, block: list[int], rows: Columns) -> Iterator[tuple[str, npt.NDArray[np.int32]]]:
    """For each entity of the ledger its counts (counted windows, 1 + rates, N) as of the rows of a block of days.

    The count over [t - w, t) is what came before t less what came before t - w. For a window that begins long before
    the block, the latter is asked of the days in which it begins, so that the days between are not read again.
    """
    windows = counted_windows(log.job.settings.windows)
    near, far = spans(block[0], block[-1], windows)
    inside = tuple(window for window in windows if window not in far)
    bases = ledger.at({near, *(begin for begin, _ in far.values())})
    ends = dict(sorted(far.values())) | {near: block[-1]}
    events = {begin: log.countable(begin, end + 1) for begin, end in ends.items()}
    for entity in ledger.names:
        keys = ledger.keys(entity, rows)
        distinct, inverse = np.unique(keys, return_inverse=True)
        counters = {
            begin: Counter.of(ledger.keys(entity, counted), counted["time"], counted["values"])
            for begin, counted in events.items()
        }
        counts = np.empty((len(windows), 1 + len(log.job.settings.rates), len(keys)), np.int32)
        now = as_of(counters[near], keys, rows["time"], inside)
        now[:, inside.index(ALL)] += bases[near].of(entity, distinct)[inverse]
        counts[[windows.index(window) for window in inside]] = now.transpose(1, 2, 0)
        for window, (begin, _) in far.items():
            length = window_length(window) or 0
            then = as_of(counters[begin], keys, rows["time"] - length, (ALL,))[:, 0]
            then += bases[begin].of(entity, distinct)[inverse]
            counts[windows.index(window)] = (now[:, inside.index(ALL)] - then).T
        yield entity, counts


def _concatenated(tables: list[pa.Table], name: str) -> npt.NDArray[Any]:
    columns = [table[name].to_numpy() for table in tables]
    return np.concatenate(columns) if columns else np.empty(0, np.int8)


def _columns(table: pa.Table) -> Columns:
    """Columns as arrays; a list of fixed size becomes a matrix."""
    return {
        name: np.array(column.combine_chunks().flatten()).reshape(len(column), -1)
        if pa.types.is_fixed_size_list(column.type)
        else column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
