"""The recall stage: requests of a later slice, candidates of every route as of its start, and their merge."""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl

from pipeline import config
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, write_json
from pipeline.progress import progress
from pipeline.recall import (
    cache,
    cold_start,
    content,
    deep_retrieval,
    ease,
    exposure,
    follow,
    fresh,
    fresh_taste,
    generative,
    graph_filter,
    hot,
    ials,
    index_choice,
    item_cf,
    losses,
    markov,
    multi_interest,
    place,
    policy,
    segment_hot,
    sequential,
    similar_author,
    slit,
    swing,
    tag,
    two_tower,
    user_cf,
    value,
    youtube_dnn,
)
from pipeline.recall.merge import snake_merge
from pipeline.recall.route import NOTHING, Found, Requests, Route, only
from pipeline.recall.snapshot import Snapshot, take

ROUTES: dict[str, ModuleType] = {
    "hot": hot,
    "fresh": fresh,
    "item_cf": item_cf,
    "user_cf": user_cf,
    "swing": swing,
    "two_tower": two_tower,
    "graph_filter": graph_filter,
    "ease": ease,
    "ials": ials,
    "markov": markov,
    "slit": slit,
    "tag": tag,
    "place": place,
    "follow": follow,
    "similar_author": similar_author,
    "content": content,
    "fresh_taste": fresh_taste,
    "segment_hot": segment_hot,
    "cache": cache,
    "youtube_dnn": youtube_dnn,
    "multi_interest": multi_interest,
    "sequential": sequential,
    "deep_retrieval": deep_retrieval,
    "generative": generative,
    "policy": policy,
}

FOLD_SALT = 1
QUOTA = "quota.json"
GIVEN = ("model", "positive", "seed", "log", "checkpoints", "champion")


def check(settings: config.Recall) -> None:
    """Raise `InputError` for a route, an option of a route, a loss or an index that does not exist, and where the run
    that a route is to learn from is not there."""
    quota = {} if settings.quota == "auto" else settings.quota
    for key, named in (("routes", settings.routes), ("quota", quota), ("options", settings.options)):
        if unknown := [route for route in named if route not in ROUTES]:
            raise InputError(f"recall.{key}: {unknown[0]!r} is unknown; there are {', '.join(ROUTES)}")
    for route, given in settings.options.items():
        known = [*keywords(route, "train"), *keywords(route, "fit")]
        if strange := [option for option in given if option not in known]:
            raise InputError(f"recall.options.{route}: there is no {strange[0]!r}; it has {', '.join(known)}")
        if "loss" in given:
            losses.check(route, given["loss"])
        reads(settings, route)
        if "index" in given:
            index_choice.check(given["index"])


def trained(settings: config.Recall) -> list[str]:
    """The configured routes that have a model to be trained first."""
    return [route for route in settings.routes if hasattr(ROUTES[route], "train")]


def options(settings: config.Recall, route: str, function: str) -> dict[str, Any]:
    """The settings that are keywords of the route's function "train" or "fit"."""
    known = keywords(route, function)
    return {name: value for name, value in settings.options.get(route, {}).items() if name in known}


def reads(settings: config.Recall, route: str) -> list[Path]:
    """The files that the training of a route reads beside the features: the `earlier` run whose cut items it learns
    from."""
    earlier = options(settings, route, "train").get("earlier", "")
    if earlier and not Path(earlier).exists():
        raise InputError(f"recall.options.{route}.earlier: {earlier}: no such file; name a finished run's latest.json")
    return [Path(earlier)] if earlier else []


def keywords(route: str, function: str) -> list[str]:
    if not hasattr(ROUTES[route], function):
        return []
    parameters = inspect.signature(getattr(ROUTES[route], function)).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in GIVEN]


