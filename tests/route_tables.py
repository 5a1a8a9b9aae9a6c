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


def engaged(taken: list[tuple[int, int]], available: list[int]) -> Snapshot:
    """A snapshot of what was taken, as (user, item), oldest first."""
    rows = [(user, item, time) for time, (user, item) in enumerate(taken)]
    history = pl.DataFrame(rows, schema=HISTORY, orient="row").sort("user", "time")
    items = pl.DataFrame({"item": available}, schema={"item": pl.Int32})
    return Snapshot(len(rows), history, history, items, store=None)  # type: ignore[arg-type]
