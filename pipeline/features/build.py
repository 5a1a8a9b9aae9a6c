"""Events → features: codes, numbers, histories and labels of every impression, each as of its own moment.

The numbers come from `FeatureStore.rows`, the same function that serves candidates later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from models.schema import Field, Schema, Sequence
from pipeline import config
from pipeline.features import crosses, identity, indexes, numeric, pairs, statistics
from pipeline.features.identity import Vocabulary
from pipeline.features.sequences import GAPS
from pipeline.features.split import check_future, future_sample, single_feature_aucs, slice_of, slices
from pipeline.features.store import (
    CHUNK,
    POSITIONS,
    SLICES,
    UNKNOWN_TIME,
    FeatureStore,
    Recipe,
    Rows,
    countable,
    hour,
    numbers,
    read_columns,
)
from pipeline.lake import InputError, write_json
from pipeline.progress import progress

DAY = 86_400_000_000
OF_EVENT = ("item_id", "author_id", "category", "domain")
MATCHED = ("author_id", "category", "tag")
LEAK_ROWS = 50_000
BUILT_IN_CONTEXT = ("domain", "hour", "position")


@dataclass(frozen=True)
class Tables:
    """The events folder with users and items numbered by row; row 0 of `users` and `items` is the unknown one.

    `events` and `history` have user, item and time (µs) as integers in place of the ids.
    """

    users: pl.DataFrame
    items: pl.DataFrame
    events: pl.DataFrame
    history: pl.DataFrame
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """One side's table of codes, keys and numbers, and what it takes to encode it again."""

    table: pl.DataFrame
    fields: tuple[Field, ...]
    vocabularies: tuple[Vocabulary, ...]
    encoders: dict[str, dict[str, Any]]


def build(
    events: Path, out: Path, *, features: config.Features, contract: config.Contract, split: config.Split
) -> dict[str, float]:
    """Fill `out` with the features folder of an events folder; returns counts, vocabulary sizes and leak figures.

    Raises InputError for a configured column that is not there, an empty slice, or a feature that leaks.
    """
    tables = read_tables(events, contract.tasks)
    check_settings(tables, features, contract.tasks)
    shown = tables.events.filter("shown")
    bounds = slices(shown["time"].to_numpy(), split)
    write_json(out / "slices.json", bounds)

    seen = _occurrences(tables, bounds["validation"])
    users = _encode("user", tables.users, seen, features, features.user, bounds["validation"])
    items = _encode("item", tables.items, seen, features, features.item, bounds["validation"])
    context, context_fields, context_vocabularies = _encode_context(shown, tables.domains, features, bounds)
    fields = (*users.fields, *items.fields, *context_fields)
    vocabularies = (*users.vocabularies, *items.vocabularies, *context_vocabularies)
    delays = [f"{task}_time" for task in contract.tasks if f"{task}_time" in shown.columns]
    log = shown.select("user", "item", "domain", "time", "random", *contract.tasks, *delays).with_columns(
        pl.Series("slice", slice_of(shown["time"].to_numpy(), bounds)), *context
    )
    values = crosses.values_of(fields, vocabularies, tables.domains)
    chosen = crosses.choose(
        log, users.table, items.table, fields, values, features, contract.positive, bounds["validation"]
    )
    chosen.write(out)
    _write(chosen.extend("user", users.table), out / "users.parquet")
    _write(chosen.extend("item", items.table), out / "items.parquet")
    _write(pl.concat([one.table for one in (*vocabularies, *chosen.vocabularies)]), out / "vocabulary.parquet")
    for name, task in features.behaviours.items():
        _write(behaviour(tables, task), out / f"behaviour_{name}.parquet")

    liked = log.filter(pl.col("time") < bounds["validation"], pl.col(contract.positive) > 0)["item"]
    indexes.write(tables.items, np.bincount(liked.to_numpy(), minlength=tables.items.height), out)
    store = _store(out, log, (*fields, *chosen.fields), tables.domains, features, contract, bounds)
    store, leak = _write_log(store, log, out)
    (out / "schema.json").write_text(store.schema.to_json() + "\n")
    write_json(
        out / "encoders.json",
        {"recipe": store.recipe.to_json(), "numbers": {**users.encoders, **items.encoders}},
    )
    return {
        "users": tables.users.height - 1,
        "items": tables.items.height - 1,
        "fields": len(store.schema.fields),
        "numbers": len(store.schema.numbers),
        **{f"rows_{name}": int((log["slice"] == number).sum()) for number, name in enumerate(SLICES)},
        **{
            f"{task}_rate_{name}": float(log.filter(pl.col("slice") == number)[task].mean())  # type: ignore[arg-type]
            for number, name in enumerate(SLICES)
            for task in contract.tasks
        },
        **{name: value for one in vocabularies for name, value in one.metrics().items()},
        **chosen.metrics(),
        "leak_maximum_auc": leak,
    }


