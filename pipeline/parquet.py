"""Parquet read as an Arrow table, with no library but Arrow: `pq.read_table` would import pandas where it is installed,
which takes .4 s in every process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A file's columns, all of them or these in this order. Raises KeyError for a column that is not there."""
    with pq.ParquetFile(path) as file:
        table = file.read(columns)
    return table if columns is None else table.select(columns)