def recall(
    features: Path,
    models: dict[str, Path],
    validation: Path | None = None,
    *,
    out: Path,
    moment: str,
    settings: config.Recall,
    positive: str,
    tasks: tuple[str, ...],
    requests: int,
) -> dict[str, float]:
    """Recall for up to `requests` requests of the slice `moment` ("validation" or "test"), knowing only what was before
    its start.

    Writes requests, positives, candidates (of each route, after the exposure filter), exposed (what the filter took),
    merged, value (what each route is worth), quota.json and funnel.json, and each route's own folder. Returns recall
    and sizes per route, of their union and of the merge, and recall of new users and new items (`cold_start`).

    `models` holds the folders of the routes that are trained or, as the cache, made of an earlier run. Automatic quotas
    are those of the folder `validation`, and chosen here where there is none.

    Raises `InputError` for a slice without a positive.
    """
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices[moment], positive)
    asked, positives = requests_of(store, moment, positive, tasks, requests)
    (out / "exposure").mkdir()
    shown = exposure.fit(snapshot, out / "exposure", days=settings.exposure_days, error=settings.exposure_error)
    lately = exposure.lately(snapshot, shown.since)

    answered, told_by = ask(snapshot, asked, lately, models, out, settings)
    recalled = flag(answered, asked, shown)
    candidates = refill(recalled, settings.per_route)
    judged = value.Judged.of(candidates, positives, settings.routes)
    if settings.quota != "auto":
        quota = settings.quota
    elif validation:
        quota = json.loads((validation / QUOTA).read_text())
    else:
        size = {"per_route": settings.per_route, "size": settings.merged}
        quota = value.best_quotas(candidates, positives, settings.routes, **size)
    write_json(out / QUOTA, quota)
    merged = snake_merge(candidates, settings.routes, size=settings.merged, quota=quota)
    told = [(store.schema.domains[domain] if domain >= 0 else "unknown") for domain in asked["domain"].to_list()]
    users = asked["user"].to_numpy()
    values = value.route_values(judged, settings.routes, quota, settings.merged, users, told)
    gains = {
        depth: value.quota_gain(judged, settings.routes, quota, depth, users)
        for depth in sorted({min(settings.per_route, settings.merged), settings.merged})
    }
    exposed_positives = flag(positives, asked, shown).filter("exposed").select("request", "item")
    exposed = pl.concat([recalled.filter("exposed").select("request", "item"), exposed_positives])
    for name, table in {
        "requests": asked,
        "positives": positives,
        "candidates": candidates,
        "exposed": exposed.unique().sort("request", "item"),
        "merged": merged,
        "value": values,
    }.items():
        table.write_parquet(out / f"{name}.parquet", compression="zstd", statistics=False)

    found = {"": candidates, "_merged": merged, **{f"_{one}": of_route(candidates, one) for one in settings.routes}}
    cold: dict[str, float] = {}
    for group, some in cold_start.groups(snapshot, asked, positives).items():
        cold[f"positives_{group}"] = len(some)
        if len(some):
            cold |= {f"recall_{group}{by}": recall_of(some, table) for by, table in found.items()}

    metrics = {
        "requests": len(asked),
        "positives": len(positives),
        **{f"recall_{route}": recall_of(positives, of_route(candidates, route)) for route in settings.routes},
        "recall_union": recall_of(positives, candidates),
        "recall_merged": recall_of(positives, merged),
        **cold,
        **{f"quota_gain_{depth}": gain.mean for depth, gain in gains.items()},
        **{f"quota_gain_{depth}_low": gain.low for depth, gain in gains.items()},
        **{f"quota_gain_{depth}_high": gain.high for depth, gain in gains.items()},
        **{
            f"worth_{of}_{route}": worth
            for of, route, worth in values.filter(domain="all").select("of", "route", "difference").iter_rows()
        },
        "union": candidates.select(pl.struct("request", "item").n_unique()).item() / len(asked),
        "merged": len(merged) / len(asked),
        "exposed_positives": len(exposed_positives),
        "exposure_false_positive_rate": exposure.false_positive_rate(
            shown, lately.select("user", "item").unique(maintain_order=True)
        ),
        "exposure_error": settings.exposure_error,
    }
    routes = {
        route: {**count(route, recalled, candidates, merged, len(asked)), **told_by[route]} for route in settings.routes
    }
    write_json(out / "funnel.json", {**metrics, "routes": routes})
    for route, of in routes.items():
        metrics |= {f"empty_{route}": of["empty_requests"]}
        metrics |= {f"{name}_{route}": number for name, number in told_by[route].items()}
    return metrics


def ask(
    snapshot: Snapshot,
    requests: pl.DataFrame,
    lately: pl.DataFrame,
    models: dict[str, Path],
    out: Path,
    settings: config.Recall,
) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    """Fit every route and ask it for more than `per_route` items, up to twice as many, so that the filter may take what
    was shown `lately` (user, item): request, item, route, rank, score; and by route what its `fit` counted, and how
    many `withdrawn` items it gave, which are dropped: those that may not be recalled at the snapshot."""
    most_shown = lately.join(requests, on="user", how="semi")["user"].unique_counts().max() or 0
    k = settings.per_route + min(settings.per_route, int(most_shown))  # type: ignore[arg-type]
    parts: list[pl.DataFrame] = []
    told: dict[str, dict[str, int]] = {}
    there = snapshot.items["item"].to_numpy()
    known = Requests.of(snapshot, requests)
    for route in progress(settings.routes, "recall"):
        counted = fit(snapshot, out, route, models, settings)
        answer = opened(route, out / route, snapshot.store).recall(known, k)
        kept = only(answer, there)
        found = kept.frame(requests["request"])
        told[route] = counted
        if withdrawn := int((answer.items != NOTHING).sum()) - len(found):
            told[route] = {**told[route], "withdrawn": withdrawn}
            logging.getLogger(__name__).warning("%s items of the route %s are withdrawn; left out", withdrawn, route)
        if found.is_empty():
            logging.getLogger(__name__).warning("the route %s recalled nothing; the others fill its place", route)
        parts.append(found.select("request", "item", pl.lit(route).alias("route"), "rank", "score"))
    return pl.concat(parts), told


