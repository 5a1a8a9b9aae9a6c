"""Asking a route as the recall stage does, for the tests of routes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import polars as pl

from pipeline.recall.route import Requests
from pipeline.recall.snapshot import Snapshot

HISTORY = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}
NOBODY = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}


def ask(route: ModuleType, folder: Path, taken: Snapshot, requests: pl.DataFrame, k: int) -> pl.DataFrame:
    """request, item, rank, score; requests without user or domain come from nobody, or from domain 0."""
    requests = pl.concat([requests, pl.DataFrame(schema=NOBODY)], how="diagonal").with_columns(
        pl.col("user", "domain").fill_null(0)
    )
    if "user" not in taken.history.columns:
        taken = replace(taken, history=pl.DataFrame(schema=HISTORY))
    return route.load(folder, taken.store).recall(Requests.of(taken, requests), k).frame(requests["request"])
