"""Where a row's features come from: every value that the models see of a user, an item and a moment, and its events.

The values are those of `FeatureStore.rows`; beside them stand the raw values, what the vocabularies know of them, and
the events that each was computed from, as row numbers of the store's own tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.table import Table

from models.schema import Role
from pipeline.features import identity, match, statistics
from pipeline.features.pairs import CROSS
from pipeline.features.store import POSITIONS, FeatureStore, Rows
from pipeline.features.timeline import Integers
from pipeline.lake import InputError

SIDES = ("user", "item")
WIDTH = 100
SHOWN_EVENTS = 3


@dataclass(frozen=True)
class Subject:
    """A user or an item: the id asked for and its row in the store's table, 0 where the table does not have it."""

    side: str
    id: str
    row: int


@dataclass(frozen=True)
class Code:
    """A categorical field: the value, its code (0: unknown), and for a vocabulary's value how often training saw it.

    `count` and `last_seen` (µs) are None for a value that was not admitted, and for fields without a vocabulary."""

    name: str
    role: Role
    raw: Any
    code: int
    count: int | None
    last_seen: int | None


@dataclass(frozen=True)
class Value:
    """A number of the user, the item or the pair: as the tables have it, and as the models read it."""

    name: str
    role: Role
    raw: Any
    encoded: float


@dataclass(frozen=True)
class Window:
    """What was counted of an entity in a window: `events` are rows of `FeatureStore.events`, old to new.

    `positives` and `priors` are by rate; `encoded` are the features by name.
    """

    window: str
    events: Integers
    shows: int
    positives: dict[str, int]
    priors: dict[str, tuple[float, float]]
    encoded: dict[str, float]


@dataclass(frozen=True)
class Entity:
    """The statistics of an entity such as "user+category" for one key; `of` are the raw values the key is made of."""

    name: str
    of: dict[str, Any]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Match:
    """How many events of a history share the candidate's attribute; `events` are rows of the behaviour, old to new."""

    attribute: str
    raw: Any
    events: Integers
    encoded: dict[str, float]


@dataclass(frozen=True)
class History:
    """The user's last events of a behaviour: rows [end - length, end) of `FeatureStore.behaviours`."""

    behaviour: str
    end: int
    length: int
    matches: tuple[Match, ...]

    @property
    def events(self) -> Integers:
        return np.arange(self.end - self.length, self.end)


@dataclass(frozen=True)
class Explanation:
    """A row and where it comes from. `logged` is the impression of the log that this is, if there is one."""

    user: Subject
    item: Subject
    domain: str
    time: int
    logged: dict[str, Any] | None
    row: Rows
    codes: tuple[Code, ...]
    values: tuple[Value, ...]
    entities: tuple[Entity, ...]
    histories: tuple[History, ...]


