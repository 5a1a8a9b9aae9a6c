"""The days of a features folder, read and changed by tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.features.store import FeatureStore


def read_log(folder: Path) -> pl.DataFrame:
    """The impressions of all days with their `slice` (0 train, 1 validation, 2 test) and the user's own facts."""
    bounds = json.loads((folder / "slices.json").read_text())
    log = pl.read_parquet(sorted((folder / "days").glob("*/user-*.parquet"))).sort("time", "user", maintain_order=True)
    edges = [bounds["validation"], bounds["test"]]
    return log.with_columns(slice=pl.Series(np.searchsorted(edges, log["time"].to_numpy(), side="right")))


def encoded_log(store: FeatureStore) -> pl.DataFrame:
    """The same impressions with every number that a model sees."""
    numbers = {number.name: store.log().numbers[:, place] for place, number in enumerate(store.schema.numbers)}
    return read_log(store.folder).with_columns(pl.Series(name, values) for name, values in numbers.items())


def change_log(source: Path, target: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Copy a features folder, with something changed in every day."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in (target / "days").glob("*/user-*.parquet"):
        change(pl.read_parquet(path)).write_parquet(path)


def write_log(log: pl.DataFrame, folder: Path) -> None:
    """Write impressions as days."""
    days = log.with_columns(day=pl.from_epoch("time", "us").dt.date().cast(pl.String)).partition_by("day", as_dict=True)
    for (day,), part in days.items():
        (folder / "days" / str(day)).mkdir(parents=True)
        part.drop("day").write_parquet(folder / "days" / str(day) / "user-00.parquet")
