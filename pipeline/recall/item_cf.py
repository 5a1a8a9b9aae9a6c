"""R4, itemCF: items whose users are also the users of what this user took (u2i2i).

Cosine of item columns (Linden, Smith & York, Amazon.com Recommendations, 2003), each common user weighted by the
inverse user frequency of Breese, Heckerman & Kadie (UAI 1998), so that users who take everything say little:

    sim(i, j) = Σ_{u took i and j} 1 / log(1 + |I_u|)  /  √(|U_i| · |U_j|)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch

from pipeline.recall.snapshot import CANDIDATES, Snapshot

BLOCK = 500
RECENT = 50


def fit(snapshot: Snapshot, folder: Path, *, neighbours: int) -> None:
    """Write the `neighbours` most similar available items of every item that anybody took."""
    users, items = (snapshot.history[name].to_numpy() for name in ("user", "item"))
    available = snapshot.items["item"].to_numpy()
    size = int(max(items.max(initial=0), available.max(initial=0))) + 1
    similar = similarities(users, items, size, available=available, neighbours=neighbours)
    sp.save_npz(folder / "item_cf.npz", similar, compressed=False)


def similarities(
    users: np.ndarray, items: np.ndarray, size: int, *, available: np.ndarray, neighbours: int
) -> sp.csr_array:
    """The (size, size) matrix whose row i holds the similarity to i of its nearest `available` items.

    `users` and `items` are (N,): who took what; repeated pairs count once. Exact: blocks of rows of the product are
    computed whole and then cut, ties going to the lower item number.
    """
    taken = _binary(users, items, size)
    per_user = taken.sum(axis=1)
    weight = np.divide(1.0, np.log1p(per_user), out=np.zeros(len(per_user)), where=per_user > 0)
    per_item = taken.sum(axis=0)
    norm = np.divide(1.0, np.sqrt(per_item), out=np.zeros(size), where=per_item > 0)
    columns = (taken @ sp.diags_array(norm)).tocsr()
    allowed = np.zeros(size)
    allowed[available] = 1.0
    right = (sp.diags_array(weight) @ columns @ sp.diags_array(allowed)).tocsr()
    left = columns.T.tocsr()
    kept = min(neighbours, size)
    rows, others, values = [], [], []
    for first in range(0, size, BLOCK):
        block = (left[first : first + BLOCK] @ right).toarray()
        np.fill_diagonal(block[:, first:], 0.0)
        bound = torch.from_numpy(block).topk(kept, sorted=False).values.amin(dim=1, keepdim=True).numpy()
        row, column = np.nonzero((block >= bound) & (block > 0))
        row, column, value, _ = best(row, column, block[row, column], neighbours)
        rows.append(row + first)
        others.append(column)
        values.append(value)
    coordinates = np.concatenate(rows), np.concatenate(others)
    return sp.csr_array((np.concatenate(values).astype(np.float32), coordinates), shape=(size, size))


def recall(folder: Path, snapshot: Snapshot, requests: pl.DataFrame, k: int) -> pl.DataFrame:
    """The `k` items nearest to each user's last 50, those already taken left out: request, item, rank, score.

    An item's score is the sum of its similarities to them, the latest counting 1, the one before 1/√2, then 1/√3 …
    """
    similar = sp.load_npz(folder / "item_cf.npz")
    people = requests.select("user").unique(maintain_order=True).with_row_index("row")
    history = (
        snapshot.history.join(people, on="user", how="inner", maintain_order="left")
        .with_columns(back=pl.int_range(pl.len(), 0, -1).over("row"))
        .filter(pl.col("item") < similar.shape[0])
    )
    latest = history.filter(pl.col("back") <= RECENT).group_by("row", "item", maintain_order=True).agg(pl.min("back"))
    shape = (len(people), similar.shape[0])
    row, item = latest["row"].to_numpy(), latest["item"].to_numpy()
    recent = sp.csr_array((latest["back"].to_numpy() ** -0.5, (row, item)), shape=shape)
    scores = (recent @ similar).tocoo()
    seen = history["row"].to_numpy().astype(np.int64) * shape[1] + history["item"].to_numpy()
    new = ~np.isin(scores.row.astype(np.int64) * shape[1] + scores.col, seen)
    row, item, score, rank = best(scores.row[new], scores.col[new], scores.data[new], k)
    found = pl.DataFrame({"row": row, "item": item, "rank": rank, "score": score}, schema_overrides={"row": pl.UInt32})
    return (
        requests.select("request", "user")
        .join(people, on="user", how="left", maintain_order="left")
        .join(found, on="row", how="inner", maintain_order="left_right")
        .select(*CANDIDATES)
        .cast(CANDIDATES)  # type: ignore[arg-type]
    )


def best(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The `k` largest entries of each row of a sparse matrix, best first, with their ranks from 1.

    Ties go to the lower column.
    """
    entries = pl.DataFrame({"row": row, "column": column, "value": value})
    entries = entries.sort("row", "value", "column", descending=[False, True, False])
    entries = entries.with_columns(rank=pl.int_range(1, pl.len() + 1).over("row")).filter(pl.col("rank") <= k)
    return tuple(entries[name].to_numpy() for name in ("row", "column", "value", "rank"))  # type: ignore[return-value]


def _binary(users: np.ndarray, items: np.ndarray, size: int) -> sp.csr_array:
    count = int(users.max(initial=0)) + 1
    matrix = sp.csr_array((np.ones(len(users)), (users, items)), shape=(count, size))
    matrix.data[:] = 1.0
    return matrix
