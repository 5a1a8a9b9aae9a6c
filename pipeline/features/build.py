"""Events → features: facts of every day, and what is fitted on the training slice.

The log is partitioned by day and user, its days of facts are computed or found (`pipeline.features.days`), and then
vocabularies, encoded users and items, prior rates and means are fitted. `FeatureStore` puts both together when rows
are read, so a split that moves recomputes no day.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.schema import Field, Schema, Sequence
from pipeline import config
from pipeline.features import crosses, facts, identity, indexes, numeric, pairs, partition, statistics, survey
from pipeline.features import days as kept_days
from pipeline.features.days import Each, one_by_one
from pipeline.features.identity import Vocabulary
from pipeline.features.partition import DAY, Day, Numbered
from pipeline.features.sequences import GAPS
from pipeline.features.split import check_future, future_sample, single_feature_aucs, slices
from pipeline.features.store import (
    BUILT_IN_CONTEXT,
    DAYS,
    POSITIONS,
    SLICES,
    FeatureStore,
    Recipe,
    Rows,
    as_columns,
    countable,
    hour,
    numbers,
    read_columns,
    read_day,
    read_group,
    row_groups,
)
from pipeline.features.survey import Survey
from pipeline.features.timeline import Integers
from pipeline.lake import InputError, write_json
from pipeline.progress import progress

OF_EVENT = ("item_id", "author_id", "category", "domain")
LEAK_ROWS = 50_000
FITTED_ROWS = 1 << 19
CHECKED_ROWS = 1 << 18
BEHAVIOUR_ROWS = 1 << 23
WORK = "work"
PARTITIONS = "partitions"


@dataclass(frozen=True)
class Encoded:
    """One side's table of codes, keys and numbers, and what it takes to encode it again."""

    table: pl.DataFrame
    fields: tuple[Field, ...]
    vocabularies: tuple[Vocabulary, ...]
    encoders: dict[str, dict[str, Any]]


def build(
    events: Path,
    out: Path,
    *,
    features: config.Features,
    contract: config.Contract,
    split: config.Split,
    kept: Path | None = None,
    each: Each = one_by_one,
) -> dict[str, float]:
    """Fill `out` with the features folder of an events folder; returns counts, vocabulary sizes and leak figures.

    Days, partitioned and as facts, are looked for and left in the folder `kept`, on the same disk best; without it all
    are computed. `each` runs the jobs; wherever it runs them, they must see the same files.

    Raises InputError for a configured column that is not there, an empty slice, or a feature that leaks.
    """
    work = out / WORK
    work.mkdir()
    names = pl.read_parquet_schema(events / "events.parquet")
    check_settings(events, names, features, contract.tasks)
    kept = kept or work / "kept"
    surveyed = survey.survey(events / "events.parquet", kept / PARTITIONS)
    numbered = partition.number(events, work, surveyed.first)
    settings = fact_settings(features, contract, list(names))
    log, cut = Partitioned.of(events, work, settings, numbered, surveyed, kept / PARTITIONS, each)
    bounds = slices(_times(log, split), split)
    write_json(out / "slices.json", bounds)

    keys = {side: _keys(side, table, features) for side, table in (("user", numbered.users), ("item", numbered.items))}
    told = _write_days(log, numbered, keys, kept, out / DAYS, each)

    users = _encode("user", numbered.users, keys["user"], log, features, features.user, bounds["validation"])
    items = _encode("item", numbered.items, keys["item"], log, features, features.item, bounds["validation"])
    context_fields, context_vocabularies = _context(log, features, bounds["validation"])
    fields = (*users.fields, *items.fields, *context_fields)
    vocabularies = (*users.vocabularies, *items.vocabularies, *context_vocabularies)
    chosen = crosses.choose(
        _coded(log.scan(bounds["validation"]).filter("shown"), users, items, fields, context_vocabularies),
        {field.name: field for field in fields},
        crosses.values_of(fields, vocabularies, numbered.domains),
        features.crosses,
        contract.positive,
        admit_after=features.admit_after,
        evict_before=_evict_before(features, bounds["validation"]),
    )
    chosen.write(out)
    fields, vocabularies = (*fields, *chosen.fields), (*vocabularies, *chosen.vocabularies)
    _write(chosen.extend("user", users.table), out / "users.parquet")
    _write(chosen.extend("item", items.table), out / "items.parquet")
    _write(pl.concat([one.table for one in vocabularies]), out / "vocabulary.parquet")
    for name, task in features.behaviours.items():
        _write_behaviour(log, task, out / f"behaviour_{name}.parquet", numbered.users.height)
    liked = log.positives(contract.positive, bounds["validation"], numbered.items.height)
    indexes.write(numbered.users.drop("first_day"), numbered.items.drop("first_day"), liked, out)

    recipe = Recipe(
        statistics=features.statistics,
        windows=features.windows,
        rates=features.rates,
        attributes=settings.attributes,
        match_content=settings.match_content and "content" in items.table.columns,
        lengths=settings.lengths,
        priors=_priors(log, bounds["validation"], each),
    )
    checked = _first_days(log.days)
    store = _store(out, fields, recipe, contract, bounds, log, checked)
    store, leak = _check(store, checked)
    (out / "schema.json").write_text(store.schema.to_json() + "\n")
    write_json(
        out / "encoders.json",
        {"recipe": store.recipe.to_json(), "numbers": {**users.encoders, **items.encoders}},
    )
    measured = {
        "users": numbered.users.height - 1,
        "items": numbered.items.height - 1,
        "fields": len(store.schema.fields),
        "numbers": len(store.schema.numbers),
        **log.slices(contract.tasks, bounds),
        **told,
        "days_partitioned": cut,
        **{name: value for one in vocabularies for name, value in one.metrics().items()},
        **chosen.metrics(),
        "leak_maximum_auc": leak,
    }
    shutil.rmtree(work)
    return measured


