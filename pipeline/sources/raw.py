"""What a source hands to the contract: raw tables under the contract's column names, and how files are read."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from pipeline.lake import InputError


@dataclass(frozen=True)
class RawLog:
    """Tables in the contract's column names, not yet checked.

    `events` and `history` come in pieces, so that a log larger than memory can pass. Pieces of events must follow
    one another in time; pieces of history by user. `names` says which file a table's mistakes are to be blamed on,
    `advice` which key of the configuration mends them. Times are numbers in `time_unit`, text, or already dates.
    """

    events: Iterable[pl.DataFrame]
    items: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    history: Iterable[pl.DataFrame] | None = None
    names: dict[str, str] = field(default_factory=dict)
    advice: str = "source"
    time_unit: str = "us"
    time_zone: str = "UTC"
    notes: dict[str, int] = field(default_factory=dict)


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet file, or else a CSV whose column types are taken from all of its rows.

    Raises InputError naming the file if it is empty, truncated or corrupt, and the line where a CSV breaks its form.
    """
    try:
        return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: the file is empty; it needs a header line and rows") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if path.suffix == ".parquet":
            told = f"not a readable Parquet file, truncated or corrupt ({_first_line(error)})"
            raise InputError(f"{path}: {told}; write it again, or move it away") from None
        raise InputError(
            f"{path}: {_broken_line(path) or _first_line(error)}; mend the file, or move it away"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _broken_line(path: Path) -> str:
    """What is wrong with the first line of a CSV that has not as many fields as the header; "" if all have."""
    with path.open(newline="", errors="replace") as file:
        lines = csv.reader(file)
        width = len(next(lines, []))
        wrong = next((f"line {lines.line_num} has {len(line)} fields" for line in lines if len(line) > width), "")
    return wrong and f"{wrong}, the header {width}"


def require(table: pl.DataFrame, columns: Sequence[str], *, name: str, advice: str) -> None:
    """Raise `InputError` naming the file, the columns it lacks, those it has, and where to mend it."""
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise InputError(
            f"{name}: no column {', '.join(map(repr, lacking))}; it has {', '.join(table.columns)}; correct {advice}"
        )