def read_tables(events: Path, tasks: tuple[str, ...]) -> Tables:
    """The events folder's tables, with ids replaced by row numbers and times by microseconds."""
    users = _numbered(pl.read_parquet(events / "users.parquet"), "user_id")
    items = _numbered(pl.read_parquet(events / "items.parquet"), "item_id")

    def numbered(frame: pl.LazyFrame) -> pl.LazyFrame:
        for side, table in (("user", users), ("item", items)):
            rows = table.lazy().select(f"{side}_id", pl.int_range(pl.len(), dtype=pl.Int32).alias(side)).slice(1)
            frame = frame.join(rows, on=f"{side}_id", how="left").drop(f"{side}_id")
        return frame.with_columns(pl.col(pl.Datetime).dt.epoch("us"))

    log = numbered(pl.scan_parquet(events / "events.parquet"))
    domains = sorted(log.select(pl.col("domain").unique()).collect()["domain"].to_list())
    log = log.with_columns(pl.col("domain").replace_strict(domains, range(len(domains)), return_dtype=pl.Int16))
    first = ["time", "user", "item", "domain", *tasks]
    frame = log.collect()
    _require(frame, first, "events.parquet", "contract.tasks")
    rest = [name for name in frame.columns if name not in first]
    path = events / "history.parquet"
    history = (
        numbered(pl.scan_parquet(path)).collect()
        if path.exists()
        else pl.DataFrame(schema={"user": pl.Int32, "item": pl.Int32, "behaviour": pl.String, "time": pl.Int64})
    )
    if "rank" not in history.columns:
        history = history.with_columns(rank=pl.int_range(pl.len(), dtype=pl.Int32))
    return Tables(users, items, frame.sort(first + rest), history, tuple(domains))


def check_settings(tables: Tables, features: config.Features, tasks: tuple[str, ...]) -> None:
    """Raise InputError, naming the TOML key and what there is, for a setting that the tables cannot meet."""
    _require(tables.users, features.user, "users.parquet", "features.user")
    _require(tables.items, features.item, "items.parquet", "features.item")
    own = [name for name in features.context if name not in ("domain", "hour")]
    _require(tables.events, own, "events.parquet", "features.context")
    for name in features.numbers:
        if (name in tables.users.columns) == (name in tables.items.columns):
            both = "both tables have it: rename one" if name in tables.users.columns else "neither table has it"
            raise InputError(
                f"column {name!r} of features.numbers must be in users.parquet or items.parquet, and {both} "
                f"(users: {', '.join(tables.users.columns)}; items: {', '.join(tables.items.columns)})"
            )
    names = ["user_id", *features.user, "item_id", *features.item, *features.numbers, "domain", *own]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"column {name!r} is named twice in [features]; rename it in one of its tables")
    identity.check_slots(names)
    crosses.candidates(features.crosses, _crossable(tables, features))
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


def _crossable(tables: Tables, features: config.Features) -> list[str]:
    """The categorical columns of users, items and context, which can be crossed."""
    buckets = [name for name, encoding in features.numbers.items() if encoding == "bucket"]
    built_in = ["position"] if "position" in tables.events.columns else []
    context = dict.fromkeys(["domain", *features.context, *built_in])
    return ["user_id", *features.user, "item_id", *features.item, *buckets, *context]


