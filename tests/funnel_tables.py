"""Random but consistent tables of a whole run, as the stages write them, for the tests of evaluation and report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from day_files import read_log, write_log

from models.schema import Field, Schema

DAY = 86_400_000_000
START = 1_700_000_000_000_000
TASKS = ("click", "like")
DOMAINS = ("home", "search", "video")


@dataclass(frozen=True)
class Folders:
    """The folders of a run; `out` is empty."""

    events: Path
    features: Path
    recall: Path
    ranked: Path
    out: Path


def write_run(
    root: Path, *, users: int = 40, items: int = 120, keep: int = 20, final: int = 8, seed: int = 0
) -> Folders:
    """Write a run's tables: three domains, routes `hot` and `two_tower`, rankers that are better than chance."""
    folders = Folders(*(root / name for name in ("events", "features", "recall", "ranked", "out")))
    for folder in vars(folders).values():
        folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    _write_features(folders, users, items, random)
    _write_recall(folders, users, items, random)
    _write_ranked(folders, keep, final, random)
    return folders


def write(frame: pl.DataFrame, path: Path) -> None:
    frame.write_parquet(path, compression="zstd", statistics=False)


def _write_features(folders: Folders, users: int, items: int, random: np.random.Generator) -> None:
    test = START + 6 * DAY
    schema = Schema(
        fields=(
            Field("user_id", users + 1, "user"),
            Field("segment", 4, "user"),
            Field("item_id", items + 1, "item"),
            Field("category", 5, "item"),
            Field("domain", 4, "context"),
        ),
        numbers=(),
        sequences=(),
        labels=TASKS,
        domains=DOMAINS,
    )
    (folders.features / "schema.json").write_text(schema.to_json())
    slices = {"begin": START, "validation": START + 5 * DAY, "test": test, "end": START + 7 * DAY}
    (folders.features / "slices.json").write_text(json.dumps(slices))
    user = pl.DataFrame(
        {
            "user_id": [None, *(f"u{number}" for number in range(1, users + 1))],
            "code_user_id": np.arange(users + 1, dtype=np.int32),
            "code_segment": np.r_[0, random.integers(1, 4, users)].astype(np.int32),
        }
    )
    category = np.r_[0, random.integers(1, 5, items)].astype(np.int32)
    item = pl.DataFrame(
        {
            "item_id": [None, *(f"i{number}" for number in range(1, items + 1))],
            "published": [None, *[START] * (items - 3), None, test - 1, test + DAY // 2],
            "code_item_id": np.arange(items + 1, dtype=np.int32),
            "code_category": category,
        },
        schema_overrides={"published": pl.Int64},
    )
    write(user, folders.features / "users.parquet")
    write(item, folders.features / "items.parquet")
    catalogue = item[1:].select(
        "item_id",
        pl.from_epoch("published", "us").cast(pl.Datetime("us", "UTC")),
        pl.Series("author_id", [f"<a{number % 7}>" for number in range(items)]),
        pl.Series("category", [f"c&{number}" for number in category[1:]]),
    )
    write(catalogue, folders.events / "items.parquet")
    write(user[1:].select("user_id"), folders.events / "users.parquet")
    rejected = pl.DataFrame(
        {
            "table": ["events"] * 3,
            "row": [1, 5, 9],
            "reason": ["duplicate", "null", "null"],
            "column": ["", "time", "time"],
        }
    )
    write(rejected, folders.events / "rejected.parquet")

    rows = 40 * users
    time = np.sort(random.integers(START, START + 7 * DAY, rows))
    taste = random.random(items + 1) ** 3
    log_item = random.integers(1, items + 1, rows)
    click = (random.random(rows) < taste[log_item]).astype(np.int8)
    log = pl.DataFrame(
        {
            "user": random.integers(1, users + 1, rows).astype(np.int32),
            "item": log_item.astype(np.int32),
            "domain": random.integers(0, 3, rows).astype(np.int16),
            "time": time,
            "slice": (np.searchsorted([slices["validation"], test], time, side="right")).astype(np.int8),
            "random": random.random(rows) < 0.1,
            "item_click_rate_all": (taste[log_item] + random.normal(0, 0.3, rows)).astype(np.float32),
            "click": click,
            "like": (click * (random.random(rows) < 0.3)).astype(np.int8),
        }
    )
    write_log(log.drop("slice", "item_click_rate_all"), folders.features)
    clicked = log.filter(pl.col("click") == 1).select("user", "item", "domain", "time").sort("user", "time")
    write(clicked, folders.features / "behaviour_clicked.parquet")
    ids = log.select(
        pl.format("u{}", "user").alias("user_id"),
        pl.format("i{}", "item").alias("item_id"),
        pl.lit(pl.Series(DOMAINS)).gather("domain").alias("domain"),
        pl.from_epoch("time", "us").cast(pl.Datetime("us", "UTC")),
        pl.lit(value=True).alias("shown"),
        *TASKS,
    )
    write(ids, folders.events / "events.parquet")
    score = np.clip(taste[log_item] + random.normal(0, 0.1, rows), 0.01, 0.99)
    predictions = log.with_columns(score_click=pl.Series(score), score_like=pl.Series(score * 0.3)).filter(
        pl.col("slice") == 2
    )
    write(predictions.drop("slice"), folders.ranked / "predictions.parquet")


def _write_recall(folders: Folders, users: int, items: int, random: np.random.Generator) -> None:
    test = START + 6 * DAY
    log = read_log(folders.features).filter(pl.col("slice") == 2, pl.col("click") == 1)
    pairs = log.select("user", "domain").unique().sort("user", "domain")
    requests = pairs.with_row_index("request").select(
        "request", "user", "domain", pl.lit(test).alias("time"), pl.lit("test").alias("fold")
    )
    positives = (
        log.join(requests.select("request", "user", "domain"), on=["user", "domain"])
        .group_by("request", "item")
        .agg(pl.col(task).max() for task in TASKS)
        .sort("request", "item")
    )
    known = set(positives.select("request", "item").iter_rows())
    published = pl.read_parquet(folders.features / "items.parquet")["published"].fill_null(0).to_numpy()
    alive = np.flatnonzero(published <= test)[1:]
    candidates, merged, exposed = [], [], []
    for request in requests["request"]:
        liked = np.array([(request, item) in known for item in alive])
        hidden = alive[liked & (random.random(len(alive)) < 0.2)]
        exposed += [(request, item) for item in hidden]
        lists = {}
        for route, pull in (("two_tower", 1.5), ("hot", 0.5)):
            score = random.normal(0, 1, len(alive)) + pull * liked - 9 * np.isin(alive, hidden)
            chosen = alive[np.argsort(-score)][:40]
            lists[route] = chosen
            candidates += [(request, item, route, rank + 1, float(-rank)) for rank, item in enumerate(chosen)]
        seen: dict[int, str] = {}
        for pair in zip(lists["two_tower"], lists["hot"], strict=True):
            for route, item in zip(("two_tower", "hot"), pair, strict=True):
                seen.setdefault(int(item), route)
        merged += [(request, item, place + 1, route) for place, (item, route) in enumerate(list(seen.items())[:50])]
    kinds = {"request": pl.UInt32, "item": pl.Int32}
    given = pl.DataFrame(
        candidates, orient="row", schema={**kinds, "route": pl.String, "rank": pl.Int32, "score": pl.Float32}
    )
    write(requests, folders.recall / "requests.parquet")
    write(positives, folders.recall / "positives.parquet")
    write(given.sort("request", "rank"), folders.recall / "candidates.parquet")
    write(
        pl.DataFrame(merged, orient="row", schema={**kinds, "position": pl.Int32, "route": pl.String}),
        folders.recall / "merged.parquet",
    )
    write(pl.DataFrame(exposed, orient="row", schema=kinds), folders.recall / "exposed.parquet")


def _write_ranked(folders: Folders, keep: int, final: int, random: np.random.Generator) -> None:
    merged = pl.read_parquet(folders.recall / "merged.parquet")
    positives = pl.read_parquet(folders.recall / "positives.parquet").select("request", "item", hit=pl.lit(1.0))
    frame = merged.join(positives, on=["request", "item"], how="left", maintain_order="left").with_columns(
        pl.col("hit").fill_null(0.0)
    )
    hit = frame["hit"].to_numpy()
    fused = hit + random.normal(0, 0.7, len(hit))

    def place(column: str) -> pl.Expr:
        return pl.col(column).rank("ordinal", descending=True).over("request").cast(pl.Int32)

    frame = frame.with_columns(
        coarse=pl.Series(0.6 * fused + random.normal(0, 0.5, len(hit))).cast(pl.Float32),
        score_click=pl.Series(1 / (1 + np.exp(-fused))).cast(pl.Float32),
        score_like=pl.Series(0.3 / (1 + np.exp(-fused))).cast(pl.Float32),
        fused=pl.Series(fused).cast(pl.Float32),
    ).with_columns(coarse_rank=place("coarse"), fine_rank=place("fused"))
    ranks = frame.filter(pl.col("coarse_rank") <= keep).with_columns(rank=place("fused"))
    frame = frame.join(ranks.select("request", "item", "rank"), on=["request", "item"], how="left")
    frame = frame.with_columns(shown=(pl.col("rank") <= final).fill_null(value=False)).drop("hit")
    write(frame.sort("request", "position"), folders.ranked / "ranked.parquet")
