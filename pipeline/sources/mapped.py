"""Any log of one's own: Parquet or CSV files, and for each column of the contract the column that plays it.

[source]
kind = "mapped"
time_unit = "ms"

[source.events]
path = "logs/2024-*.csv"
columns = { user_id = "uid", item_id = "video", time = "ts", domain = "tab", click = "is_click" }
"""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources.raw import RawLog, read_table, require

ONE_DOMAIN = "all"


def files(source: config.MappedLog) -> list[Path]:
    """Every file the configuration's paths and globs stand for, table by table in the order of names."""
    tables = {name: getattr(source, name) for name in ("events", "items", "users", "history")}
    return [path for name, table in tables.items() if table is not None for path in _paths(name, table)]


def read(source: config.MappedLog) -> RawLog:
    """The tables under the contract's names.

    Columns that are not named are left out of the log, and kept for items and users. A log without a domain column is
    one domain, "all". A history without ranks is ranked by time.
    Raises `InputError` naming file, column and key when a file or a column is missing.
    """
    tables = {"events": source.events, "items": source.items, "users": source.users, "history": source.history}
    told = {name: table for name, table in tables.items() if table is not None}
    events = _read("events", source.events).select(*source.events.columns)
    if "domain" not in events.columns:
        events = events.with_columns(pl.lit(ONE_DOMAIN).alias("domain"))
    return RawLog(
        events=[events],
        items=_read("items", source.items) if source.items else None,
        users=_read("users", source.users) if source.users else None,
        history=[_ranked(_read("history", source.history))] if source.history else None,
        names={name: table.path for name, table in told.items()},
        advice="source.events.columns",
        time_unit=source.time_unit,
        time_zone=source.time_zone,
    )


def _paths(name: str, table: config.Table) -> list[Path]:
    pattern = Path(os.path.expandvars(table.path))
    anchor = Path(pattern.anchor)
    paths = sorted(anchor.glob(str(pattern.relative_to(anchor))))
    if not paths:
        raise InputError(f"{table.path}: no such file; correct source.{name}.path")
    return paths


def _read(name: str, table: config.Table) -> pl.DataFrame:
    """All files of a table as one, each column under its name in the contract."""
    advice = f"source.{name}.columns"
    frames = []
    for path in _paths(name, table):
        frame = read_table(path)
        require(frame, list(table.columns.values()), name=str(path), advice=advice)
        frames.append(frame)
    whole = pl.concat(frames, how="diagonal_relaxed")
    named = whole.select(pl.col(column).alias(ours) for ours, column in table.columns.items())
    rest = whole.drop(*table.columns.values(), *(ours for ours in table.columns if ours in whole.columns), strict=False)
    return named.hstack(rest)


def _ranked(history: pl.DataFrame) -> pl.DataFrame:
    if "behaviour" not in history.columns:
        history = history.with_columns(pl.lit("click").alias("behaviour"))
    if "rank" in history.columns or "time" not in history.columns:
        return history
    return history.with_columns((pl.col("time").rank("ordinal").over("user_id", "behaviour") - 1).alias("rank"))
