"""What the row groups of a log hold: their days, and the first day of every user, item and domain.

A row group whose bytes are those of an earlier run is not read again, so that of a log that grows only the new rows
are. A source gives every raw file row groups of its own, which later files leave as they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import xxhash

from pipeline.features.partition import DAY, STRETCH, runs
from pipeline.lake import hash_value

BLOCK = 1 << 22
GROUPS = "groups.json"
KINDS = ("user_id", "item_id", "domain")


@dataclass(frozen=True, eq=False)
class Survey:
    """Of the row groups in order: hashes of their bytes (`prints`) and how many rows of which `days` they have. `first`
    has a table for user_id, item_id and domain: each value and its `first_day`, from 1970."""

    prints: tuple[str, ...]
    days: tuple[dict[int, int], ...]
    first: dict[str, pl.DataFrame]

    def made_from(self) -> dict[int, list[str]]:
        """By day, in order, the hashes of the row groups that it lies in."""
        found: dict[int, list[str]] = {}
        for print_, days in sorted(zip(self.prints, self.days, strict=True), key=lambda one: one[0]):
            for day in days:
                found.setdefault(day, []).append(print_)
        return dict(sorted(found.items()))


def survey(path: Path, kept: Path) -> Survey:
    """Look through a Parquet file of events; what is found is left in the folder `kept` for the next time."""
    kept.mkdir(parents=True, exist_ok=True)
    for leftover in kept.glob(".seen-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    prints = fingerprints(path)
    days, first = _last_time(kept, set(prints))
    file = pq.ParquetFile(path)
    new = {print_: group for group, print_ in enumerate(prints) if print_ not in days}
    sizes = {group: file.metadata.row_group(group).num_rows for group in new.values()}
    for run in runs(sorted(sizes), sizes, STRETCH):
        table = pl.DataFrame(file.read_row_groups(run, columns=[*KINDS, "time"]))
        group = pl.Series("group", np.repeat(np.array(run), [sizes[one] for one in run]))
        table = table.with_columns(group, first_day=(pl.col("time").dt.epoch("us") // DAY).cast(pl.Int32))
        for kind in KINDS:
            parts = [table.select(kind, "first_day"), *([first[kind]] if kind in first else [])]
            first[kind] = pl.concat(parts).group_by(kind).agg(pl.col("first_day").min()).sort("first_day", kind)
        days |= {prints[one]: {} for one in run}
        for one, day, rows in table.group_by("group", "first_day").len().sort("group", "first_day").iter_rows():
            days[prints[one]][day] = rows
    if new:
        _keep(kept, days, first)
    return Survey(prints, tuple(days[print_] for print_ in prints), first)


def fingerprints(path: Path) -> tuple[str, ...]:
    """A hash of the bytes of each row group of a Parquet file, and of its schema."""
    told = pq.read_metadata(path)
    schema = str(told.schema.to_arrow_schema())
    found = []
    with path.open("rb") as file:
        for number in range(told.num_row_groups):
            group = told.row_group(number)
            columns = [group.column(place) for place in range(group.num_columns)]
            begins = [one.dictionary_page_offset or one.data_page_offset for one in columns]
            ends = [begin + one.total_compressed_size for begin, one in zip(begins, columns, strict=True)]
            digest = xxhash.xxh3_128(schema.encode())
            file.seek(min(begins))
            left = max(ends) - min(begins)
            while left and (block := file.read(min(BLOCK, left))):
                digest.update(block)
                left -= len(block)
            found.append(digest.hexdigest())
    return tuple(found)


def _last_time(kept: Path, prints: set[str]) -> tuple[dict[str, dict[int, int]], dict[str, pl.DataFrame]]:
    """What was found in those of the row groups that were looked at, if the log had no others then."""
    for folder in kept.glob("seen-*"):
        told = json.loads((folder / GROUPS).read_text())
        if told.keys() <= prints:
            days = {print_: {int(day): rows for day, rows in days.items()} for print_, days in told.items()}
            return days, {kind: pl.read_parquet(folder / f"{kind}.parquet") for kind in KINDS}
    return {}, {}


def _keep(kept: Path, days: dict[str, dict[int, int]], first: dict[str, pl.DataFrame]) -> None:
    """Leave a folder with what was found, whole, in place of the last one."""
    staging = Path(tempfile.mkdtemp(prefix=".seen-", dir=kept))
    (staging / GROUPS).write_text(json.dumps(days))
    for kind, table in first.items():
        table.write_parquet(staging / f"{kind}.parquet", statistics=False)
    for other in kept.glob("seen-*"):
        shutil.rmtree(other)
    staging.rename(kept / f"seen-{hash_value(sorted(days))[:16]}")
