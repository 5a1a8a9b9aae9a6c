"""What only a simulated log can tell: how good an oracle would be, and what a list is really worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from pipeline.evaluation.metrics import auc
from pipeline.evaluation.replay import Replay
from pipeline.sources.simulator import true_probability

LENGTH = 10
REQUESTS = 500
RANDOM, ORACLE = "random order", "oracle order"


def is_known(events: Path) -> bool:
    """Whether the log comes with its true probabilities."""
    return (events / "truth.parquet").exists()


def oracle_auc(events: Path, begin: int, positive: str) -> float:
    """AUC of the true probabilities on the shown impressions from `begin` (µs), the test slice: the upper bound."""
    time = pl.col("time").cast(pl.Datetime("us")).dt.epoch("us")
    log = pl.read_parquet(events / "events.parquet", columns=["time", "shown", positive])
    truth = pl.read_parquet(events / "truth.parquet", columns=[positive])[positive]
    test = log.with_columns(truth=truth).filter((time >= begin) & pl.col("shown"))
    return auc(test[positive].to_numpy(), test["truth"].to_numpy())


def list_values(replay: Replay, events: Path, features: Path, positive: str) -> pl.DataFrame:
    """Mean true probability of the first ten items of each order of the merge, mean over up to 500 requests.

    Columns: order, value. The random order's value is exact: the mean over all merged.
    """
    chosen = np.unique(np.linspace(0, len(replay) - 1, REQUESTS).round().astype(int))
    ids = {
        name: pl.read_parquet(features / f"{name}s.parquet", columns=[f"{name}_id"])
        .with_row_index(name)
        .cast({name: pl.Int32})
        for name in ("user", "item")
    }
    lists = (
        replay.ranked.filter(pl.col("row").is_in(chosen.tolist()) & (pl.col("item") > 0))
        .join(replay.requests.select("row", "user", "domain", "time"), on="row", maintain_order="left")
        .filter(pl.col("user") > 0)
        .join(ids["user"], on="user", maintain_order="left")
        .join(ids["item"], on="item", maintain_order="left")
    )
    users, items, times = (lists[name].to_numpy() for name in ("user_id", "item_id", "time"))
    chances = true_probability(events, users, items, lists["domain"].to_numpy().astype(str), times)[positive]
    lists = lists.with_columns(truth=pl.Series(chances, dtype=pl.Float64))
    oracle = pl.col("truth").rank("ordinal", descending=True).over("row")
    orders = {
        RANDOM: pl.lit(value=True),
        "recall order": pl.col("position") <= LENGTH,
        "coarse order": pl.col("coarse_rank") <= LENGTH,
        "coarse → fine": pl.col("rank").fill_null(LENGTH + 1) <= LENGTH,
        "fine on everything": pl.col("fine_rank") <= LENGTH,
        ORACLE: oracle <= LENGTH,
    }
    values = [
        lists.filter(first).group_by("row", maintain_order=True).agg(pl.col("truth").mean())["truth"].mean()
        for first in orders.values()
    ]
    return pl.DataFrame({"order": list(orders), "value": values}, schema={"order": pl.String, "value": pl.Float64})