def fact_settings(features: config.Features, contract: config.Contract, columns: list[str]) -> facts.Settings:
    """What the days hold, of a log with these columns."""
    delays = tuple(f"{task}_time" for task in contract.tasks if f"{task}_time" in columns)
    position = ["position"] if "position" in columns else []
    return facts.Settings(
        statistics=features.statistics,
        windows=features.windows,
        rates=features.rates,
        behaviours=features.behaviours,
        attributes=tuple(name for name in features.matches if name == "item" or name in features.item),
        match_content="content" in features.matches,
        lengths={name: features.lengths.get(name, features.length) for name in features.behaviours},
        delays=delays,
        context=tuple(name for name in features.context if name not in BUILT_IN_CONTEXT),
        kept=(
            "random",
            *contract.tasks,
            *contract.durations,
            *delays,
            *position,
        ),
        parts=features.parts,
    )


@dataclass(frozen=True)
class Partitioned:
    """The log by day and part, and its history."""

    work: Path
    settings: facts.Settings
    domains: tuple[str, ...]
    days: tuple[Day, ...]
    history: str

    @classmethod
    def of(
        cls,
        events: Path,
        work: Path,
        settings: facts.Settings,
        numbered: Numbered,
        surveyed: Survey,
        kept: Path,
        each: Each,
    ) -> tuple[Partitioned, int]:
        """The log, whose days lie in the folder `kept`, and how many of them did not before; a day that is there and
        not of the log goes."""
        columns = tuple(dict.fromkeys(("shown", *settings.kept, *settings.context)))
        wanted = partition.Kept(columns, settings.delays, settings.parts)
        prints = partition.fingerprints(surveyed.made_from(), numbered, wanted)
        folders = {day: kept / f"{partition.date(day)}-{print_}" for day, print_ in prints.items()}
        new = [day for day, folder in folders.items() if not folder.exists()]
        with tempfile.TemporaryDirectory(prefix=".days-", dir=kept) as place:
            cuts = partition.stretches(
                events, work, Path(place), new, surveyed.days, kept=wanted, domains=numbered.domains
            )
            each(partition.cut, cuts)
            for day in new:
                (Path(place) / partition.date(day)).rename(folders[day])
        for other in set(kept.glob("????-??-??-*")) - set(folders.values()):
            shutil.rmtree(other, ignore_errors=True)
        for day, folder in folders.items():
            (work / partition.date(day)).symlink_to(folder.resolve(), target_is_directory=True)
        days = tuple(partition.read(partition.day_file(work, day)) for day in folders)
        history = partition.cut_history(events, work, settings.parts)
        return cls(work, settings, numbered.domains, days, history), len(new)

    def scan(self, before: int | None = None) -> pl.LazyFrame:
        """All events, or those before a time (µs)."""
        files = [
            partition.events_file(self.work, day.day, part)
            for day in self.days
            if before is None or day.day * DAY < before
            for part in range(self.settings.parts)
        ]
        log = pl.scan_parquet(files)
        return log if before is None else log.filter(pl.col("time") < before)

    def prior(self) -> pl.LazyFrame:
        """What happened before the log."""
        if not self.history:
            empty = {"user": pl.Int32, "item": pl.Int32, "behaviour": pl.String, "time": pl.Int64, "rank": pl.Int32}
            return pl.LazyFrame(schema=empty)
        return pl.scan_parquet([partition.history_file(self.work, part) for part in range(self.settings.parts)])

    def occurrences(self, side: Literal["user", "item"], before: int) -> pl.DataFrame:
        """How often each user or item occurred before a time, and when it did last: side, count, last_seen."""
        events = self.scan(before).select(side, "time")
        prior = self.prior().filter(pl.col("time") < before).select(side, "time")
        parts = [
            one.group_by(side).agg(pl.len().cast(pl.Int64).alias("count"), pl.col("time").max().alias("last_seen"))
            for one in (events, prior)
        ]
        both = pl.concat(parts).group_by(side).agg(pl.col("count").sum(), pl.col("last_seen").max())
        return both.collect(engine="streaming")

    def positives(self, task: str, before: int, items: int) -> Integers:
        """How many impressions before a time were positive, by item (`items`,)."""
        shown = self.scan(before).filter("shown", pl.col(task) > 0)
        counted = shown.group_by("item").agg(pl.len()).collect(engine="streaming")
        counts = np.zeros(items, np.int64)
        counts[counted["item"].to_numpy()] = counted["len"].to_numpy()
        return counts

    def slices(self, tasks: tuple[str, ...], bounds: dict[str, int]) -> dict[str, float]:
        """Impressions and rates of the tasks in each slice."""
        number = pl.col("time").ge(bounds["validation"]).cast(pl.Int8) + pl.col("time").ge(bounds["test"]).cast(pl.Int8)
        shown = self.scan().filter("shown").group_by(slice=number)
        counts = shown.agg(pl.len(), *(pl.col(task).cast(pl.Int64).sum() for task in tasks)).collect(engine="streaming")
        by_slice = dict(zip(counts["slice"], counts.iter_rows(named=True), strict=True))
        return {
            **{f"rows_{name}": by_slice[number]["len"] for number, name in enumerate(SLICES)},
            **{
                f"{task}_rate_{name}": by_slice[number][task] / by_slice[number]["len"]
                for number, name in enumerate(SLICES)
                for task in tasks
            },
        }


