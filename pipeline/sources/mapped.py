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
from pipeline.features.identity import canonical
from pipeline.lake import InputError
from pipeline.sources.raw import RawLog, read_table, require

ONE_DOMAIN = "all"
NUMBERS = ("whole numbers", "unsigned whole numbers", "numbers")


def files(source: config.MappedLog) -> list[Path]:
    """Every file the configuration's paths and globs stand for, table by table in the order of names."""
    tables = {name: getattr(source, name) for name in ("events", "items", "users", "history")}
    return [path for name, table in tables.items() if table is not None for path in _paths(name, table)]


def read(source: config.MappedLog) -> RawLog:
    """The tables under the contract's names.

    Columns that are not named are left out of the log, and kept for items and users. A log without a domain column is
    one domain, "all". A history without ranks is ranked by time.
    Raises `InputError` naming file, column and key when a file or a column is missing, a file cannot be read, or the
    files of a glob have types that cannot be one.
    """
    tables = {"events": source.events, "items": source.items, "users": source.users, "history": source.history}
    told = {name: table for name, table in tables.items() if table is not None}
    read = {name: _read(name, table) for name, table in told.items()}
    events = read["events"][0].select(*source.events.columns)
    if "domain" not in events.columns:
        events = events.with_columns(pl.lit(ONE_DOMAIN).alias("domain"))
    return RawLog(
        events=[events],
        items=read["items"][0] if "items" in read else None,
        users=read["users"][0] if "users" in read else None,
        history=[_ranked(read["history"][0])] if "history" in read else None,
        names={name: table.path for name, table in told.items()},
        advice="source.events.columns",
        time_unit=source.time_unit,
        time_zone=source.time_zone,
        notes={"retyped_columns": sum(retyped for _, retyped in read.values())},
    )


def _paths(name: str, table: config.Table) -> list[Path]:
    pattern = Path(os.path.expandvars(table.path))
    anchor = Path(pattern.anchor)
    paths = sorted(anchor.glob(str(pattern.relative_to(anchor))))
    if not paths:
        raise InputError(f"{table.path}: no such file; correct source.{name}.path")
    return paths


def _read(name: str, table: config.Table) -> tuple[pl.DataFrame, int]:
    """All files of a table as one, each column under its name in the contract; how many columns became text for it."""
    advice = f"source.{name}.columns"
    frames = {}
    for path in _paths(name, table):
        frames[path] = read_table(path)
        require(frames[path], list(table.columns.values()), name=str(path), advice=advice)
    whole, retyped = _as_one(frames)
    named = whole.select(pl.col(column).alias(ours) for ours, column in table.columns.items())
    rest = whole.drop(*table.columns.values(), *(ours for ours in table.columns if ours in whole.columns), strict=False)
    return named.hstack(rest), retyped


def _as_one(frames: dict[Path, pl.DataFrame]) -> tuple[pl.DataFrame, int]:
    """The rows of all files; a column that a file lacks, or has only nulls in, is null there.

    A column of numbers in one file and of text in another becomes text, in which 7, 7.0 and "7" are the same; how many
    did is returned too. Raises InputError naming the column and the files where types have nothing in common.
    """
    retyped = 0
    for name in dict.fromkeys(name for frame in frames.values() for name in frame.columns):
        columns = {path: frame[name] for path, frame in frames.items() if name in frame.columns}
        kinds = {path: _kind(column) for path, column in columns.items()}
        found = {kind: path for path, kind in kinds.items() if kind is not None}
        if len(found) > 1 and not found.keys() <= {"text", *NUMBERS}:
            told = ", ".join(f"{kind} in {path}" for kind, path in sorted(found.items()))
            raise InputError(f"column {name!r} holds {told}; write all files with one type")
        as_text = len(found) > 1 and ("text" in found or found.keys() >= {*NUMBERS[:2]})
        retyped += as_text
        for path, column in columns.items():
            if kinds[path] is None and found:
                column = pl.Series(name, [None] * len(column), pl.Null)
            elif as_text:
                column = canonical(column)
            elif kinds[path] == "numbers" and "whole numbers" in found and (column.drop_nulls() % 1 == 0).all():
                column = column.cast(pl.Int64, strict=False)
            frames[path] = frames[path].with_columns(column)
    return pl.concat(frames.values(), how="diagonal_relaxed"), retyped


def _kind(values: pl.Series) -> str | None:
    """What a column holds, in plain words; None for nothing but nulls."""
    kind = values.dtype
    if values.null_count() == len(values):
        return None
    if isinstance(kind, pl.String | pl.Categorical | pl.Enum):
        return "text"
    if kind.is_numeric() or kind == pl.Boolean:
        whole = "whole numbers" if kind.is_integer() or kind == pl.Boolean else "numbers"
        return "unsigned whole numbers" if kind == pl.UInt64 else whole
    if zone := getattr(kind, "time_zone", None):
        return f"times of {zone}"
    return "times without a zone" if kind.is_temporal() else "lists" if kind == pl.List else str(kind)


def _ranked(history: pl.DataFrame) -> pl.DataFrame:
    if "behaviour" not in history.columns:
        history = history.with_columns(pl.lit("click").alias("behaviour"))
    if "rank" in history.columns or "time" not in history.columns:
        return history
    return history.with_columns((pl.col("time").rank("ordinal").over("user_id", "behaviour") - 1).alias("rank"))
