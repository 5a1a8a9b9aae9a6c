"""R1, hot: what is most engaged with in a domain, older engagement counting less."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.recall.snapshot import CANDIDATES, DAY, Snapshot


def fit(snapshot: Snapshot, folder: Path, *, half_life_days: float) -> None:
    """Write one list per domain: its items by decayed engagement, then those of all domains that it lacks.

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
    )
    lists.write_parquet(folder / "hot.parquet", compression="zstd", statistics=False)


def recall(folder: Path, snapshot: Snapshot, requests: pl.DataFrame, k: int) -> pl.DataFrame:  # noqa: ARG001
    """The first `k` items of each request's domain: request, item, rank, score."""
    lists = pl.scan_parquet(folder / "hot.parquet").filter(pl.col("rank") <= k).collect()
    return (
        requests.select("request", "domain")
        .join(lists, on="domain", how="inner", maintain_order="left_right")
        .select(*CANDIDATES)
        .cast(CANDIDATES)  # type: ignore[arg-type]
    )
