"""Every feature on every day: unknown values, range, new and vanished values, label rates, and drift.

Days are UTC days, read one after another, twice: the training days for the bins, then all of them for the counts. One
day is in memory. What is held against a threshold is what chance leaves unexplained (`pipeline.diagnostics.drift`). A
day's draws are not its rows but its users, or what a feature is an attribute of where there are fewer of that: the
clicks of five domains so far are five numbers, however many rows carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from pipeline.diagnostics.columns import Category, Feature, Integers
from pipeline.diagnostics.drift import (
    CHANCE,
    Categories,
    Counts,
    Histogram,
    Intervals,
    effective_size,
    grouped,
    psi,
    psi_by_chance,
    share_by_chance,
)
from pipeline.features.split import slice_of
from pipeline.features.store import DAY, HOUR, SLICES, Rows

EPOCH = date(1970, 1, 1)
SAMPLE = 200_000
NAMED = 3
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
TABLE: dict[str, Any] = {
    "feature": pl.String,
    "kind": pl.String,
    "day": pl.Date,
    "slice": pl.String,
    "judged": pl.Boolean,
    "rows": pl.Int64,
    "draws": pl.Float64,
    "unknown": pl.Float64,
    "zero": pl.Float64,
    "minimum": pl.Float64,
    "q05": pl.Float64,
    "median": pl.Float64,
    "q95": pl.Float64,
    "maximum": pl.Float64,
    "mean": pl.Float64,
    "correlation": pl.Float64,
    "values": pl.Int64,
    "new": pl.Int64,
    "new_share": pl.Float64,
    "new_values": pl.List(pl.String),
    "vanished": pl.Int64,
    "vanished_share": pl.Float64,
    "vanished_values": pl.List(pl.String),
    "psi": pl.Float64,
    "psi_before": pl.Float64,
    "drift": pl.Float64,
    "unknown_rise": pl.Float64,
    "rate_change": pl.Float64,
}

Days = Callable[[], Iterable[tuple[int, Rows]]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """What the days are read against: `bounds` of the slices (µs), `keys` of rows (N,) by entity, domains and labels,
    which label is the positive, and for how long after the log's begin (µs) features that look back are not judged."""

    bounds: dict[str, int]
    keys: Callable[[str, Rows], Integers]
    domains: tuple[str, ...]
    labels: tuple[str, ...]
    positive: str
    warm_up: int


@dataclass(frozen=True, eq=False)
class Measured:
    """`table`: a row a feature and day (columns `TABLE`). `days`: a row a day and domain, "all" first. `histograms`: of
    every feature. `constant`: those with one value everywhere; `duplicated`: groups that are equal in every row."""

    table: pl.DataFrame
    days: pl.DataFrame
    histograms: dict[str, Histogram]
    constant: list[str]
    duplicated: list[list[str]]


@dataclass(eq=False)
class _Tally:
    """What the days passed so far amount to for one feature.

    `raw` (V,) are the training rows' counts of a category's raw values and `seen` (V,) those that a day had; `total` is
    the sum of a quantity over the training rows.
    """

    feature: Feature
    bins: Categories | Intervals
    raw: Counts
    seen: npt.NDArray[np.bool_]
    train: Counts
    daily: list[Counts] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    total: float = 0.0
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    @property
    def constant(self) -> bool:
        """Whether all rows of all days have one value."""
        found = {record["only"] for record in self.records}
        return len(found) == 1 and found != {None}


def measure(columns: Sequence[Feature], days: Days, frame: Frame) -> Measured:
    """Measure the features on the days; `days` gives them anew at every call, in order, rows in order of time."""
    tallies = _fit(columns, days, frame)
    by_domain: list[Record] = []
    for day, rows in days():
        about = _about(day, rows, frame)
        draws = _draws(rows, {feature.entity for feature in columns}, frame)
        for tally in tallies:
            _add(tally, rows, about | {"draws": draws[tally.feature.entity]}, frame)
        by_domain += _by_domain(about, rows, frame)
    for tally in tallies:
        _compare(tally)
        if isinstance(tally.feature, Category):
            _name_values(tally.feature, tally.records)
    return Measured(
        table=pl.DataFrame([record for tally in tallies for record in tally.records], schema=TABLE),
        days=pl.DataFrame(by_domain),
        histograms={tally.feature.name: _histogram(tally) for tally in tallies},
        constant=[tally.feature.name for tally in tallies if tally.constant],
        duplicated=_duplicated(tallies),
    )


def _histogram(tally: _Tally) -> Histogram:
    common = tally.bins.common.tolist() if isinstance(tally.bins, Categories) else []
    names = tally.feature.code_names(common) if isinstance(tally.feature, Category) else []
    return Histogram(tally.bins, tally.train, np.stack(tally.daily), names)