def behaviour(tables: Tables, task: str) -> pl.DataFrame:
    """The events of a task's positives, prior history first, sorted by user and time: user, item, domain, time.

    A delayed task (with a column `<task>_time`) happens at that time.
    """
    when = f"{task}_time" if f"{task}_time" in tables.events.columns else "time"
    logged = tables.events.filter(pl.col(task) > 0, pl.col(when).is_not_null()).select(
        "user", "item", "domain", pl.col(when).alias("time"), source=1, rank=0
    )
    prior = tables.history.filter(pl.col("behaviour") == task).select(
        "user", "item", pl.lit(-1, pl.Int16).alias("domain"), "time", source=0, rank="rank"
    )
    order = ["user", "time", "source", "rank", "item", "domain"]
    merged = pl.concat([prior, logged], how="vertical_relaxed").sort(order)
    return merged.select("user", "item", pl.col("domain").cast(pl.Int16), "time")


def _numbered(table: pl.DataFrame, id_: str) -> pl.DataFrame:
    return pl.concat([table.clear(1), table.sort(id_)])


def _require(table: pl.DataFrame, names: list[str] | tuple[str, ...], file: str, key: str) -> None:
    for name in names:
        if name not in table.columns:
            raise InputError(
                f"{file}: no column {name!r}, which {key} names; it has {', '.join(sorted(table.columns))}"
            )
        if table.schema[name].is_nested():
            raise InputError(f"{file}: column {name!r}, which {key} names, holds lists; name a column of single values")


def _occurrences(tables: Tables, validation: int) -> pl.DataFrame:
    """Training events and prior history: user, item, time."""
    columns = ("user", "item", "time")
    parts = [tables.events.select(columns), tables.history.select(columns)]
    return pl.concat(parts, how="vertical_relaxed").filter(pl.col("time") < validation)


def _encode(
    side: Literal["user", "item"],
    table: pl.DataFrame,
    occurrences: pl.DataFrame,
    features: config.Features,
    columns: tuple[str, ...],
    validation: int,
) -> Encoded:
    """Codes and keys of the users' or items' categorical columns, and their encoded numbers."""
    seen = (
        table.select(pl.int_range(pl.len(), dtype=pl.Int32).alias(side), f"{side}_id", *columns)
        .join(occurrences.group_by(side).agg(pl.len().alias("count"), pl.col("time").max().alias("last_seen")), on=side)
        .sort(side)
    )
    evict_before = validation - round(features.evict_days * DAY)
    coded, fields, vocabularies = [table[f"{side}_id"]], [], []
    for name in (f"{side}_id", *columns):
        occurred = seen.select(pl.col(name).alias("value"), "count", "last_seen")
        vocabulary = identity.fit(name, occurred, admit_after=features.admit_after, evict_before=evict_before)
        vocabularies.append(vocabulary)
        fields.append(Field(name, vocabulary.size, side))
        coded.append(vocabulary.encode(table[name]))
        if name in columns:
            coded.append(identity.keys(table[name]).alias(f"key_{name}"))
    encoded, encoders, buckets = _encode_numbers(table, seen[side].to_numpy(), features)
    fields += [Field(name, size, side) for name, size in buckets.items()]
    coded += encoded
    if "published" in table.columns and side == "item":
        coded.append(table["published"].dt.epoch("us"))
    if "content" in table.columns:
        coded.append(_content(table["content"], f"{side}s.parquet"))
    return Encoded(pl.DataFrame(coded), tuple(fields), tuple(vocabularies), encoders)


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


