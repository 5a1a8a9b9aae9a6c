"""F12: forward index (item → attributes) and inverted indexes (attribute value → items), served without a database.

Both are Arrow files that are mapped into memory: opening one reads no more than its schema, a question touches the
pages of its answer, and processes on one machine share them. An inverted index is a table of two columns, the values
in ascending order and for each the list of its items, which Arrow keeps as offsets into one long array (CSR).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline.features.identity import canonical
from pipeline.lake import InputError

INVERTED = ("tags", "tag", "author_id", "category", "place")
FORWARD = "index_items.arrow"


def write(items: pl.DataFrame, scores: npt.NDArray[Any], out: Path) -> None:
    """Write the indexes of an items table whose row is the item's number, row 0 being the unknown item.

    The items of a value come in descending order of `scores` (N,), those with equal scores in the order of their
    number. Values are the texts of `identity.canonical`; `tag`, the first of the tags, has no index beside `tags`.
    """
    forward = items.drop("content", strict=False)
    _write(forward, out / FORWARD)
    best = pl.Series("item", np.argsort(-scores, kind="stable").astype(np.int32))
    for name in INVERTED:
        if name in items.columns and not (name == "tag" and "tags" in items.columns):
            _write(_inverted(items[name].gather(best), best), out / f"index_{name}.arrow")


def _inverted(values: pl.Series, items: pl.Series) -> pl.DataFrame:
    """From the values of the items, the best first; a list of values has no item twice."""
    pairs = pl.DataFrame({"value": values, "item": items})
    if isinstance(values.dtype, pl.List):
        pairs = pairs.with_columns(pl.col("value").list.unique()).explode("value")
    pairs = pairs.with_columns(canonical(pairs["value"]).alias("value")).drop_nulls()
    return pairs.group_by("value").agg(pl.col("item").alias("items")).sort("value")


def _write(table: pl.DataFrame, path: Path) -> None:
    arrow = table.to_arrow()
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in arrow.columns], schema=arrow.schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, arrow.schema) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True, eq=False)
class Indexes:
    """The indexes of a features folder."""

    folder: Path
    items: pa.RecordBatch
    inverted: dict[str, pa.RecordBatch]

    @classmethod
    def open(cls, folder: Path) -> Indexes:
        paths = {path.stem.removeprefix("index_"): path for path in sorted(folder.glob("index_*.arrow"))}
        if not paths:
            raise InputError(f"{folder}: no index_*.arrow; build its features first")
        batches = {name: pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0) for name, path in paths.items()}
        return cls(folder, batches.pop("items"), batches)

    def items_of(self, attribute: str, value: str) -> npt.NDArray[np.int32]:
        """Numbers of the items with this value, the best first; none for a value that no item has.

        The array is read-only: it lies in the file.
        """
        if attribute not in self.inverted:
            raise InputError(f"{self.folder}: no index of {attribute!r}; there are {', '.join(self.inverted)}")
        values, lists = self.inverted[attribute].columns
        place = bisect_left(range(len(values)), value, key=lambda row: values[row].as_py())
        if place == len(values) or values[place].as_py() != value:
            return np.empty(0, np.int32)
        return lists[place].values.to_numpy()  # type: ignore[no-any-return]

    def attributes_of(self, item: int) -> dict[str, Any]:
        """The attributes of the item with this number, `content` aside."""
        return self.items.slice(item, 1).to_pylist()[0]  # type: ignore[no-any-return]
