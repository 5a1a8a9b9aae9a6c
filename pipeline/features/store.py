"""The feature store: turns any (user, item, domain, time) into a model's input, by one definition for all uses.

The training log, the candidates of a recall route and a request of the serving engine are encoded by the same code:
`rows` counts anew, `read` takes the counts that a day's files hold. Only numpy and pyarrow are needed here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.schema import Number, Role, Schema
from pipeline.features import match, pairs, sequences, statistics
from pipeline.features.entities import Entities
from pipeline.features.pairs import Pair
from pipeline.features.timeline import Integers, Timeline
from pipeline.parquet import read_parquet

SLICES = ("train", "validation", "test")
IDS = ("user_id", "item_id")
BUILT_IN_CONTEXT = ("domain", "hour", "position")
UNKNOWN_TIME = -(1 << 62)
UNKNOWN_AGE = np.float32(-1.0)
HOUR, DAY = 3_600_000_000, 86_400_000_000
POSITIONS = 20
CHUNK = 1 << 18
PARALLEL = 1 << 15
FEW = 8

T = TypeVar("T")

DAYS = "days"

Columns = dict[str, npt.NDArray[Any]]
Events = Mapping[str, npt.NDArray[Any]]
Pointers = dict[str, tuple[Integers, npt.NDArray[np.int32]]]


@dataclass(frozen=True)
class Rows:
    """N rows: who, what, where, when, and what is known of them at that moment. `labels` are NaN where unknown,
    and so are `durations`, seconds in the order of the schema's. `context` has the codes of the fields that depend on
    the row: those of the context, then the crosses."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int16]
    time: npt.NDArray[np.int64]
    context: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float32]
    ends: dict[str, npt.NDArray[np.int64]]
    lengths: dict[str, npt.NDArray[np.int32]]
    labels: npt.NDArray[np.float32]
    durations: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def pointers(self) -> Pointers:
        """The histories, as `FeatureStore.pointers` gives them."""
        return {name: (ends, self.lengths[name]) for name, ends in self.ends.items()}

    def take(self, index: npt.NDArray[Any] | slice) -> Rows:
        """The rows at an index, a mask or a slice."""
        return Rows._build(lambda column: column[index], self)

    @staticmethod
    def concatenate(parts: list[Rows]) -> Rows:
        return Rows._build(lambda *columns: np.concatenate(columns), *parts)

    @staticmethod
    def _build(combine: Callable[..., npt.NDArray[Any]], *parts: Rows) -> Rows:
        values: dict[str, Any] = {}
        for field in fields(Rows):
            columns = [getattr(part, field.name) for part in parts]
            if isinstance(columns[0], dict):
                values[field.name] = {name: combine(*(column[name] for column in columns)) for name in columns[0]}
            else:
                values[field.name] = combine(*columns)
        return Rows(**values)


