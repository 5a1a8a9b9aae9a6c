"""What items and users are, as sparse matrices that routes are made of: tags, authors, categories, places, follows."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import scipy.sparse as sp

from pipeline.features.identity import canonical
from pipeline.features.indexes import Indexes
from pipeline.recall.snapshot import DAY, Snapshot

Floats = npt.NDArray[np.float32]

EVIDENCE = 20.0
HALF_LIFE_DAYS = 7.0


def items_with(snapshot: Snapshot, attribute: str) -> tuple[pl.Series, sp.csr_array]:
    """An attribute's values as text, ascending, and the matrix (V, I) with 1 where an item has a value.

    Without the attribute there are no values, and the log says so.
    """
    indexes = Indexes.open(snapshot.store.folder)
    if attribute in indexes.inverted:
        return indexes.matrix(attribute)
    logging.getLogger(__name__).warning("items have no %s; a route that needs them recalls nothing", attribute)
    return pl.Series("value", [], pl.String), sp.csr_array((0, indexes.items.num_rows), dtype=np.float32)


def users_with(snapshot: Snapshot, column: str, values: pl.Series) -> sp.csr_array:
    """The matrix (U, V) with 1 where a user's `column`, a value or a list of them, has one of the `values` (V,), which
    are different texts. Empty without the column."""
    texts = user_texts(snapshot, column)
    number = pl.DataFrame({"value": values}).with_row_index("number")
    known = texts.join(number, on="value", how="inner", maintain_order="left")
    ones = np.ones(len(known), np.float32)
    where = known["user"].to_numpy(), known["number"].to_numpy()
    shape = (Indexes.open(snapshot.store.folder).users.num_rows, len(values))
    matrix = sp.csr_array((ones, where), shape=shape)
    matrix.data[:] = 1.0
    return matrix


def user_texts(snapshot: Snapshot, column: str) -> pl.DataFrame:
    """user, value: each value as text; no row without the column."""
    users = Indexes.open(snapshot.store.folder).users
    if column not in users.schema.names:
        return pl.DataFrame(schema={"user": pl.UInt32, "value": pl.String})
    table = pl.DataFrame(pa.Table.from_batches([users.select([column])])).with_row_index("user")
    if isinstance(table[column].dtype, pl.List):
        table = table.explode(column)
    return table.select("user", canonical(table[column]).alias("value")).drop_nulls()


def demand(snapshot: Snapshot) -> Floats:
    """How much each item (I,) is wanted: its smoothed engagement rate times log(e + its decayed engagements); 0 for an
    item that may not be recalled.

    A rate is smoothed with 20 shows at its author's, which is smoothed alike with its category's, and that with the
    rate of all: what is new counts as what its author made before. An engagement counts half after a week.
    """
    size = _size(snapshot)
    item, time, engaged = (snapshot.interactions[name].to_numpy() for name in ("item", "time", "engaged"))
    recent = 0.5 ** ((snapshot.time - time) / (HALF_LIFE_DAYS * DAY))
    totals = (np.bincount(item, weights, size) for weights in (None, engaged, engaged * recent))
    shows, likes, lately = (total[snapshot.items["item"].to_numpy()] for total in totals)
    rate = np.full(len(snapshot.items), likes.sum() / max(shows.sum(), 1))
    for name in ("category", "author_id"):
        if name in snapshot.items.columns:
            key = snapshot.items[name].to_numpy()
            shown, liked = (np.bincount(key, counts)[key] for counts in (shows, likes))
            rate = np.where(key > 0, (liked + EVIDENCE * rate) / (shown + EVIDENCE), rate)
    rate = (likes + EVIDENCE * rate) / (shows + EVIDENCE)
    values = np.zeros(size, np.float32)
    values[snapshot.items["item"].to_numpy()] = np.maximum(rate * np.log(np.e + lately), np.finfo(np.float32).tiny)
    return values


def freshness(snapshot: Snapshot, half_life_days: float) -> Floats:
    """2^(−age / half-life) of each item (I,): 1 when just published; 0 for an item that may not be recalled or whose
    age is not known."""
    known = snapshot.items.drop_nulls("published")
    age = (snapshot.time - known["published"].to_numpy()) / (half_life_days * DAY)
    values = np.zeros(_size(snapshot), np.float32)
    values[known["item"].to_numpy()] = np.maximum(0.5**age, np.finfo(np.float32).tiny)
    return values


def rarity(snapshot: Snapshot, having: sp.csr_array) -> Floats:
    """log(1 + N / n) of each value (V,) of a matrix (V, I): how much it says of one of the N available items to have a
    value that n of them have."""
    available = np.zeros(having.shape[1], np.float32)
    available[snapshot.items["item"].to_numpy()] = 1.0
    rare: Floats = np.log1p(len(snapshot.items) / np.maximum(having @ available, 1)).astype(np.float32)
    return rare


def strongest(matrix: sp.csr_array, most: int) -> sp.csr_array:
    """The `most` largest positive entries of each row, best first; ties go to the lower column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    order = order[matrix.data[order] > 0]
    counts = np.bincount(row[order], minlength=matrix.shape[0])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[rank < most]
    indptr = np.concatenate([[0], np.cumsum(np.minimum(counts, most))])
    return sp.csr_array((matrix.data[order], matrix.indices[order], indptr), shape=matrix.shape)


def scaled(matrix: sp.csr_array, *, rows: Floats | None = None, columns: Floats | None = None) -> sp.csr_array:
    """The matrix with its rows and columns multiplied."""
    data = matrix.data.copy()
    if rows is not None:
        data *= np.repeat(rows, np.diff(matrix.indptr))
    if columns is not None:
        data *= columns[matrix.indices]
    return sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _size(snapshot: Snapshot) -> int:
    return len(snapshot.store.items["code_item_id"])