def _draws(rows: Rows, entities: Iterable[str], frame: Frame) -> dict[str, float]:
    """By entity, how many independent draws a day is for its features: its users, or its entities if they are fewer."""
    users = effective_size(rows.user)
    return {entity: min(users, effective_size(frame.keys(entity, rows))) for entity in entities}


def _fit(columns: Sequence[Feature], days: Days, frame: Frame) -> list[_Tally]:
    """Tallies with bins fitted on the training rows.

    Categories are counted whole; the cuts of numbers come from evenly spaced rows, at most 200,000 of the slice.
    """
    begin, validation = frame.bounds["begin"], frame.bounds["validation"]
    quota = SAMPLE // ((validation - begin) // DAY + 1)
    codes = [np.zeros(one.size if isinstance(one, Category) else 0, np.int64) for one in columns]
    raw = [np.zeros(one.raw_size if isinstance(one, Category) else 0, np.int64) for one in columns]
    samples: list[list[npt.NDArray[np.float32]]] = [[] for _ in columns]
    for day, rows in days():
        if day * DAY >= validation:
            break
        train = rows.take(slice(int(np.searchsorted(rows.time, validation))))
        some = train.take(np.unique(np.linspace(0, len(train) - 1, min(len(train), max(1, quota))).astype(np.int64)))
        for place, feature in enumerate(columns):
            if isinstance(feature, Category):
                codes[place] += np.bincount(feature.codes(train), minlength=feature.size)
                raw[place] += np.bincount(feature.raw(train), minlength=feature.raw_size)
            else:
                samples[place].append(feature.values(some))
    tallies = []
    for place, feature in enumerate(columns):
        category = isinstance(feature, Category)
        bins = Categories.fit(codes[place]) if category else Intervals.fit(np.concatenate(samples[place]))
        seen = np.zeros(len(raw[place]), bool)
        tallies.append(_Tally(feature, bins, raw[place], seen, train=np.zeros(bins.size, np.int64)))
    return tallies


