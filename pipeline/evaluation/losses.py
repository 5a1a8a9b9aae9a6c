"""K5: every held-out positive is either shown or lost at one stage, and this says at which."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline.evaluation.replay import FINAL, KEPT, MERGE, UNION, Replay

LOSSES = ("unknown item", "recall", "exposure", "merge", "coarse", "fine", "shown")


def lost_at(replay: Replay, features: Path, recall: Path) -> pl.DataFrame:
    """A row for each held-out positive: request, item, domain, route (its first giver; null if none) and `lost`.

    `lost` is one of `LOSSES`: `unknown item` (not in the catalogue, or not yet published at the request), `recall` (no
    route gave it), `exposure` (the filter took it), `merge` (given, but cut there), `coarse`, `fine`, or `shown`.
    """
    published = pl.read_parquet(features / "items.parquet", columns=["published"]).with_row_index("item")
    exposed = pl.read_parquet(recall / "exposed.parquet").select("request", "item").unique()
    table = (
        replay.positives.join(replay.requests.select("row", "domain", "time"), on="row", maintain_order="left")
        .join(published.cast({"item": pl.Int32}), on="item", how="left", maintain_order="left")
        .join(exposed.with_columns(taken=True), on=["request", "item"], how="left", maintain_order="left")
    )
    unborn = (pl.col("published") > pl.col("time")).fill_null(value=False)
    lost = (
        pl.when(pl.col(FINAL).is_finite()).then(pl.lit("shown"))
        .when(pl.col(KEPT).is_finite()).then(pl.lit("fine"))
        .when(pl.col(MERGE).is_finite()).then(pl.lit("coarse"))
        .when((pl.col("item") == 0) | unborn).then(pl.lit("unknown item"))
        .when(pl.col("taken").is_not_null()).then(pl.lit("exposure"))
        .when(pl.col(UNION).is_finite()).then(pl.lit("merge"))
        .otherwise(pl.lit("recall"))
    )  # fmt: skip
    return table.select("request", "item", "domain", "route", lost.cast(pl.Enum(LOSSES)).alias("lost"))


def loss_table(lost: pl.DataFrame) -> pl.DataFrame:
    """Counts and shares by stage: over all (`domain` and `route` "all"), by domain, and by first route ("none": no
    route gave it). Columns: domain, route, lost, positives, share; every stage has a row in every group."""
    groups = [
        lost.select(pl.lit("all").alias("domain"), pl.lit("all").alias("route"), "lost"),
        lost.select("domain", pl.lit("all").alias("route"), "lost"),
        lost.select(pl.lit("all").alias("domain"), pl.col("route").fill_null("none"), "lost"),
    ]
    tables = []
    for group in groups:
        keys = group.select("domain", "route").unique().sort("domain", "route")
        stages = pl.DataFrame({"lost": pl.Series(LOSSES, dtype=pl.Enum(LOSSES))})
        counts = group.group_by("domain", "route", "lost").agg(pl.len().cast(pl.Int64).alias("positives"))
        full = keys.join(stages, how="cross").join(counts, on=["domain", "route", "lost"], how="left")
        tables.append(full.with_columns(pl.col("positives").fill_null(0)).sort("domain", "route", "lost"))
    share = pl.col("positives") / pl.col("positives").sum().over("domain", "route")
    return pl.concat([table.with_columns(share=share) for table in tables])