def _encode_context(
    shown: pl.DataFrame, domains: tuple[str, ...], features: config.Features, bounds: dict[str, int]
) -> tuple[list[pl.Series], list[Field], list[Vocabulary]]:
    """Codes of the context: domain, what `features.context` names, and the position if the log has it."""
    codes = {"domain": (shown["domain"].to_numpy() + 1, len(domains) + 1)}
    if "hour" in features.context:
        codes["hour"] = (hour(shown["time"].to_numpy()), 25)
    if "position" in shown.columns:
        codes["position"] = (shown["position"].fill_null(0).clip(0, POSITIONS).to_numpy(), POSITIONS + 1)
    columns = [pl.Series(f"code_{name}", values.astype(np.int32)) for name, (values, _) in codes.items()]
    fields = [Field(name, size, "context") for name, (_, size) in codes.items()]
    vocabularies = []
    train = shown.filter(pl.col("time") < bounds["validation"])
    for name in (name for name in features.context if name not in BUILT_IN_CONTEXT):
        seen = train.select(pl.col(name).alias("value"), pl.lit(1).alias("count"), pl.col("time").alias("last_seen"))
        evict_before = bounds["validation"] - round(features.evict_days * DAY)
        vocabulary = identity.fit(name, seen, admit_after=features.admit_after, evict_before=evict_before)
        vocabularies.append(vocabulary)
        columns.append(vocabulary.encode(shown[name]))
        fields.append(Field(name, vocabulary.size, "context"))
    return columns, fields, vocabularies


def _store(
    out: Path,
    log: pl.DataFrame,
    fields: tuple[Field, ...],
    domains: tuple[str, ...],
    features: config.Features,
    contract: config.Contract,
    bounds: dict[str, int],
) -> FeatureStore:
    """The store over the tables written so far, with the rates' priors fitted on the training rows."""
    users, items = read_columns(out / "users.parquet"), read_columns(out / "items.parquet")
    if "content" in users and "content" in items and users["content"].shape[1] != items["content"].shape[1]:
        raise InputError(
            f"users.parquet: vectors of column 'content' have {users['content'].shape[1]} numbers and those of "
            f"items.parquet {items['content'].shape[1]}; take both from one model, or drop the users'"
        )
    behaviours = {name: read_columns(out / f"behaviour_{name}.parquet") for name in features.behaviours}
    recipe = Recipe(
        statistics=features.statistics,
        windows=features.windows,
        rates=features.rates,
        attributes=("item", *(name for name in MATCHED if name in features.item)),
        lengths={name: features.lengths.get(name, features.length) for name in behaviours},
        priors={},
    )
    shared = tuple(name for name in OF_EVENT if name in {field.name for field in fields})
    schema = Schema(
        fields=fields,
        numbers=numbers(users, items, behaviours, recipe),
        sequences=tuple(Sequence(name, shared, length, GAPS) for name, length in recipe.lengths.items()),
        labels=contract.tasks,
        domains=domains,
        content=items["content"].shape[1] if "content" in items else 0,
    )
    delays = [f"{rate}_time" for rate in features.rates if f"{rate}_time" in log.columns]
    columns = log.select("user", "item", "domain", "time", *features.rates, pl.col(delays).fill_null(UNKNOWN_TIME))
    events = countable({name: columns[name].to_numpy() for name in columns.columns}, features.rates)
    store = FeatureStore(out, schema, bounds, recipe, users, items, behaviours, events, pairs.read(out, schema))
    return replace(store, recipe=replace(recipe, priors=_priors(store)))


def _priors(store: FeatureStore) -> dict[str, dict[str, tuple[float, float]]]:
    """Per entity and rate the (a, b) of its smoothing, fitted on what training rows showed."""
    events = store.events
    train = events["time"] < store.slices["validation"]
    priors = {}
    for entity in store.recipe.statistics:
        keys = store.entity_keys(entity, events["user"], events["item"], events["domain"])[train]
        places = np.unique(keys, return_inverse=True)[1]
        shows = np.bincount(places, events["shows"][train])
        rates = {rate: np.bincount(places, events[rate][train]) for rate in store.recipe.rates}
        priors[entity] = {rate: numeric.fit_rate(positives, shows) for rate, positives in rates.items()}
    return priors


