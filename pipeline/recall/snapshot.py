"""What recall may know at a moment: everything strictly before it, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.features.store import UNKNOWN_TIME, FeatureStore

DAY = 86_400_000_000

CANDIDATES = {"request": pl.UInt32, "item": pl.Int32, "rank": pl.Int32, "score": pl.Float32}


@dataclass(frozen=True)
class Snapshot:
    """The log as of `time` (µs), for all routes.

    `interactions`: shown rows before `time`: user, item, domain, time, and `engaged`, whether the positive task
    happened. `history`: what users engaged with before `time`, the years before the log among it: user, item, time,
    sorted by user, oldest first. `items`: the items that may be recalled, those published at or before `time` or at
    an unknown time: item, published (µs, null when unknown), and author_id and category as numbers (0 = unknown)
    where the catalogue has them.
    """

    time: int
    interactions: pl.DataFrame
    history: pl.DataFrame
    items: pl.DataFrame
    store: FeatureStore


def take(store: FeatureStore, time: int, positive: str) -> Snapshot:
    """The snapshot of a features folder at `time`; `positive` is the task that counts as engagement."""
    log = pl.DataFrame(store.columns(["user", "item", "domain", "time", positive])).filter(pl.col("time") < time)
    interactions = log.select("user", "item", "domain", "time", engaged=pl.col(positive) > 0)
    begin = store.slices["begin"]
    prior = [
        pl.scan_parquet(store.folder / f"behaviour_{sequence.name}.parquet")
        .filter(pl.col("time") < min(begin, time))
        .select("user", "item", "time")
        .collect()
        for sequence in store.schema.sequences
    ]
    history = pl.concat([*prior, interactions.filter("engaged").select("user", "item", "time")])
    return Snapshot(
        time=time,
        interactions=interactions,
        history=history.filter((pl.col("user") > 0) & (pl.col("item") > 0)).sort("user", "time", maintain_order=True),
        items=available(store, time),
        store=store,
    )


def available(store: FeatureStore, time: int) -> pl.DataFrame:
    """The items published at or before `time`, or at an unknown time, in order of their numbers."""
    columns = store.items
    unknown = np.full(len(columns["code_item_id"]), UNKNOWN_TIME)
    attributes = {name: columns[f"key_{name}"] for name in ("author_id", "category") if f"key_{name}" in columns}
    items = pl.DataFrame({"published": columns.get("published", unknown), **attributes}).with_row_index("item")
    return items.filter((pl.col("item") > 0) & (pl.col("published") <= time)).with_columns(
        pl.col("item").cast(pl.Int32), published=pl.col("published").replace(UNKNOWN_TIME, None)
    )