def _about(day: int, rows: Rows, frame: Frame) -> Record:
    """A day: its date, the slice of its middle row, how many of its rows are training rows (they come first), whether
    the log is still young, and whether the log cuts it."""
    begin, end = frame.bounds["begin"], frame.bounds["end"]
    first, last = day * DAY, (day + 1) * DAY
    return {
        "day": EPOCH + timedelta(days=day),
        "slice": SLICES[int(slice_of(rows.time[len(rows) // 2 :][:1], frame.bounds)[0])],
        "rows": len(rows),
        "trained": int(np.searchsorted(rows.time, frame.bounds["validation"])),
        "young": first < begin + frame.warm_up,
        "cut": begin >= first + HOUR or end <= last - HOUR,
    }


def _by_domain(about: Record, rows: Rows, frame: Frame) -> list[Record]:
    """A day's rows, users and label rates, in all domains and in each."""
    records = []
    for number, domain in enumerate(("all", *frame.domains), start=-1):
        inside = rows.domain == number if number >= 0 else np.ones(len(rows), bool)
        rates = rows.labels[inside].sum(axis=0, dtype=np.float64) / max(1, int(inside.sum()))
        records.append(
            {
                **{name: about[name] for name in ("day", "slice")},
                "domain": domain,
                "rows": int(inside.sum()),
                "users": len(np.unique(rows.user[inside])),
                **{f"rate_{label}": float(rate) for label, rate in zip(frame.labels, rates, strict=True)},
            }
        )
    return records


def _add(tally: _Tally, rows: Rows, about: Record, frame: Frame) -> None:
    """Count a day's rows in."""
    feature, trained = tally.feature, about["trained"]
    if isinstance(feature, Category):
        values, raw = feature.codes(rows), feature.raw(rows)
        tally.digest.update(raw.tobytes())
        record = _category(tally, values, raw, about["draws"])
        judged = not (feature.name == "hour" and about["cut"])
        counts, train = tally.bins.count(values), tally.bins.count(values[:trained])
    else:
        numbers = feature.values(rows)
        tally.digest.update(numbers.tobytes())
        tally.total += float(np.nansum(numbers[:trained], dtype=np.float64))
        ordered = np.sort(numbers)
        record = _quantity(numbers, ordered, rows.labels[:, frame.labels.index(frame.positive)])
        judged = not (feature.looks_back and about["young"] and about["slice"] == SLICES[0])
        counts = tally.bins.count(ordered)
        train = counts if trained == len(rows) else tally.bins.count(np.sort(numbers[:trained]))
    tally.daily.append(counts)
    tally.train += train
    tally.records.append({"feature": feature.name, "kind": feature.kind, "judged": judged, **about, **record})


def _category(tally: _Tally, codes: Integers, raw: Integers, draws: float) -> Record:
    """New: raw values that no day before had. Vanished: values that training had so often that a day without one of
    them comes about once in a million times."""
    counts = np.bincount(raw, minlength=len(tally.raw))
    counts[0] = 0
    new = np.flatnonzero((counts > 0) & ~tally.seen) if tally.records else np.empty(0, np.int64)
    tally.seen |= counts > 0
    share = tally.raw / max(1, tally.raw.sum())
    share[0] = 0
    vanished = np.flatnonzero((counts == 0) & (share * draws > -np.log(CHANCE)))
    return {
        "unknown": float((codes == 0).mean()),
        "only": int(codes[0]) if (codes == codes[0]).all() else None,
        "values": int((counts > 0).sum()),
        "new": len(new),
        "new_share": float(counts[new].sum() / len(raw)),
        "new_values": new[np.argsort(-counts[new], kind="stable")][:NAMED].tolist(),
        "vanished": len(vanished),
        "vanished_share": float(share[vanished].sum()),
        "vanished_values": vanished[np.argsort(-share[vanished], kind="stable")][:NAMED].tolist(),
    }


def _quantity(
    values: npt.NDArray[np.float32], ordered: npt.NDArray[np.float32], positive: npt.NDArray[np.float32]
) -> Record:
    """Range of the values and, if none is missing, their correlation with the positive label (Pearson's)."""
    known = ordered[: np.searchsorted(ordered, np.float32(np.nan))]
    if not len(known):
        return {"unknown": 1.0, "only": "missing"}
    whole = len(known) == len(ordered)
    zeros = np.searchsorted(known, np.float32(0), side="right") - np.searchsorted(known, np.float32(0))
    places = [int(np.ceil(share * len(known))) - 1 for share in QUANTILES.values()]
    return {
        "unknown": 1 - len(known) / len(ordered),
        "only": float(known[0]) if whole and known[0] == known[-1] else None,
        "zero": zeros / len(known),
        "minimum": float(known[0]),
        "maximum": float(known[-1]),
        **{name: float(value) for name, value in zip(QUANTILES, known[places], strict=True)},
        "mean": float(known.mean(dtype=np.float64)),
        "correlation": _correlation(values, positive) if whole else None,
    }


def _correlation(values: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> float | None:
    """Pearson's correlation; None where either side does not vary."""
    x, y = values - values.mean(dtype=np.float64), others - others.mean(dtype=np.float64)
    norm = np.sqrt(np.dot(x, x) * np.dot(y, y))
    return float(np.dot(x, y) / norm) if norm > 0 else None


def _compare(tally: _Tally) -> None:
    """Add to every day's record how far it is from the training rows and from the day before.

    The training rows are worth as many draws as the best of their days: the same entities may come every day.
    """
    sizes = np.array([record["draws"] for record in tally.records])
    train_size = max(record["draws"] * record["trained"] / record["rows"] for record in tally.records)
    daily = grouped(np.stack(tally.daily), tally.bins.groups)
    train = grouped(tally.train[None], tally.bins.groups)
    index = psi(daily, train)
    drift = np.maximum(0, index - psi_by_chance(daily, train, sizes, train_size))
    before = [None, *psi(daily[1:], daily[:-1]).tolist()]

    rows = int(tally.train.sum())
    unknown = np.array([record["unknown"] for record in tally.records])
    usual = tally.train[tally.bins.unknown] / max(1, rows)
    rise = np.maximum(0, unknown - usual - share_by_chance(unknown, usual, sizes, train_size))
    for place, record in enumerate(tally.records):
        record |= {"psi": index[place], "psi_before": before[place], "drift": drift[place]}
        record |= {"unknown_rise": rise[place]}

    known = rows - int(tally.train[tally.bins.unknown])
    if tally.records[0]["kind"] == "label" and known and tally.total:
        usual = tally.total / known
        rates = np.array([np.nan if one.get("mean") is None else one["mean"] for one in tally.records])
        change = np.maximum(0, np.abs(rates - usual) - share_by_chance(rates, usual, sizes, train_size)) / usual
        for place, record in enumerate(tally.records):
            record |= {"rate_change": None if np.isnan(change[place]) else change[place]}


def _name_values(feature: Category, records: list[Record]) -> None:
    """Replace the numbers of new and vanished values by their text."""
    wanted = sorted({raw for record in records for key in ("new", "vanished") for raw in record[f"{key}_values"]})
    text = dict(zip(wanted, feature.raw_names(wanted), strict=True)) if wanted else {}
    for record in records:
        for key in ("new_values", "vanished_values"):
            record[key] = [text[raw] for raw in record[key]]


def _duplicated(tallies: Sequence[_Tally]) -> list[list[str]]:
    """Groups of features, none of them constant, whose values are equal in every row."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for tally in tallies:
        if not tally.constant:
            key = (isinstance(tally.feature, Category), tally.digest.hexdigest())
            groups.setdefault(key, []).append(tally.feature.name)
    return [group for group in groups.values() if len(group) > 1]