def _write_log(store: FeatureStore, log: pl.DataFrame, out: Path) -> tuple[FeatureStore, float]:
    """Write log.parquet, chunk by chunk, and leaks.parquet; returns the store with its numbers' means, and the
    greatest AUC of a single feature."""
    times = log["time"].to_numpy()
    trained = int((log["slice"] == 0).sum())
    leak_rows = np.linspace(0, trained - 1, min(trained, LEAK_ROWS)).astype(np.int64)
    cuts = future_sample(times)
    wanted = np.unique(np.concatenate([leak_rows, *(rows for _, rows in cuts)]))
    kept = np.empty((len(wanted), len(store.schema.numbers)), np.float32)
    sums = np.zeros((2, len(store.schema.numbers)))
    writer = None
    try:
        for begin in progress(range(0, log.height, CHUNK), "features of the log"):
            chunk = log.slice(begin, CHUNK)
            rows = _rows(store, chunk)
            train = rows.numbers[: max(0, trained - begin)].astype(np.float64)
            sums += train.sum(axis=0), (train**2).sum(axis=0)
            inside = (wanted >= begin) & (wanted < begin + CHUNK)
            kept[inside] = rows.numbers[wanted[inside] - begin]
            table = _with_features(store, chunk, rows).to_arrow()
            writer = writer or pq.ParquetWriter(
                out / "log.parquet", table.schema, compression="zstd", use_dictionary=False, write_statistics=False
            )
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()

    names = [number.name for number in store.schema.numbers]
    for moment, rows_at in cuts:
        cut = _rows(store.cut(moment), log[rows_at])
        check_future(names, kept[np.searchsorted(wanted, rows_at)], cut.numbers, moment)
    leak = _write_leaks(store, log[leak_rows], kept[np.searchsorted(wanted, leak_rows)], out)

    mean = sums[0] / trained
    std = np.sqrt(np.maximum(sums[1] / trained - mean**2, 0))
    described = tuple(
        replace(number, mean=float(center), std=float(spread) if spread > 1e-6 else 1.0)
        for number, center, spread in zip(store.schema.numbers, mean, std, strict=True)
    )
    return replace(store, schema=replace(store.schema, numbers=described)), leak


def _rows(store: FeatureStore, log: pl.DataFrame) -> Rows:
    return store.rows(log["user"].to_numpy(), log["item"].to_numpy(), log["domain"].to_numpy(), log["time"].to_numpy())


def _with_features(store: FeatureStore, log: pl.DataFrame, rows: Rows) -> pl.DataFrame:
    return log.with_columns(
        *(pl.Series(number.name, rows.numbers[:, place]) for place, number in enumerate(store.schema.numbers)),
        *(pl.Series(f"{name}_end", ends) for name, ends in rows.ends.items()),
        *(pl.Series(f"{name}_length", lengths) for name, lengths in rows.lengths.items()),
    )


def _write_leaks(store: FeatureStore, log: pl.DataFrame, values: npt.NDArray[np.float32], out: Path) -> float:
    """Write every feature's own AUC for every task on training rows; returns the greatest."""
    features: dict[str, npt.NDArray[Any]] = {
        number.name: values[:, place] for place, number in enumerate(store.schema.numbers)
    }
    context = {name.removeprefix("code_"): log[name].to_numpy() for name in log.columns if name.startswith("code_")}
    crossed = store.crossed(log["user"].to_numpy(), log["item"].to_numpy(), context)
    features |= {f"code_{name}": codes for name, codes in (context | crossed).items()}
    areas = single_feature_aucs(features, {task: log[task].to_numpy() for task in store.schema.labels})
    columns = {"feature": pl.String, "task": pl.String, "auc": pl.Float64}
    table = pl.DataFrame([(*pair, area) for pair, area in areas.items()], schema=columns, orient="row")
    _write(table.sort(["auc", "feature", "task"], descending=[True, False, False]), out / "leaks.parquet")
    return max(areas.values(), default=0.5)


def _write(table: pl.DataFrame, path: Path) -> None:
    table.write_parquet(path, compression="zstd", statistics=False)
