"""R2, fresh: the newest items by time of publication, above a quality floor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.features.store import FeatureStore
from pipeline.recall.route import Found, Requests, Route, same_for_all
from pipeline.recall.snapshot import DAY, Snapshot

LONGEST = 2_000

EVIDENCE = 20
FLOOR = 0.25


def fit(snapshot: Snapshot, folder: Path, *, days: float = 3.0) -> None:
    """Write the list of fresh items, at most 2,000, the same for every request.

    First the items of the last `days`, newest first; then, for when these are too few, older ones, best first.
    Items whose quality lies in the worst quarter of the catalogue are left out. Ties go to the lower item number.
    """
    rated = quality(snapshot)
    fresh = (pl.col("published") > snapshot.time - round(days * DAY)).fill_null(False)
    chosen = (
        rated.filter(pl.col("quality") >= pl.col("quality").quantile(FLOOR, "higher"))
        .with_columns(fresh=fresh)
        .sort(
            ~pl.col("fresh"),
            pl.when("fresh").then(-pl.col("published")),
            -pl.col("quality"),
            "item",
        )
        .select(
            "item",
            rank=pl.int_range(1, pl.len() + 1, dtype=pl.Int32),
            score=pl.col("quality").cast(pl.Float32),
        )
        .head(LONGEST)
    )
    chosen.write_parquet(folder / "fresh.parquet", compression="zstd", statistics=False)


@dataclass(frozen=True)
class Fresh:
    """One list for all, best first: `items` (N,) and their quality as `scores` (N,)."""

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def recall(self, requests: Requests, k: int) -> Found:
        return same_for_all(self.items, self.scores, requests, k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    chosen = pl.read_parquet(folder / "fresh.parquet")
    return Fresh(chosen["item"].to_numpy(), chosen["score"].to_numpy())


def quality(snapshot: Snapshot) -> pl.DataFrame:
    """The available items with `quality`, the engagement rate of the narrowest group that has been shown at least 20
    times: the item itself, its author, its category, or everything."""
    shown = snapshot.interactions.group_by("item").agg(shows=pl.len(), engaged=pl.col("engaged").sum())
    items = snapshot.items.join(shown, on="item", how="left", maintain_order="left").with_columns(
        pl.col("shows", "engaged").fill_null(0)
    )
    shows, engaged = pl.col("shows"), pl.col("engaged")
    rates = [pl.when(shows >= EVIDENCE).then(engaged / shows)]
    for group in ("author_id", "category"):
        if group in items.columns:
            known = (pl.col(group) > 0) & (shows.sum().over(group) >= EVIDENCE)
            rates.append(pl.when(known).then(engaged.sum().over(group) / shows.sum().over(group)))
    overall = engaged.sum() / pl.max_horizontal(shows.sum(), 1)
    return items.select("item", "published", quality=pl.coalesce(*rates, overall))