def explain(store: FeatureStore, events: Path, user: str, item: str, time: int, domain: str = "") -> Explanation:
    """Every feature of an item for a user as of `time` (µs), by the raw ids as text.

    `events` is the events folder that the store was made from. Without a domain it is that of the impression logged
    at that moment, or else the schema's first. An id that the tables lack is explained as the unknown one.
    Raises InputError for a domain that the log does not have.
    """
    subjects = {"user": _subject(store, "user", user), "item": _subject(store, "item", item)}
    logged = _impression(events, subjects, time, domain)
    domain = domain or (str(logged["domain"]) if logged else store.schema.domains[0])
    if domain not in store.schema.domains:
        raise InputError(f"{domain!r} is no domain of the log; it has {', '.join(store.schema.domains)}")
    raw = {side: _raw(events, subject) for side, subject in subjects.items()}
    place = store.schema.domains.index(domain)
    vocabulary = pl.read_parquet(store.folder / "vocabulary.parquet")
    context, codes = _context(store, logged or {}, vocabulary)
    asked = (np.array([subjects["user"].row]), np.array([subjects["item"].row]), np.array([place]))
    row = store.rows(*asked, np.array([time], np.int64), context=context)

    numbers = {number.name: (number.role, float(row.numbers[0, n])) for n, number in enumerate(store.schema.numbers)}
    attributes = {**raw["user"], **raw["item"], "user": user, "item": item, "domain": domain}
    entities = tuple(_entity(store, name, asked, time, attributes, numbers) for name in store.recipe.statistics)
    histories = tuple(_history(store, name, row, attributes, numbers) for name in store.behaviours)
    fields = [store.schema.fields[n] for n in store.schema.positions("context", "cross")]
    seen = {**codes, "domain": domain, "hour": datetime.fromtimestamp(time // 1_000_000, UTC).hour}
    return Explanation(
        user=subjects["user"],
        item=subjects["item"],
        domain=domain,
        time=time,
        logged=logged,
        row=row,
        codes=(
            *_codes(store, "user", subjects["user"], raw["user"], vocabulary),
            *_codes(store, "item", subjects["item"], raw["item"], vocabulary),
            *(
                _code(field.name, field.role, _of(field.name, {**attributes, **seen}), int(code), vocabulary)
                for field, code in zip(fields, row.context[0], strict=True)
            ),
        ),
        values=tuple(
            Value(name, role, attributes.get("published" if name == "item_age" else name), encoded)
            for name, (role, encoded) in numbers.items()
        ),
        entities=entities,
        histories=histories,
    )


def moment(text: str) -> int:
    """A time in microseconds from ISO 8601 (UTC where it names no zone) or seconds since 1970; InputError otherwise."""
    try:
        return round(float(text) * 1_000_000)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is no time; write 2022-05-04T12:30:00 or seconds since 1970") from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return round(when.timestamp()) * 1_000_000 + when.microsecond


def event_table(store: FeatureStore, table: Mapping[str, Any], rows: Integers) -> pl.DataFrame:
    """Events of `store.events` or of a behaviour as a person reads them: time, raw ids, domain, and what they count."""
    ids = {f"{side}_id": _ids(store, side).gather(table[side][rows]) for side in SIDES}
    named = pl.Series([*store.schema.domains, None], dtype=pl.String)
    counted = [name for name in table if name not in (*SIDES, "domain", "time")]
    return pl.DataFrame(
        {
            "time": pl.Series(table["time"][rows]).cast(pl.Datetime("us", "UTC")),
            **ids,
            "domain": named.gather(np.where(table["domain"][rows] < 0, len(named) - 1, table["domain"][rows])),
            **{name: table[name][rows] for name in counted},
        }
    )


def _ids(store: FeatureStore, side: str) -> pl.Series:
    return pl.read_parquet(store.folder / f"{side}s.parquet", columns=[f"{side}_id"]).to_series()


def _subject(store: FeatureStore, side: str, given: str) -> Subject:
    found = (identity.canonical(_ids(store, side)) == given).arg_true()
    return Subject(side, given, int(found[0]) if len(found) else 0)


def _impression(events: Path, subjects: dict[str, Subject], time: int, domain: str) -> dict[str, Any] | None:
    """The log's row of this user and item at this moment, in this domain if one is given."""
    same = [pl.col(f"{side}_id").cast(pl.String) == subject.id for side, subject in subjects.items()]
    same += [pl.col("domain") == domain] if domain else []
    log = pl.scan_parquet(events / "events.parquet").filter(pl.col("time").dt.epoch("us") == time, "shown", *same)
    return next(log.head(1).collect().iter_rows(named=True), None)


def _raw(events: Path, subject: Subject) -> dict[str, Any]:
    """The row that a user or an item has in the events folder."""
    table = pl.scan_parquet(events / f"{subject.side}s.parquet")
    rows = table.filter(pl.col(f"{subject.side}_id").cast(pl.String) == subject.id).collect()
    return next(rows.iter_rows(named=True), {})


def _context(
    store: FeatureStore, logged: dict[str, Any], vocabulary: pl.DataFrame
) -> tuple[dict[str, npt.NDArray[np.integer]], dict[str, Any]]:
    """Codes and raw values of what an impression of the log has of the context, for `FeatureStore.rows`."""
    codes: dict[str, npt.NDArray[np.integer]] = {}
    raw = {}
    for name in (store.schema.fields[n].name for n in store.schema.positions("context")):
        if name not in logged or name == "domain":
            continue
        raw[name] = logged[name]
        if name == "position":
            codes[name] = np.array([min(max(logged[name] or 0, 0), POSITIONS)])
        else:
            table = vocabulary.filter(field=name)
            known = identity.Vocabulary(name, table, rare=0, evicted=0, collisions=0)
            codes[name] = known.encode(pl.Series([logged[name]])).to_numpy()
    return codes, raw


def _codes(
    store: FeatureStore, role: Role, subject: Subject, raw: dict[str, Any], vocabulary: pl.DataFrame
) -> list[Code]:
    table = store.users if role == "user" else store.items
    names = [store.schema.fields[n].name for n in store.schema.positions(role)]
    return [_code(name, role, _of(name, raw), int(table[f"code_{name}"][subject.row]), vocabulary) for name in names]


def _of(name: str, raw: dict[str, Any]) -> Any:
    """The raw value of a field; of a cross those of its parts, None if one is."""
    parts = [raw.get(part) for part in name.split(CROSS)]
    return None if None in parts else parts[0] if len(parts) == 1 else f" {CROSS} ".join(map(_text, parts))


def _code(name: str, role: Role, raw: Any, code: int, vocabulary: pl.DataFrame) -> Code:
    entry = vocabulary.filter(field=name, code=code)
    count, last_seen = entry.select("count", "last_seen").row(0) if entry.height else (None, None)
    return Code(name, role, raw, code, count, last_seen)


def _entity(
    store: FeatureStore,
    name: str,
    asked: tuple[Integers, Integers, Integers],
    time: int,
    attributes: dict[str, Any],
    numbers: dict[str, tuple[Role, float]],
) -> Entity:
    events = store.events
    keys = store.entity_keys(name, events["user"], events["item"], events["domain"])
    before = np.flatnonzero((keys == store.entity_keys(name, *asked)) & (events["time"] < time))
    before = before[np.argsort(events["time"][before], kind="stable")]
    windows = []
    for window in store.recipe.windows:
        length = statistics.window_length(window)
        rows = before if length is None else before[events["time"][before] >= time - length]
        windows.append(
            Window(
                window,
                rows,
                shows=int(events["shows"][rows].sum()),
                positives={rate: int(events[rate][rows].sum()) for rate in store.recipe.rates},
                priors=store.recipe.priors[name],
                encoded={one: numbers.pop(one)[1] for one in statistics.names(name, (window,), store.recipe.rates)},
            )
        )
    return Entity(name, {part: attributes.get(part) for part in name.split("+")}, tuple(windows))


def _history(
    store: FeatureStore,
    name: str,
    row: Rows,
    attributes: dict[str, Any],
    numbers: dict[str, tuple[Role, float]],
) -> History:
    end, length = int(row.ends[name][0]), int(row.lengths[name][0])
    table = {key: column[end - length : end] for key, column in store.behaviours[name].items()}
    matches = []
    for attribute in store.recipe.attributes:
        own = store.entity_keys(attribute, row.user, row.item, row.domain)
        same = store.entity_keys(attribute, table["user"], table["item"], table["domain"]) == own
        encoded = {one: numbers.pop(one)[1] for one in match.names(name, (attribute,), content=False)}
        rows = np.flatnonzero(same & (own > 0)) + end - length
        matches.append(Match(attribute, attributes.get(attribute), rows, encoded))
    content = f"{name}_content_similarity"
    if content in numbers:
        encoded = {content: numbers.pop(content)[1]}
        matches.append(Match("content", None, np.arange(end - length, end), encoded))
    return History(name, end, length, tuple(matches))


def terminal(explained: Explanation, store: FeatureStore) -> None:
    """Print an explanation in groups: user, item, context, statistics by entity, histories and matches."""
    console = Console(width=WIDTH, highlight=False)
    console.print(
        f"user {explained.user.id} · item {explained.item.id} · domain {explained.domain} · {_date(explained.time)}"
    )
    for subject in (explained.user, explained.item):
        if not subject.row:
            console.print(
                f"[bold]{subject.side} {subject.id} is not in the log or its tables[/]: models see the unknown "
                f"{subject.side}, all codes 0, and nothing that was counted"
            )
    labels = {name: (explained.logged or {}).get(name) for name in store.schema.labels}
    told = " · ".join(f"{name} {value}" for name, value in labels.items())
    console.print(f"an impression of the log: {told}" if explained.logged else "not an impression of the log")

    for role in ("user", "item", "context", "cross"):
        table = Table("field or number", "raw", "model sees", "seen in training", "last", title=role, width=WIDTH)
        for code in (one for one in explained.codes if one.role == role):
            known = "unknown" if code.code == 0 else "" if code.count is None else f"{code.count:,}"
            last = "" if code.last_seen is None else _date(code.last_seen)
            table.add_row(code.name, _text(code.raw), f"code {code.code}", known, last)
        for value in (one for one in explained.values if one.role == role):
            table.add_row(value.name, _text(value.raw), f"{value.encoded:.6g}", "", "")
        if table.row_count:
            console.print(table)

    rates = store.recipe.rates
    for entity in explained.entities:
        of = ", ".join(f"{part} {_text(value)}" for part, value in entity.of.items())
        priors = entity.windows[0].priors
        smoothing = ", ".join(f"{rate} ({a:.4g}, {b:.4g})" for rate, (a, b) in priors.items())
        table = Table(
            "window", "shows", "encoded", *(part for rate in rates for part in (rate, "rate")),
            title=f"{entity.name} ({of}); smoothing (a, b): {smoothing}", width=WIDTH,
        )  # fmt: skip
        for window in entity.windows:
            shows, *smoothed = window.encoded.values()
            cells = (
                part
                for rate, value in zip(rates, smoothed, strict=True)
                for part in (f"{window.positives[rate]:,}", f"{value:.6g}")
            )
            table.add_row(window.window, f"{window.shows:,}", f"{shows:.6g}", *cells)
        console.print(table)
        widest = max((window.events for window in entity.windows), key=len)
        _print_events(console, store, store.events, widest, explained.time)

    for history in explained.histories:
        most = store.recipe.lengths[history.behaviour]
        console.print(f"[bold]{history.behaviour}[/]: the last {history.length} of at most {most} events")
        _print_events(console, store, store.behaviours[history.behaviour], history.events, explained.time)
        table = Table("matches", "raw", "events", "model sees", title=f"{history.behaviour} × item", width=WIDTH)
        for one in history.matches:
            sees = " · ".join(f"{name} {value:.6g}" for name, value in one.encoded.items())
            table.add_row(one.attribute, _text(one.raw), f"{len(one.events)}", sees)
        console.print(table)


def _print_events(console: Console, store: FeatureStore, table: Mapping[str, Any], rows: Integers, time: int) -> None:
    """How many events, from when to when, and the last of them with how long before `time` they were."""
    if not len(rows):
        console.print("from no event")
        return
    first, last = (_date(int(table["time"][rows[place]])) for place in (0, -1))
    console.print(f"from {len(rows):,} event(s), {first} to {last}; the last:")
    for event in event_table(store, table, rows[-SHOWN_EVENTS:]).iter_rows(named=True):
        when = round(event.pop("time").timestamp() * 1_000_000)
        told = " ".join(f"{name.removesuffix('_id')} {value}" for name, value in event.items() if value is not None)
        console.print(f"  {_date(when)}, {_ago(time - when)} before: {told}")


def _date(time: int) -> str:
    return f"{datetime.fromtimestamp(time // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def _ago(gap: int) -> str:
    """A time difference in µs in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if gap >= length * 1_000_000:
            return f"{gap / length / 1e6:.1f} {unit}"
    return f"{gap / 1e6:.1f} s"


def _text(value: Any) -> str:
    """A raw value in a table's cell: a dash for none, the length of a vector."""
    if value is None:
        return "—"
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > 3 else ", ".join(map(str, value))
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)