def check_settings(
    events: Path, log: dict[str, pl.DataType], features: config.Features, tasks: tuple[str, ...]
) -> None:
    """Raise InputError, naming the TOML key and what there is, for a setting that the tables cannot meet."""
    users, items = (pl.read_parquet_schema(events / f"{side}.parquet") for side in ("users", "items"))
    _require(users, features.user, "users.parquet", "features.user")
    _require(items, features.item, "items.parquet", "features.item")
    own = [name for name in features.context if name not in ("domain", "hour")]
    _require(log, own, "events.parquet", "features.context")
    _require(log, ["time", "user_id", "item_id", "domain", *tasks], "events.parquet", "contract.tasks")
    for name in features.numbers:
        if (name in users) == (name in items):
            both = "both tables have it: rename one" if name in users else "neither table has it"
            raise InputError(
                f"column {name!r} of features.numbers must be in users.parquet or items.parquet, and {both} "
                f"(users: {', '.join(users)}; items: {', '.join(items)})"
            )
    names = ["user_id", *features.user, "item_id", *features.item, *features.numbers, "domain", *own]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"column {name!r} is named twice in [features]; rename it in one of its tables")
    identity.check_slots(names)
    crosses.candidates(features.crosses, _crossable(log, features))
    parts = ["user", "item", "domain", *features.user, *features.item]
    for entity in features.statistics:
        if unknown := [part for part in entity.split("+") if part not in parts]:
            raise InputError(f"features.statistics: {entity!r} has no column {unknown[0]!r}; use {', '.join(parts)}")
    for window in features.windows:
        try:
            statistics.window_length(window)
        except ValueError as error:
            raise InputError(f"features.windows: {error}") from None
    if unknown := [name for name in features.lengths if name not in features.behaviours]:
        raise InputError(
            f"features.lengths: {unknown[0]!r} is not a behaviour of features.behaviours "
            f"({', '.join(features.behaviours)})"
        )
    for key, used in (("rates", features.rates), ("behaviours", tuple(features.behaviours.values()))):
        if unknown := [task for task in used if task not in tasks]:
            raise InputError(f"features.{key}: {unknown[0]!r} is not a task of contract.tasks ({', '.join(tasks)})")


