"""R1, hot: what is most engaged with in a domain, older engagement counting less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.features.store import FeatureStore
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import DAY, Snapshot

LONGEST = 2_000


def fit(snapshot: Snapshot, folder: Path, *, half_life_days: float = 3.0) -> None:
    """Write one list per domain, of at most 2,000 items: its items by decayed engagement, then those of all domains
    that it lacks.

    An engagement counts 1 at the snapshot's time and half as much for every half-life before it. Ties go to the
    lower item number. A domain without a single engagement has the list of all domains.
    """
    age = (snapshot.time - pl.col("time")) / (half_life_days * DAY)
    engaged = (
        snapshot.interactions.filter("engaged")
        .join(snapshot.items.select("item"), on="item", how="semi")
        .select("domain", "item", score=(-age * 0.6931471805599453).exp())
    )
    local = engaged.group_by("domain", "item").agg(pl.col("score").sum())
    everywhere = engaged.group_by("item").agg(pl.col("score").sum())
    domains = pl.DataFrame({"domain": range(len(snapshot.store.schema.domains))}, schema={"domain": pl.Int16})
    fallback = domains.join(everywhere, how="cross").join(local, on=["domain", "item"], how="anti")
    lists = (
        pl.concat([local.with_columns(borrowed=False), fallback.with_columns(borrowed=True)])
        .sort("domain", "borrowed", -pl.col("score"), "item")
        .select(
            "domain",
            "item",
            rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("domain"),
            score=pl.col("score").cast(pl.Float32),
        )
        .filter(pl.col("rank") <= LONGEST)
    )
    lists.write_parquet(folder / "hot.parquet", compression="zstd", statistics=False)


@dataclass(frozen=True)
class Hot:
    """A list a domain, padded to the longest: `items` (P, L) and `scores` (P, L)."""

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def recall(self, requests: Requests, k: int) -> Found:
        """The first `k` items of each request's domain; nothing for an unknown one."""
        items = self.items[requests.domain, :k]
        items[requests.domain < 0] = NOTHING
        return Found(items, self.scores[requests.domain, :k])


def load(folder: Path, store: FeatureStore) -> Route:
    lists = pl.read_parquet(folder / "hot.parquet")
    shape = (len(store.schema.domains), lists["rank"].to_numpy().max(initial=0))
    hot = Hot(np.full(shape, NOTHING, np.int32), np.zeros(shape, np.float32))
    place = lists["domain"].to_numpy(), lists["rank"].to_numpy() - 1
    hot.items[place], hot.scores[place] = lists["item"].to_numpy(), lists["score"].to_numpy()
    return hot
