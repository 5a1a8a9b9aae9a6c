"""F12: forward (item or user → attributes) and inverted indexes (attribute value → items), served without a database.

All are Arrow files that are mapped into memory: opening one reads no more than its schema, a question touches the
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
import scipy.sparse as sp

from pipeline.features.identity import canonical
from pipeline.lake import InputError

INVERTED = ("tags", "tag", "author_id", "category", "place")
FORWARD = ("items", "users")


def write(users: pl.DataFrame, items: pl.DataFrame, scores: npt.NDArray[Any], out: Path) -> None:
    """Write the indexes of tables whose rows are the users' and items' numbers, row 0 being the unknown one.

    The items of a value come in descending order of `scores` (N,), those with equal scores in the order of their
    number. Values are the texts of `identity.canonical`; `tag`, the first of the tags, has no index beside `tags`.
    """
    for name, table in zip(FORWARD, (items, users), strict=True):
        write_table(table.drop("content", strict=False), out / f"index_{name}.arrow")
    best = pl.Series("item", np.argsort(-scores, kind="stable").astype(np.int32))
    for name in INVERTED:
        if name in items.columns and not (name == "tag" and "tags" in items.columns):
            write_table(_inverted(items[name].gather(best), best), out / f"index_{name}.arrow")


def _inverted(values: pl.Series, items: pl.Series) -> pl.DataFrame:
    """From the values of the items, the best first; a list of values has no item twice."""
    pairs = pl.DataFrame({"value": values, "item": items})
    if isinstance(values.dtype, pl.List):
        pairs = pairs.with_columns(pl.col("value").list.unique()).explode("value")
    pairs = pairs.with_columns(canonical(pairs["value"]).alias("value")).drop_nulls()
    return pairs.group_by("value").agg(pl.col("item").alias("items")).sort("value")


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table as one batch of an Arrow file, to be mapped into memory."""
    arrow = table.to_arrow()
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in arrow.columns], schema=arrow.schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, arrow.schema) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True, eq=False)
class Indexes:
    """The indexes of a features folder."""

    folder: Path
    items: pa.RecordBatch
    users: pa.RecordBatch
    inverted: dict[str, pa.RecordBatch]

    @classmethod
    def open(cls, folder: Path) -> Indexes:
        paths = {path.stem.removeprefix("index_"): path for path in sorted(folder.glob("index_*.arrow"))}
        if not paths:
            raise InputError(f"{folder}: no index_*.arrow; build its features first")
        batches = {name: pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0) for name, path in paths.items()}
        return cls(folder, batches.pop("items"), batches.pop("users"), batches)

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

    def matrix(self, attribute: str) -> tuple[pl.Series, sp.csr_array]:
        """All values of an attribute in ascending order, and the matrix (values, items) with 1 where an item has it."""
        values, lists = self.inverted[attribute].columns
        items, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
        matrix = sp.csr_array((np.ones(len(items), np.float32), items, offsets), shape=(len(values), len(self.items)))
        return pl.Series("value", values, pl.String), matrix

    def attributes_of(self, item: int) -> dict[str, Any]:
        """The attributes of the item with this number, `content` aside."""
        return self.items.slice(item, 1).to_pylist()[0]  # type: ignore[no-any-return]