def fit(snapshot: Snapshot, out: Path, route: str, models: dict[str, Path], settings: config.Recall) -> dict[str, int]:
    """Fit a route, with its model if there is one, into its own folder of `out`; what its `fit` counted."""
    folder = out / route
    folder.mkdir()
    model = {"model": models[route]} if route in models else {}
    return ROUTES[route].fit(snapshot, folder, **model, **options(settings, route, "fit")) or {}


@dataclass(frozen=True)
class Empty:
    """What stands for a route whose files cannot be used."""

    def recall(self, requests: Requests, k: int) -> Found:  # noqa: ARG002
        return Found(np.zeros((len(requests), 0), np.int32), np.zeros((len(requests), 0), np.float32))


def opened(route: str, folder: Path, store: FeatureStore) -> Route:
    """The route fitted into a folder; one that recalls nothing, and a warning, where its files cannot be used."""
    try:
        return ROUTES[route].load(folder, store)  # type: ignore[no-any-return]
    except InputError as error:
        logging.getLogger(__name__).warning("the route %s is empty: %s", route, error)
        return Empty()


def requests_of(
    store: FeatureStore, moment: str, positive: str, tasks: tuple[str, ...], limit: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One request per (user, domain) with a positive in the slice, and what happened to its positive items.

    Up to `limit` requests, chosen by a hash of (user, domain). Validation users fall by a hash into two folds, so that
    what is fitted on one is tuned on the other.
    """
    log = pl.DataFrame(store.columns(["user", "domain", "item", *tasks], moment))
    engaged = (
        log.filter(pl.col(positive) > 0)
        .group_by("user", "domain", "item")
        .agg(pl.col(tasks).max())
        .sort("user", "domain", "item")
    )
    if engaged.is_empty():
        raise InputError(
            f"{store.folder}: no row of the {moment} slice has {positive} = 1; lengthen split.{moment}_days"
        )
    pairs = engaged.select("user", "domain").unique(maintain_order=True)
    keys = exposure.pair_keys(pairs["user"].to_numpy(), pairs["domain"].to_numpy())
    chosen = pairs[np.sort(np.argsort(keys, kind="stable")[:limit])]
    half = exposure.pair_keys(chosen["user"].to_numpy(), np.full(len(chosen), FOLD_SALT)) % 2
    folds = np.where(half == 0, "distil", "tune") if moment == "validation" else np.full(len(chosen), moment)
    requests = chosen.with_row_index("request").with_columns(
        time=pl.lit(store.slices[moment], dtype=pl.Int64), fold=pl.Series(folds.tolist(), dtype=pl.String)
    )
    positives = (
        engaged.join(requests.select("request", "user", "domain"), on=["user", "domain"], how="inner")
        .select("request", "item", *tasks)
        .sort("request", "item")
    )
    return requests, positives


def flag(table: pl.DataFrame, requests: pl.DataFrame, shown: exposure.Exposure) -> pl.DataFrame:
    """The table (request, item, …) with `exposed`: whether the item was shown to the request's user lately."""
    users = requests["user"].to_numpy()
    pairs = table.select("request", "item").unique(maintain_order=True)
    taken = shown.contains(users[pairs["request"].to_numpy()], pairs["item"].to_numpy())
    pairs = pairs.with_columns(exposed=pl.Series(taken, dtype=pl.Boolean))
    return table.join(pairs, on=["request", "item"], how="left", maintain_order="left")


def refill(recalled: pl.DataFrame, per_route: int) -> pl.DataFrame:
    """The best `per_route` candidates of each route and request that the filter left, their ranks closed up, sorted by
    request and rank."""
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("route", "request")
    left = recalled.filter(~pl.col("exposed")).drop("exposed").with_columns(rank=rank)
    return left.filter(pl.col("rank") <= per_route).sort("request", "rank", maintain_order=True)


def of_route(table: pl.DataFrame, route: str) -> pl.DataFrame:
    return table.filter(pl.col("route") == route)


def recall_of(positives: pl.DataFrame, found: pl.DataFrame) -> float:
    """Mean over requests of the share of their positives that was found."""
    pairs = found.select("request", "item").unique(maintain_order=True).with_columns(hit=True)
    hits = positives.join(pairs, on=["request", "item"], how="left", maintain_order="left")
    shares = hits.group_by("request", maintain_order=True).agg(pl.col("hit").fill_null(False).mean())
    return float(shares["hit"].to_numpy().mean())


def count(
    route: str, recalled: pl.DataFrame, candidates: pl.DataFrame, merged: pl.DataFrame, requests: int
) -> dict[str, int]:
    """What became of one route's items."""
    given, kept = of_route(recalled, route), of_route(candidates, route)
    return {
        "recalled": len(given),
        "exposed": int(given["exposed"].sum()),
        "kept": len(kept),
        "merged": len(of_route(merged, route)),
        "empty_requests": requests - kept["request"].n_unique(),
    }
