"""The feature store: turns any (user, item, domain, time) into a model's input, by one definition for all uses.

The training log, the candidates of a recall route and a request of the serving engine go through the same `rows`.
Only numpy and pyarrow are needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.schema import Number, Role, Schema
from pipeline.features import match, pairs, sequences, statistics
from pipeline.features.pairs import Pair
from pipeline.features.timeline import Integers, Timeline

SLICES = ("train", "validation", "test")
IDS = ("user_id", "item_id")
UNKNOWN_TIME = -(1 << 62)
UNKNOWN_AGE = np.float32(-1.0)
HOUR, DAY = 3_600_000_000, 86_400_000_000
POSITIONS = 20
CHUNK = 1 << 18

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """N rows: who, what, where, when, and what is known of them at that moment. `labels` are NaN where unknown.

    `context` has the codes of the fields that depend on the row: those of the context, then the crosses.
    """

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int16]
    time: npt.NDArray[np.int64]
    context: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.float32]
    ends: dict[str, npt.NDArray[np.int64]]
    lengths: dict[str, npt.NDArray[np.int32]]
    labels: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

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
        return cls(lengths=raw["lengths"], priors=priors, **tuples)


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """A features folder in memory.

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
    behaviours: dict[str, Columns]
    events: Columns
    crosses: tuple[Pair, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        schema = Schema.from_json((folder / "schema.json").read_text())
        recipe = Recipe.from_json(json.loads((folder / "encoders.json").read_text())["recipe"])
        log = pq.read_schema(folder / "log.parquet").names
        delays = [f"{rate}_time" for rate in recipe.rates if f"{rate}_time" in log]
        counted = read_columns(folder / "log.parquet", ["user", "item", "domain", "time", *recipe.rates, *delays])
        return cls(
            folder=folder,
            schema=schema,
            slices=json.loads((folder / "slices.json").read_text()),
            recipe=recipe,
            users=read_columns(folder / "users.parquet"),
            items=read_columns(folder / "items.parquet"),
            behaviours={one.name: read_columns(folder / f"behaviour_{one.name}.parquet") for one in schema.sequences},
            events=countable(counted, recipe.rates),
            crosses=pairs.read(folder, schema),
        )

    def log(self, *slices: str) -> Rows:
        """The logged impressions of these slices ("train", "validation", "test"; all when none is named), in order of
        time, with their stored features and labels."""
        wanted = [SLICES.index(name) for name in slices or SLICES]
        file = pq.ParquetFile(self.folder / "log.parquet")
        groups = [self._read_group(file, group, wanted) for group in range(file.num_row_groups)]
        return Rows.concatenate([group for group in groups if group is not None])

    def rows(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
        context: dict[str, npt.NDArray[np.integer]] | None = None,
    ) -> Rows:
        """Any rows, such as candidates, with their features as of `time` (N,) in microseconds; labels are unknown.

        `context` gives codes of context fields; by default the hour follows from `time`, the position is the first,
        and anything else is unknown.
        """
        given = {"domain": domain + 1, "hour": hour(time), "position": np.ones(len(user), np.int32), **(context or {})}
        unknown = np.zeros(len(user), np.int32)
        names = [self.schema.fields[place].name for place in self.schema.positions("context")]
        codes = self._context(user, item, {name: np.asarray(given.get(name, unknown), np.int32) for name in names})
        pointers = {name: self.history(name, user, time) for name in self.behaviours}
        numbers = np.empty((len(user), len(self.schema.numbers)), np.float32)
        for begin in range(0, len(user), CHUNK):
            part = slice(begin, begin + CHUNK)
            local = {name: (ends[part], lengths[part]) for name, (ends, lengths) in pointers.items()}
            self._numbers(user[part], item[part], domain[part], time[part], local, out=numbers[part])
        return Rows(
            user=user.astype(np.int32),
            item=item.astype(np.int32),
            domain=domain.astype(np.int16),
            time=time.astype(np.int64),
            context=codes,
            numbers=numbers,
            ends={name: ends for name, (ends, _) in pointers.items()},
            lengths={name: lengths for name, (_, lengths) in pointers.items()},
            labels=np.full((len(user), len(self.schema.labels)), np.nan, np.float32),
        )

    def crossed(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        context: dict[str, npt.NDArray[np.integer]],
    ) -> dict[str, npt.NDArray[np.int32]]:
        """Codes (N,) of each of `crosses`, from the users, the items and the codes of the context fields."""
        return pairs.crossed(self.crosses, self.users, self.items, user, item, context)

    def _context(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        context: dict[str, npt.NDArray[np.integer]],
    ) -> npt.NDArray[np.int32]:
        """`Rows.context` from the codes of the context fields in the schema's order."""
        return np.stack([*context.values(), *self.crossed(user, item, context).values()], axis=1)

    def history(
        self, behaviour: str, user: npt.NDArray[np.integer], time: Integers
    ) -> tuple[Integers, npt.NDArray[np.int32]]:
        """End and length of each user's history strictly before `time`: rows [end - length, end) of the behaviour."""
        timeline = self._behaviour_timelines[behaviour]
        return sequences.pointers(timeline, np.asarray(user, np.int64), time, self.recipe.lengths[behaviour])

    def cut(self, moment: int) -> FeatureStore:
        """The store as it would be had the log ended just before `moment`: what was fitted stays as it is."""
        return replace(
            self,
            events=_before(self.events, moment),
            behaviours={name: _before(table, moment) for name, table in self.behaviours.items()},
        )

    def _numbers(
        self,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
        time: Integers,
        pointers: dict[str, tuple[Integers, npt.NDArray[np.int32]]],
        out: npt.NDArray[np.float32],
    ) -> None:
        """Fill `out` (N, M) in the order of `numbers`."""
        place = 0

        def add(columns: npt.NDArray[np.float32]) -> None:
            nonlocal place
            columns = columns.reshape(len(user), -1)
            out[:, place : place + columns.shape[1]] = columns
            place += columns.shape[1]

        for table, row in ((self.users, user), (self.items, item)):
            for name in _prefixed(table, "number_"):
                add(table[f"number_{name}"][row])
        if "published" in self.items:
            add(item_age(self.items["published"][item], time))
        for entity in self.recipe.statistics:
            priors = [self.recipe.priors[entity][rate] for rate in self.recipe.rates]
            keys = self.entity_keys(entity, user, item, domain)
            add(statistics.features(self._counters[entity], keys, time, self.recipe.windows, priors))
        for name, (ends, lengths) in pointers.items():
            table, owner = self.behaviours[name], user.astype(np.int64)
            for attribute in self.recipe.attributes:
                values = self._item_keys[attribute][item]
                index = self._shared[name, attribute]
                for column in match.shared(index, table["time"], owner, values, time, ends, lengths):
                    add(column)
            if "content" in self.items:
                add(match.content_similarity(self._contents[name], self.items["content"][item], ends, lengths))
        if "content" in self.users and "content" in self.items:
            add(match.cosine(self.users["content"][user], self.items["content"][item]))

    def entity_keys(
        self,
        entity: str,
        user: npt.NDArray[np.integer],
        item: npt.NDArray[np.integer],
        domain: npt.NDArray[np.integer],
    ) -> Integers:
        """One int64 key per row for an entity such as "user", "author_id" or "item+domain"."""

        def part(name: str) -> tuple[Integers, int]:
            if name == "domain":
                return np.asarray(domain, np.int64) + 1, len(self.schema.domains) + 1
            if name in self._user_keys:
                return self._user_keys[name][user], self._sizes[name]
            return self._item_keys[name][item], self._sizes[name]

        parts = [part(name) for name in entity.split("+")]
        return reduce(lambda keys, one: keys * one[1] + one[0], parts[1:], parts[0][0])

    @cached_property
    def _user_keys(self) -> dict[str, Integers]:
        return _keys("user", self.users)

    @cached_property
    def _item_keys(self) -> dict[str, Integers]:
        return _keys("item", self.items)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: int(values.max()) + 1 for name, values in (self._user_keys | self._item_keys).items()}

    @cached_property
    def _counters(self) -> dict[str, statistics.Counter]:
        events = self.events
        values = np.stack([events[name] for name in ("shows", *self.recipe.rates)], axis=1)
        return {
            entity: statistics.Counter.of(
                self.entity_keys(entity, events["user"], events["item"], events["domain"]), events["time"], values
            )
            for entity in self.recipe.statistics
        }

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

    def _read_group(self, file: pq.ParquetFile, group: int, wanted: list[int]) -> Rows | None:
        slices = file.read_row_group(group, ["slice"])["slice"].to_numpy()
        mask = np.isin(slices, wanted)
        if not mask.any():
            return None

        def read(names: Iterable[str], dtype: type) -> npt.NDArray[Any]:
            columns = file.read_row_group(group, list(names))
            table = np.empty((int(mask.sum()), columns.num_columns), dtype)
            for place, column in enumerate(columns.columns):
                table[:, place] = column.to_numpy()[mask]
            return table

        def column(name: str, dtype: type) -> npt.NDArray[Any]:
            return read([name], dtype)[:, 0]

        context = [self.schema.fields[place].name for place in self.schema.positions("context")]
        user, item = column("user", np.int32), column("item", np.int32)
        return Rows(
            user=user,
            item=item,
            domain=column("domain", np.int16),
            time=column("time", np.int64),
            context=self._context(user, item, {name: column(f"code_{name}", np.int32) for name in context}),
            numbers=read([number.name for number in self.schema.numbers], np.float32),
            ends={name: column(f"{name}_end", np.int64) for name in self.behaviours},
            lengths={name: column(f"{name}_length", np.int32) for name in self.behaviours},
            labels=read(self.schema.labels, np.float32),
        )


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
            for name in match.names(behaviour, recipe.attributes, "content" in items)
        ),
        *([Number("content_similarity", "cross")] if "content" in users and "content" in items else []),
    )


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


def countable(log: Columns, rates: tuple[str, ...]) -> Columns:
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
    """Columns of a Parquet file, all but the raw ids, as writable arrays: (N, d) for a fixed-size list, an unknown time
    for null."""
    table = pq.read_table(path, columns=names)
    names = [name for name in table.column_names if name not in IDS]
    return {name: _array(table[name].combine_chunks()) for name in names}


def _array(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(values.type):
        return np.array(values.flatten()).reshape(len(values), values.type.list_size)
    if values.null_count:
        values = values.fill_null(UNKNOWN_TIME)
    return np.array(values)


def _keys(side: str, table: Columns) -> dict[str, Integers]:
    """Every row's key of each attribute, 0 for unknown; the key of a user or an item itself is its row number."""
    own = np.arange(len(table[f"code_{side}_id"]), dtype=np.int64)
    return {side: own, **{name: table[f"key_{name}"].astype(np.int64) for name in _prefixed(table, "key_")}}


def _prefixed(table: Columns, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in table if name.startswith(prefix)]


def _before(table: Columns, moment: int) -> Columns:
    kept = table["time"] < moment
    return {name: column[kept] for name, column in table.items()}
