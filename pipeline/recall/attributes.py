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
    age = (snapshot.time - pl.col("time")) / (HALF_LIFE_DAYS * DAY)
    lately = pl.when("engaged").then((-age * float(np.log(2))).exp()).otherwise(0.0)
    shown = snapshot.interactions.group_by("item").agg(
        shows=pl.len(), engaged=pl.col("engaged").sum(), lately=lately.sum()
    )
    items = snapshot.items.join(shown, on="item", how="left", maintain_order="left").with_columns(
        pl.col("shows", "engaged", "lately").fill_null(0)
    )
    rate = pl.col("engaged").sum() / pl.max_horizontal(pl.col("shows").sum(), 1)
    for group in ("category", "author_id"):
        if group in items.columns:
            counted = [pl.when(pl.col(group) > 0).then(pl.col(name)).sum().over(group) for name in ("engaged", "shows")]
            rate = (counted[0] + EVIDENCE * rate) / (counted[1] + EVIDENCE)
    rate = (pl.col("engaged") + EVIDENCE * rate) / (pl.col("shows") + EVIDENCE)
    wanted = items.select("item", wanted=rate * (float(np.e) + pl.col("lately")).log())
    size = Indexes.open(snapshot.store.folder).items.num_rows
    values = np.zeros(size, np.float32)
    values[wanted["item"].to_numpy()] = np.maximum(wanted["wanted"].to_numpy(), np.finfo(np.float32).tiny)
    return values


def freshness(snapshot: Snapshot, half_life_days: float) -> Floats:
    """2^(−age / half-life) of each item (I,): 1 when just published; 0 for an item that may not be recalled or whose
    age is not known."""
    known = snapshot.items.drop_nulls("published")
    age = (snapshot.time - known["published"].to_numpy()) / (half_life_days * DAY)
    size = Indexes.open(snapshot.store.folder).items.num_rows
    values = np.zeros(size, np.float32)
    values[known["item"].to_numpy()] = np.maximum(0.5**age, np.finfo(np.float32).tiny)
    return values


def rarity(matrix: sp.csr_array) -> Floats:
    """log(1 + I / n) of each row (V,) of a matrix (V, I): how little it says of an item to have a value that n have."""
    rare: Floats = np.log1p(matrix.shape[1] / np.maximum(np.diff(matrix.indptr), 1)).astype(np.float32)
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