def _crossable(log: dict[str, pl.DataType], features: config.Features) -> list[str]:
    """The categorical columns of users, items and context, which can be crossed."""
    buckets = [name for name, encoding in features.numbers.items() if encoding == "bucket"]
    built_in = ["position"] if "position" in log else []
    context = dict.fromkeys(["domain", *features.context, *built_in])
    return ["user_id", *features.user, "item_id", *features.item, *buckets, *context]


def _require(table: dict[str, pl.DataType], names: list[str] | tuple[str, ...], file: str, key: str) -> None:
    for name in names:
        if name not in table:
            raise InputError(f"{file}: no column {name!r}, which {key} names; it has {', '.join(sorted(table))}")
        if table[name].is_nested():
            raise InputError(f"{file}: column {name!r}, which {key} names, holds lists; name a column of single values")


def _times(log: Partitioned, split: config.Split) -> Integers:
    """Ascending times of impressions from which the slices follow: all of the days in which a slice may begin, the
    first and the last of the others."""
    shown = [day for day in log.days if day.shown]
    end = shown[-1].last + 1 if shown else 0
    test = end - round(split.test_days * DAY)
    begins = {test // DAY, (test - round(split.validation_days * DAY)) // DAY}
    times: list[Integers] = [np.empty(0, np.int64)]
    for day in shown:
        if day.day in begins:
            files = [partition.events_file(log.work, day.day, part) for part in range(log.settings.parts)]
            times.append(pl.scan_parquet(files).filter("shown").select("time").collect()["time"].sort().to_numpy())
        else:
            times.append(np.array([day.first, day.last]))
    return np.concatenate(times)


def _keys(side: str, table: pl.DataFrame, features: config.Features) -> dict[str, pl.Series]:
    columns = features.user if side == "user" else features.item
    return {name: identity.keys(table[name]) for name in columns}


def _write_days(
    log: Partitioned, numbered: Numbered, keys: dict[str, dict[str, pl.Series]], kept: Path, out: Path, each: Each
) -> dict[str, float]:
    """Compute or find the days of facts, and let them lie in `out`."""
    counted = {part for entity in log.settings.statistics for part in entity.split("+")} | set(log.settings.attributes)
    seen: dict[int, str] = {}
    tables = {}
    for side, table in (("user", numbered.users), ("item", numbered.items)):
        columns = [pl.int_range(table.height, dtype=pl.Int32, eager=True).alias(side)]
        columns += [keys[side][name].alias(name) for name in sorted(counted & keys[side].keys())]
        if side == "item" and "content" in table.columns:
            columns.append(_content(table["content"], f"{side}s.parquet"))
        tables[side] = pl.DataFrame(columns)
        first_day = table["first_day"].slice(1).drop_nulls().to_numpy()
        known = [column.slice(1, len(first_day)).to_numpy() for column in columns]
        for day, digest in kept_days.first_seen(first_day, known).items():
            seen[day] = seen.get(day, "") + digest
    facts.write_keys(log.work, tables["user"], tables["item"])
    chained = kept_days.chain(log.settings, log.history, list(log.days), seen)
    folders, told = kept_days.update(
        kept, chained, work=log.work, settings=log.settings, domains=len(log.domains), each=each
    )
    kept_days.link(folders, out)
    return told


def _encode(
    side: Literal["user", "item"],
    table: pl.DataFrame,
    keys: dict[str, pl.Series],
    log: Partitioned,
    features: config.Features,
    columns: tuple[str, ...],
    validation: int,
) -> Encoded:
    """Codes and keys of the users' or items' categorical columns, and their encoded numbers."""
    seen = (
        table.select(pl.int_range(pl.len(), dtype=pl.Int32).alias(side), f"{side}_id", *columns)
        .join(log.occurrences(side, validation), on=side)
        .sort(side)
    )
    evict_before = _evict_before(features, validation)
    coded, fields, vocabularies = [table[f"{side}_id"]], [], []
    for name in (f"{side}_id", *columns):
        occurred = seen.select(pl.col(name).alias("value"), "count", "last_seen")
        vocabulary = identity.fit(name, occurred, admit_after=features.admit_after, evict_before=evict_before)
        vocabularies.append(vocabulary)
        fields.append(Field(name, vocabulary.size, side))
        coded.append(vocabulary.encode(table[name]))
        if name in columns:
            coded.append(keys[name].alias(f"key_{name}"))
    encoded, encoders, buckets = _encode_numbers(table, seen[side].to_numpy(), features)
    fields += [Field(name, size, side) for name, size in buckets.items()]
    coded += encoded
    if "published" in table.columns and side == "item":
        coded.append(table["published"].dt.epoch("us"))
    if "content" in table.columns:
        coded.append(_content(table["content"], f"{side}s.parquet"))
    return Encoded(pl.DataFrame(coded), tuple(fields), tuple(vocabularies), encoders)


def _evict_before(features: config.Features, validation: int) -> int:
    """A value last seen before this time (µs) is not admitted."""
    return validation - round(features.evict_days * DAY)


def _encode_numbers(
    table: pl.DataFrame, seen: npt.NDArray[np.int32], features: config.Features
) -> tuple[list[pl.Series], dict[str, dict[str, Any]], dict[str, int]]:
    """Encoded columns, their encoders, and the table sizes of those that became buckets; fitted on the rows seen."""
    columns: list[pl.Series] = []
    encoders: dict[str, dict[str, Any]] = {}
    buckets = {}
    for name, encoding in features.numbers.items():
        if name not in table.columns:
            continue
        values = table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        encoders[name] = {"encoding": encoding}
        if encoding == "log1p":
            columns.append(pl.Series(f"number_{name}", numeric.log1p(values)))
        elif encoding == "cdf":
            support, shares = numeric.fit_cdf(values[seen])
            columns.append(pl.Series(f"number_{name}", numeric.cdf(values, support, shares)))
            encoders[name] |= {"support": support.tolist(), "shares": shares.tolist()}
        else:
            quantiles = numeric.fit_quantiles(values[seen], features.buckets)
            columns.append(pl.Series(f"code_{name}", numeric.bucket(values, quantiles)))
            encoders[name] |= {"quantiles": quantiles.tolist()}
            buckets[name] = len(quantiles) + 2
    return columns, encoders, buckets


def _content(vectors: pl.Series, file: str) -> pl.Series:
    """Content vectors of length 1; zeros where there is none."""
    widths = vectors.cast(pl.List(pl.Float32)).list.len().drop_nulls().unique().sort().to_list()
    if len(widths) != 1:
        raise InputError(f"{file}: vectors of column 'content' have {widths} numbers; give all the same, or drop it")
    present = vectors.is_not_null().to_numpy()
    matrix = np.zeros((len(vectors), widths[0]), np.float32)
    matrix[present] = vectors.drop_nulls().cast(pl.Array(pl.Float32, widths[0])).to_numpy()
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return pl.Series("content", matrix / np.where(norms > 0, norms, 1), dtype=pl.Array(pl.Float32, widths[0]))


def _context(log: Partitioned, features: config.Features, validation: int) -> tuple[list[Field], list[Vocabulary]]:
    """Fields of the context: domain, what `features.context` names, and the position if the log has it."""
    fields = [Field("domain", len(log.domains) + 1, "context")]
    if "hour" in features.context:
        fields.append(Field("hour", 25, "context"))
    if "position" in log.settings.kept:
        fields.append(Field("position", POSITIONS + 1, "context"))
    vocabularies = []
    train = log.scan(validation).filter("shown")
    for name in log.settings.context:
        counted = train.group_by(name).agg(pl.len().alias("count"), pl.col("time").max().alias("last_seen"))
        seen = counted.collect(engine="streaming").rename({name: "value"})
        evict_before = _evict_before(features, validation)
        vocabulary = identity.fit(name, seen, admit_after=features.admit_after, evict_before=evict_before)
        vocabularies.append(vocabulary)
        fields.append(Field(name, vocabulary.size, "context"))
    return fields, vocabularies


def _coded(
    rows: pl.LazyFrame,
    users: Encoded,
    items: Encoded,
    fields: tuple[Field, ...],
    vocabularies: list[Vocabulary],
) -> pl.LazyFrame:
    """Rows of the log with `code_<field>` of every field; what is not asked for is not computed."""
    encode: dict[str, tuple[str, Callable[[pl.Series], pl.Series]]] = {
        "domain": ("domain", lambda domains: domains + 1),
        "hour": ("time", lambda times: pl.Series(hour(times.to_numpy()))),
        "position": ("position", lambda positions: positions.fill_null(0).clip(0, POSITIONS)),
        **{one.field: (one.field, one.encode) for one in vocabularies},
    }
    for field in fields:
        if field.role in ("user", "item"):
            table = users.table if field.role == "user" else items.table
            encode[field.name] = (field.role, table[f"code_{field.name}"].gather)
    return rows.with_columns(
        pl.col(column).map_batches(partial(_as_codes, codes), return_dtype=pl.Int32, is_elementwise=True).alias(name)
        for name, (column, codes) in ((f"code_{field.name}", encode[field.name]) for field in fields)
    )


def _as_codes(codes: Callable[[pl.Series], pl.Series], values: pl.Series) -> pl.Series:
    return codes(values).cast(pl.Int32)


def _write_behaviour(log: Partitioned, task: str, path: Path, users: int) -> None:
    """The events of a task's positives, prior history first, sorted by user and time: user, item, domain, time.

    A delayed task (with a column `<task>_time`) happens at that time. Users are taken so many at a time.
    """
    when = f"{task}_time" if f"{task}_time" in log.settings.delays else "time"
    logged = (
        log.scan()
        .filter(pl.col(task) > 0, pl.col(when).is_not_null())
        .select(
            "user", "item", "domain", pl.col(when).alias("time"), source=pl.lit(1, pl.Int8), rank=pl.lit(0, pl.Int32)
        )
    )
    prior = (
        log.prior()
        .filter(pl.col("behaviour") == task)
        .select("user", "item", pl.lit(-1, pl.Int16).alias("domain"), "time", source=pl.lit(0, pl.Int8), rank="rank")
    )
    merged = pl.concat([prior, logged], how="vertical_relaxed")
    rows = merged.select(pl.len()).collect(engine="streaming").item()
    bounds = np.linspace(0, users, rows // BEHAVIOUR_ROWS + 2).astype(int)
    writer = None
    try:
        for low, high in pairwise(bounds):
            some = merged.filter(pl.col("user") >= int(low), pl.col("user") < int(high)).collect(engine="streaming")
            some = some.sort("user", "time", "source", "rank", "item", "domain")
            table = some.select("user", "item", "domain", "time").to_arrow()
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd", write_statistics=False)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _priors(log: Partitioned, validation: int, each: Each) -> dict[str, dict[str, tuple[float, float]]]:
    """Per entity and rate the (a, b) of its smoothing, fitted on what training rows showed."""
    jobs = kept_days.jobs(
        tuple(day for day in log.days if day.day * DAY < validation),
        0,
        work=log.work,
        out=log.work,
        settings=log.settings,
        domains=len(log.domains),
        whole=True,
    )
    counted = [facts.Tally(job, validation) for job in jobs]
    each(facts.tally, counted)
    priors = {}
    for entity in log.settings.statistics:
        files = [path for one in counted if (path := facts.tally_file(one.job, entity)).exists()]
        table = pl.read_parquet(files).group_by("shows", *log.settings.rates).agg(pl.col("keys").sum())
        table = table.sort("shows", *log.settings.rates)
        priors[entity] = {
            rate: numeric.fit_rate(table[rate], table["shows"], table["keys"]) for rate in log.settings.rates
        }
    return priors


def _store(
    out: Path,
    fields: tuple[Field, ...],
    recipe: Recipe,
    contract: config.Contract,
    bounds: dict[str, int],
    log: Partitioned,
    checked: list[str],
) -> FeatureStore:
    """The store over the tables written so far; of the events it holds those of the days to be checked."""
    users, items = read_columns(out / "users.parquet"), read_columns(out / "items.parquet")
    if "content" in users and "content" in items and users["content"].shape[1] != items["content"].shape[1]:
        raise InputError(
            f"users.parquet: vectors of column 'content' have {users['content'].shape[1]} numbers and those of "
            f"items.parquet {items['content'].shape[1]}; take both from one model, or drop the users'"
        )
    behaviours = {name: read_columns(out / f"behaviour_{name}.parquet") for name in log.settings.behaviours}
    shared = tuple(name for name in OF_EVENT if name in {field.name for field in fields})
    schema = Schema(
        fields=fields,
        numbers=numbers(users, items, behaviours, recipe),
        sequences=tuple(Sequence(name, shared, length, GAPS) for name, length in recipe.lengths.items()),
        labels=contract.tasks,
        domains=log.domains,
        content=items["content"].shape[1] if "content" in items else 0,
        durations=tuple(contract.durations),
    )
    delays = [f"{rate}_time" for rate in recipe.rates if f"{rate}_time" in log.settings.delays]
    names = ["user", "item", "domain", "time", *recipe.rates, *delays]
    columns = as_columns(pa.concat_tables([read_day(out, day, names) for day in checked]))
    events = countable(columns, recipe.rates)
    return FeatureStore(out, schema, bounds, recipe, users, items, behaviours, events, pairs.read(out, schema))


def _first_days(days: tuple[Day, ...]) -> list[str]:
    """The first days of the log, up to `CHECKED_ROWS` impressions or a day more."""
    until = np.searchsorted(np.cumsum([day.shown for day in days]), CHECKED_ROWS)
    return [day.date for day in days[: int(until) + 1]]


def _check(store: FeatureStore, checked: list[str]) -> tuple[FeatureStore, float]:
    """The store with its numbers' means, and the greatest AUC of a single feature, after a look for features that know
    the future.

    Means and AUCs are those of training rows, of a large log every so many row groups; leaks.parquet tells the AUCs.
    The future is cut off the days to be checked.
    """
    groups = [one for one in row_groups(store.folder) if one.begin < store.slices["validation"]]
    step = -(-sum(one.rows for one in groups) // FITTED_ROWS)
    parts = []
    for one in progress(groups[::step], "features of the log"):
        rows = store.decode(read_group(one))
        parts.append(rows.take(rows.time < store.slices["validation"]))
    train = Rows.concatenate(parts)
    values = train.numbers.astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    described = tuple(
        replace(number, mean=float(center), std=float(spread) if spread > 1e-6 else 1.0)
        for number, center, spread in zip(store.schema.numbers, mean, std, strict=True)
    )
    log = Rows.concatenate([store.read(day) for day in checked])
    names = [number.name for number in store.schema.numbers]
    for moment, rows_at in future_sample(log.time):
        some = log.take(rows_at)
        cut = store.cut(moment).rows(some.user, some.item, some.domain, some.time)
        check_future(names, some.numbers, cut.numbers, moment)
    order = np.argsort(train.time, kind="stable")
    leak_rows = order[np.linspace(0, len(train) - 1, min(len(train), LEAK_ROWS)).astype(np.int64)]
    leak = _write_leaks(store, train.take(leak_rows))
    return replace(store, schema=replace(store.schema, numbers=described)), leak


def _write_leaks(store: FeatureStore, rows: Rows) -> float:
    """Write every feature's own AUC for every task; returns the greatest."""
    features: dict[str, npt.NDArray[Any]] = {
        number.name: rows.numbers[:, place] for place, number in enumerate(store.schema.numbers)
    }
    context = [store.schema.fields[place].name for place in store.schema.positions("context", "cross")]
    features |= {f"code_{name}": rows.context[:, place] for place, name in enumerate(context)}
    labels = {task: rows.labels[:, place] for place, task in enumerate(store.schema.labels)}
    areas = single_feature_aucs(features, labels)
    columns = {"feature": pl.String, "task": pl.String, "auc": pl.Float64}
    table = pl.DataFrame([(*pair, area) for pair, area in areas.items()], schema=columns, orient="row")
    _write(table.sort(["auc", "feature", "task"], descending=[True, False, False]), store.folder / "leaks.parquet")
    return max(areas.values(), default=0.5)


def _write(table: pl.DataFrame, path: Path) -> None:
    table.write_parquet(path, compression="zstd", statistics=False)