@dataclass(frozen=True)
class Recipe:
    """What the numbers are made of. `priors[entity][task]` is the (a, b) of `statistics.features`, `lengths` how many
    events of each behaviour a history has at most."""

    statistics: tuple[str, ...]
    windows: tuple[str, ...]
    rates: tuple[str, ...]
    attributes: tuple[str, ...]
    match_content: bool
    lengths: dict[str, int]
    priors: dict[str, dict[str, tuple[float, float]]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Recipe:
        tuples = {name: tuple(raw[name]) for name in ("statistics", "windows", "rates", "attributes")}
        priors = {
            entity: {task: (prior[0], prior[1]) for task, prior in tasks.items()}
            for entity, tasks in raw["priors"].items()
        }
        return cls(lengths=raw["lengths"], match_content=raw["match_content"], priors=priors, **tuples)


class Deferred(Mapping[str, npt.NDArray[Any]]):
    """Columns that are read when they are first asked for."""

    def __init__(self, read: Callable[[], Columns]) -> None:
        self._read = read

    @cached_property
    def _columns(self) -> Columns:
        return self._read()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """A features folder, of which the users and items are in memory, and events and days come there when asked for.

    `users`, `items`: columns by row number (`code_…`, `number_…`, `key_…`, `published`, `content`); row 0 is unknown.
    `behaviours`: per behaviour the columns user, item, domain and time, sorted by (user, time).
    `events`: what statistics count: user, item, domain, time, `shows` and one column per rate, all 0 or 1.
    `crosses`: the fields with role "cross".
    """

    folder: Path
    schema: Schema
    slices: dict[str, int]
    recipe: Recipe
    users: Columns
    items: Columns
    behaviours: Mapping[str, Events]
    events: Events
    crosses: tuple[Pair, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Reads the users and the items, and of the log nothing."""
        schema = Schema.from_json((folder / "schema.json").read_text())
        recipe = Recipe.from_json(json.loads((folder / "encoders.json").read_text())["recipe"])
        paths = {one.name: folder / f"behaviour_{one.name}.parquet" for one in schema.sequences}
        return cls(
            folder=folder,
            schema=schema,
            slices=json.loads((folder / "slices.json").read_text()),
            recipe=recipe,
            users=read_columns(folder / "users.parquet"),
            items=read_columns(folder / "items.parquet"),
            behaviours={name: Deferred(partial(read_columns, path)) for name, path in paths.items()},
            events=Deferred(partial(read_events, folder, recipe.rates)),
            crosses=pairs.read(folder, schema),
        )

    def days(self) -> list[str]:
        """The days of the log, such as "2026-11-24", in order."""
        return days_of(self.folder)

    def read(self, day: str) -> Rows:
        """The impressions of a day in order of time, with their features as of then and their labels."""
        return self.decode(read_day(self.folder, day))

    def log(self, *slices: str) -> Rows:
        """The logged impressions of these slices ("train", "validation", "test"; all when none is named), in order of
        time, with their features as of then and their labels."""
        return Rows.concatenate([self.decode(table) for table in self.tables(*slices)])

    def tables(self, *slices: str, names: list[str] | None = None) -> Iterator[pa.Table]:
        """The impressions that `log` gives, as the days' files hold them, a day at a time: all columns, or `user`,
        `time` and the plain ones that are named."""
        wanted = None if names is None else list(dict.fromkeys([*names, "user", "time"]))
        for day in self._days_of_slices(slices):
            yield self._of_slices(read_day(self.folder, day, wanted), slices)

    def columns(self, names: list[str], *slices: str) -> Columns:
        """Plain columns of the log (user, item, domain, time, random, labels and their times), in its order."""
        return as_columns(pa.concat_tables([table.select(names) for table in self.tables(*slices, names=names)]))

    def decode(self, table: pa.Table) -> Rows:
        """Rows of days' files, as `read_day` gives them, as features and labels."""
        user, item, domain, time = (table[name].to_numpy() for name in ("user", "item", "domain", "time"))
        given = {"domain": domain + 1, "hour": hour(time)}
        if "position" in table.column_names:
            given["position"] = np.clip(table["position"].fill_null(0).to_numpy(), 0, POSITIONS)
        for name, (fids, codes) in self._contexts.items():
            values = table[f"fid_{name}"].to_numpy()
            places = np.minimum(np.searchsorted(fids, values), len(fids) - 1)
            given[name] = np.where(fids[places] == values, codes[places], 0) if len(fids) else np.zeros(len(user))
        pointers = {}
        for name in self.behaviours:
            before = table[f"{name}_before"].to_numpy()
            pointers[name] = (self._starts[name][user] + before, np.minimum(before, self.recipe.lengths[name]))
        numbers = np.empty((len(user), len(self.schema.numbers)), np.float32)
        for begin in range(0, len(user), CHUNK):
            part = slice(begin, begin + CHUNK)
            self._fill(numbers[part], user[part], item[part], time[part], self._stored(table[part]))
        rows = self._rows(user, item, domain, time, given, pointers, numbers)
        for out, names in ((rows.labels, self.schema.labels), (rows.durations, self.schema.durations)):
            for place, name in enumerate(names):
                out[:, place] = table[name].to_numpy()
        return rows

    def rows(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
        context: Mapping[str, npt.NDArray[np.integer]] | None = None,
    ) -> Rows:
        """Any rows, such as candidates, with their features as of `time` (N,) in microseconds; labels are unknown.

        `context` gives codes of context fields; by default the hour follows from `time`, the position is the first,
        and anything else is unknown.
        """
        given = {"domain": domain + 1, "hour": hour(time), "position": np.ones(len(user), np.int32), **(context or {})}
        pointers = self.pointers(user, time)
        numbers = np.empty((len(user), len(self.schema.numbers)), np.float32)
        for begin in range(0, len(user), CHUNK):
            part = slice(begin, begin + CHUNK)
            local = {name: (ends[part], lengths[part]) for name, (ends, lengths) in pointers.items()}
            counted = self._counted(user[part], item[part], domain[part], time[part], local)
            self._fill(numbers[part], user[part], item[part], time[part], counted)
        return self._rows(user, item, domain, time, given, pointers, numbers)

    def pointers(self, user: npt.NDArray[np.integer], time: Integers) -> Pointers:
        """Each user's `history` of every behaviour."""
        return {name: self.history(name, user, time) for name in self.behaviours}

    def history(
        self, behaviour: str, user: npt.NDArray[np.integer], time: Integers
    ) -> tuple[Integers, npt.NDArray[np.int32]]:
        """End and length of each user's history strictly before `time`: rows [end - length, end) of the behaviour."""
        if len(user) < FEW:
            return self._history_of_few(behaviour, user, time)
        timeline = self._behaviour_timelines[behaviour]
        return sequences.pointers(timeline, np.asarray(user, np.int64), time, self.recipe.lengths[behaviour])

    def _history_of_few(
        self, behaviour: str, user: npt.NDArray[np.integer], time: Integers
    ) -> tuple[Integers, npt.NDArray[np.int32]]:
        """`history` without the sorting that pays for many: a behaviour's table is by user and time."""
        table, longest = self.behaviours[behaviour], self.recipe.lengths[behaviour]
        owners, moments = table["user"], table["time"]
        ends, lengths = np.empty(len(user), np.int64), np.empty(len(user), np.int32)
        for row, (one, moment) in enumerate(zip(user.astype(owners.dtype), time, strict=True)):
            begin, end = owners.searchsorted(one), owners.searchsorted(one, "right")
            ends[row] = begin + moments[begin:end].searchsorted(moment)
            lengths[row] = min(ends[row] - begin, longest)
        return ends, lengths

    def cut(self, moment: int) -> FeatureStore:
        """The store as it would be had the log ended just before `moment`: what was fitted stays as it is."""
        return replace(
            self,
            events=_before(self.events, moment),
            behaviours={name: _before(table, moment) for name, table in self.behaviours.items()},
        )

    def _rows(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
        context: dict[str, npt.NDArray[Any]],
        pointers: Pointers,
        numbers: npt.NDArray[np.float32],
    ) -> Rows:
        """Rows whose labels and durations are unknown."""
        names = [self.schema.fields[place].name for place in self.schema.positions("context")]
        unknown = np.zeros(len(user), np.int32)
        codes = {name: np.asarray(context.get(name, unknown), np.int32) for name in names}
        crossed = pairs.crossed(self.crosses, self.users, self.items, user, item, codes)
        return Rows(
            user=user.astype(np.int32),
            item=item.astype(np.int32),
            domain=domain.astype(np.int16),
            time=time.astype(np.int64),
            context=np.stack([*codes.values(), *crossed.values()], axis=1),
            numbers=numbers,
            ends={name: ends for name, (ends, _) in pointers.items()},
            lengths={name: lengths for name, (_, lengths) in pointers.items()},
            labels=np.full((len(user), len(self.schema.labels)), np.nan, np.float32),
            durations=np.full((len(user), len(self.schema.durations)), np.nan, np.float32),
        )

    def _fill(
        self,
        out: npt.NDArray[np.float32],
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        time: Integers,
        counted: Iterable[npt.NDArray[np.float32]],
    ) -> None:
        """Fill `out` (N, M) in the order of `numbers`: what users and items are, what was counted of them, and how
        alike their vectors are."""
        place = 0
        for columns in (*self._known(user, item, time), *counted, *self._alike(user, item)):
            width = columns.shape[1] if columns.ndim == 2 else 1
            out[:, place : place + width] = columns.reshape(len(out), width)
            place += width

    def _known(
        self, user: npt.NDArray[np.integer], item: npt.NDArray[np.integer], time: Integers
    ) -> Iterator[npt.NDArray[np.float32]]:
        for table, row in ((self.users, user), (self.items, item)):
            for name in _prefixed(table, "number_"):
                yield table[f"number_{name}"][row]
        if "published" in self.items:
            yield item_age(self.items["published"][item], time)

    def _alike(self, user: npt.NDArray[np.integer], item: npt.NDArray[np.integer]) -> Iterator[npt.NDArray[np.float32]]:
        if "content" in self.users and "content" in self.items:
            yield match.cosine(self.users["content"][user], self.items["content"][item])

    def _counted(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
        pointers: Pointers,
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Statistics and matches of any rows, from the events in memory."""
        yield from self._statistics(user, item, domain, time)
        for name, (ends, lengths) in pointers.items():
            yield from self._matches(name, user, item, time, ends, lengths)

    def _statistics(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Of each entity its columns (N, …)."""
        counters, entities = self._counters, self._entities

        def count(entity: str) -> npt.NDArray[np.float32]:
            keys = entities.keys(entity, user, item, domain)
            return statistics.features(counters[entity], keys, time, self.recipe.windows, self._priors(entity))

        yield from _each(count, self.recipe.statistics, rows=len(user))

    def _matches(
        self,
        name: str,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        time: Integers,
        ends: Integers,
        lengths: npt.NDArray[np.int32],
    ) -> Iterator[npt.NDArray[np.float32]]:
        """How the items match the histories of one behaviour: columns (N,)."""
        table, owner = self.behaviours[name], user.astype(np.int64)
        for attribute in self.recipe.attributes:
            values = self._item_keys[attribute][item]
            index = self._shared[name, attribute]
            yield from match.encode(*match.found(index, table["time"], owner, values, time, ends, lengths))
        if self.recipe.match_content:
            yield match.content_similarity(self._contents[name], self.items["content"][item], ends, lengths)

    def _stored(self, table: pa.Table) -> Iterator[npt.NDArray[np.float32]]:
        """Statistics and matches of logged rows, from their day's files."""
        windows = (*self.recipe.windows, statistics.ALL)
        kinds = ("shows", *self.recipe.rates)
        for entity in self.recipe.statistics:
            counts = np.empty((table.num_rows, len(windows), len(kinds)), np.int32)
            for place, window in enumerate(windows):
                for number, kind in enumerate(kinds):
                    counts[:, place, number] = table[statistics.count_name(entity, kind, window)].to_numpy()
            yield statistics.encode(counts, self.recipe.windows, self._priors(entity))
        for name in self.behaviours:
            for attribute in self.recipe.attributes:
                counts, gaps = (table[f"{name}_{one}"].to_numpy() for one in (f"same_{attribute}", f"{attribute}_gap"))
                yield from match.encode(counts, gaps)
            if self.recipe.match_content:
                yield table[f"{name}_content_similarity"].to_numpy()

    def _priors(self, entity: str) -> list[tuple[float, float]]:
        return [self.recipe.priors[entity][rate] for rate in self.recipe.rates]

    def _days_of_slices(self, slices: tuple[str, ...]) -> list[str]:
        """The days in which the slices have rows; all days when none is named."""
        bounds = [self.slices[name] for name in ("begin", "validation", "test", "end")]
        ranges = [bounds[place : place + 2] for place in map(SLICES.index, slices or SLICES)]
        begins = np.array(self.days(), "datetime64[us]").astype(np.int64)
        inside = [any(begin < last and first < begin + DAY for first, last in ranges) for begin in begins]
        return [day for day, wanted in zip(self.days(), inside, strict=True) if wanted]

    def _of_slices(self, table: pa.Table, slices: tuple[str, ...]) -> pa.Table:
        if not slices:
            return table
        bounds = [self.slices["validation"], self.slices["test"]]
        wanted = np.isin(np.searchsorted(bounds, table["time"].to_numpy(), side="right"), [*map(SLICES.index, slices)])
        return table if wanted.all() else table.filter(pa.array(wanted))

    def entity_keys(
        self,
        entity: str,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
    ) -> Integers:
        """One int64 key per row for an entity such as "user", "author_id" or "item+domain"."""

        return self._entities.keys(entity, user, item, domain)

    @cached_property
    def _entities(self) -> Entities:
        return Entities(_keys("user", self.users), self._item_keys, len(self.schema.domains))

    @cached_property
    def _item_keys(self) -> dict[str, Integers]:
        return _keys("item", self.items)

    @cached_property
    def _counters(self) -> dict[str, statistics.Counter]:
        events = self.events
        values = np.stack([events[name] for name in ("shows", *self.recipe.rates)], axis=1)

        def counter(entity: str) -> statistics.Counter:
            keys = self.entity_keys(entity, events["user"], events["item"], events["domain"])
            return statistics.Counter.of(keys, events["time"], values)

        entities = self.recipe.statistics
        return dict(zip(entities, _each(counter, entities, rows=len(values)), strict=True))

    @cached_property
    def _behaviour_timelines(self) -> dict[str, Timeline]:
        return {
            name: Timeline.of(table["user"].astype(np.int64), table["time"]) for name, table in self.behaviours.items()
        }

    @cached_property
    def _shared(self) -> dict[tuple[str, str], match.Shared]:
        return {
            (name, attribute): match.Shared.of(
                table["user"].astype(np.int64), self._item_keys[attribute][table["item"]]
            )
            for name, table in self.behaviours.items()
            for attribute in self.recipe.attributes
        }

    @cached_property
    def _contents(self) -> dict[str, npt.NDArray[np.int32]]:
        content = self.items["content"]
        return {name: match.running_content(content[table["item"]]) for name, table in self.behaviours.items()}

    @cached_property
    def _starts(self) -> dict[str, Integers]:
        """Where each user's events begin in each behaviour."""
        users = np.arange(len(self.users["code_user_id"]))
        return {name: np.searchsorted(table["user"], users) for name, table in self.behaviours.items()}

    @cached_property
    def _contexts(self) -> dict[str, tuple[Integers, npt.NDArray[np.int32]]]:
        """The feature ids that the vocabularies of context columns admitted, ascending, and their codes."""
        vocabulary = read_columns(self.folder / "vocabulary.parquet", ["fid", "code"])
        field = read_parquet(self.folder / "vocabulary.parquet", ["field"])["field"].to_numpy()
        contexts = {}
        for place in self.schema.positions("context"):
            if (name := self.schema.fields[place].name) not in BUILT_IN_CONTEXT:
                own = np.flatnonzero(field == name)
                own = own[np.argsort(vocabulary["fid"][own])]
                contexts[name] = (vocabulary["fid"][own], vocabulary["code"][own])
        return contexts


def read_events(folder: Path, rates: tuple[str, ...]) -> Columns:
    """What statistics count of all days, as `countable` gives it."""
    delays = [f"{rate}_time" for rate in delayed(folder, rates)]
    names = ["user", "item", "domain", "time", *rates, *delays]
    return countable(as_columns(pa.concat_tables([read_day(folder, day, names) for day in days_of(folder)])), rates)


def delayed(folder: Path, tasks: Iterable[str]) -> list[str]:
    """Those of the tasks whose positives become known later, at `<task>_time`."""
    known = pq.read_schema(next((folder / DAYS / days_of(folder)[0]).glob("user-*.parquet"))).names
    return [task for task in tasks if f"{task}_time" in known]


def days_of(folder: Path) -> list[str]:
    """The days of a features folder in order."""
    return sorted(path.name for path in (folder / DAYS).iterdir())


@dataclass(frozen=True)
class RowGroup:
    """Some rows of a day's files that are read at once; the day reaches from `begin` to `end` (µs)."""

    path: Path
    number: int
    rows: int
    begin: int

    @property
    def end(self) -> int:
        return self.begin + DAY


def row_groups(folder: Path) -> list[RowGroup]:
    """All row groups of a features folder, in order of day and part."""
    found = []
    for day in days_of(folder):
        begin = int(np.datetime64(day, "us").astype(np.int64))
        for path in sorted((folder / DAYS / day).glob("user-*.parquet")):
            told = pq.read_metadata(path)
            found += [RowGroup(path, n, told.row_group(n).num_rows, begin) for n in range(told.num_row_groups)]
    return found


def read_group(group: RowGroup) -> pa.Table:
    """The rows of a row group, in order of time."""
    return _beside(group.path, lambda path: pq.ParquetFile(path).read_row_group(group.number))


def rows_of_slices(folder: Path) -> dict[str, int]:
    """How many impressions each slice of a features folder has."""
    bounds = json.loads((folder / "slices.json").read_text())
    edges, counts = [bounds["validation"], bounds["test"]], np.zeros(len(SLICES), np.int64)
    for day in days_of(folder):
        places = np.searchsorted(edges, read_day(folder, day, ["user", "time"])["time"].to_numpy(), side="right")
        counts += np.bincount(places, minlength=len(SLICES))
    return dict(zip(SLICES, counts.tolist(), strict=True))


def read_day(folder: Path, day: str, names: list[str] | None = None) -> pa.Table:
    """The rows of a day's files, in order of time and user; all their columns, or some of those of the side "user"."""
    paths = sorted((folder / DAYS / day).glob("user-*.parquet"))
    parts = [_beside(path, read_parquet) if names is None else read_parquet(path, names) for path in paths]
    if len(parts) == 1:
        return parts[0]
    whole = pa.concat_tables(parts)
    return whole.take(np.lexsort((whole["user"].to_numpy(), whole["time"].to_numpy())))


def _beside(path: Path, read: Callable[[Path], pa.Table]) -> pa.Table:
    """What is read of a file of the side "user", with the columns of the file of the side "shared" beside it."""
    table = read(path)
    shared = path.with_name(path.name.replace("user", "shared"))
    if shared.exists():
        others = read(shared)
        for name in others.column_names:
            table = table.append_column(name, others[name])
    return table


def numbers(users: Columns, items: Columns, behaviours: Iterable[str], recipe: Recipe) -> tuple[Number, ...]:
    """All numeric features in the order of the columns of `Rows.numbers`, without their means."""
    return (
        *(Number(name, "user") for name in _prefixed(users, "number_")),
        *(Number(name, "item") for name in _prefixed(items, "number_")),
        *([Number("item_age", "item")] if "published" in items else []),
        *(
            Number(name, _role(entity, users))
            for entity in recipe.statistics
            for name in statistics.names(entity, recipe.windows, recipe.rates)
        ),
        *(
            Number(name, "cross")
            for behaviour in behaviours
            for name in match.names(behaviour, recipe.attributes, recipe.match_content)
        ),
        *([Number("content_similarity", "cross")] if "content" in users and "content" in items else []),
    )


def _each(function: Callable[[str], T], names: tuple[str, ...], rows: int) -> Iterator[T]:
    """`map`, with all cores where there are rows enough to pay for it: numpy sorts and searches without the lock."""
    if rows < PARALLEL:
        yield from map(function, names)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(function, names)


def _role(entity: str, users: Columns) -> Role:
    """Whose attributes an entity is made of; "cross" if of several sides."""
    roles: set[Role] = set()
    for part in entity.split("+"):
        roles.add("context" if part == "domain" else "user" if part == "user" or f"key_{part}" in users else "item")
    return roles.pop() if len(roles) == 1 else "cross"


def hour(time: Integers) -> npt.NDArray[np.int32]:
    """Code of the hour of the day in UTC: 1 … 24."""
    return (time % DAY // HOUR + 1).astype(np.int32)


def item_age(published: Integers, time: Integers) -> npt.NDArray[np.float32]:
    """log1p of the hours since publication; `UNKNOWN_AGE` (-1) where that is not known."""
    ages = np.log1p(np.maximum(time - published, 0) / HOUR).astype(np.float32)
    return np.where(published == UNKNOWN_TIME, UNKNOWN_AGE, ages)


def countable(log: Events, rates: tuple[str, ...]) -> Columns:
    """The events that statistics count, from columns of the log.

    A task whose log has a `<task>_time` column is delayed (a conversion): its positives become known at that time and
    are counted then, as events without an impression.
    """
    whole = np.ones(len(log["user"]), np.int8)
    parts: list[Columns] = [
        {
            **{name: log[name] for name in ("user", "item", "domain", "time")},
            "shows": whole,
            **{rate: whole * 0 if f"{rate}_time" in log else log[rate] for rate in rates},
        }
    ]
    for delayed in (rate for rate in rates if f"{rate}_time" in log):
        known = (log[delayed] > 0) & (log[f"{delayed}_time"] != UNKNOWN_TIME)
        late = {name: log[name][known] for name in ("user", "item", "domain")}
        zeros = whole[known] * 0
        values = {rate: zeros + (rate == delayed) for rate in rates}
        parts.append({**late, "time": log[f"{delayed}_time"][known], "shows": zeros, **values})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def read_columns(path: Path, names: list[str] | None = None) -> Columns:
    """Columns of a Parquet file, as `as_columns` gives them."""
    return as_columns(read_parquet(path, names))


def as_columns(table: pa.Table) -> Columns:
    """Columns but the raw ids as writable arrays: (N, d) for a fixed-size list, an unknown time for null."""
    return {name: _array(table[name].combine_chunks()) for name in table.column_names if name not in IDS}


def _array(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(values.type):
        return np.array(values.flatten()).reshape(len(values), values.type.list_size)
    if values.null_count:
        values = values.fill_null(np.nan if pa.types.is_floating(values.type) else UNKNOWN_TIME)
    return np.array(values)


def _keys(side: str, table: Columns) -> dict[str, Integers]:
    """Every row's key of each attribute, 0 for unknown; the key of a user or an item itself is its row number."""
    own = np.arange(len(table[f"code_{side}_id"]), dtype=np.int64)
    return {side: own, **{name: table[f"key_{name}"].astype(np.int64) for name in _prefixed(table, "key_")}}


def _prefixed(table: Columns, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in table if name.startswith(prefix)]


def _before(table: Events, moment: int) -> Columns:
    kept = table["time"] < moment
    return {name: column[kept] for name, column in table.items()}
