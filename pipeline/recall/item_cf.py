"""R4, itemCF: items whose users are also the users of what this user took (u2i2i).

Cosine of item columns (Linden, Smith & York, Amazon.com Recommendations, 2003), each common user weighted by the
inverse user frequency of Breese, Heckerman & Kadie (UAI 1998), so that users who take everything say little:

    sim(i, j) = Σ_{u took i and j} 1 / log(1 + |I_u|)  /  √(|U_i| · |U_j|)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch

from pipeline.features.store import FeatureStore
from pipeline.recall.route import Found, Requests, Route, best
from pipeline.recall.snapshot import Snapshot

BLOCK = 500
RECENT = 50
PARTS = ("data", "indices", "indptr")


def fit(snapshot: Snapshot, folder: Path, *, neighbours: int = 100) -> None:
    """Write the `neighbours` most similar available items of every item that anybody took."""
    users, items = (snapshot.history[name].to_numpy() for name in ("user", "item"))
    available = snapshot.items["item"].to_numpy()
    size = int(max(items.max(initial=0), available.max(initial=0))) + 1
    similar = similarities(users, items, size, available=available, neighbours=neighbours)
    for name in PARTS:
        np.save(folder / f"{name}.npy", getattr(similar, name))


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
        row, column, value = nearest(row, column, block[row, column], neighbours)
        rows.append(row + first)
        others.append(column)
        values.append(value)
    coordinates = np.concatenate(rows), np.concatenate(others)
    return sp.csr_array((np.concatenate(values).astype(np.float32), coordinates), shape=(size, size))


@dataclass(frozen=True)
class ItemCF:
    """Row i of `similar` (I, I) holds what `similarities` found for item i."""

    similar: sp.csr_array

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items nearest to each user's last 50, those already taken left out.

        An item's score is the sum of its similarities to them, the latest counting 1, the one before 1/√2, then 1/√3 …
        """
        size = self.similar.shape[0]
        row, back = requests.row, requests.back
        known = requests.items < size
        taken = row[known] * size + requests.items[known]
        latest = back[known] <= RECENT
        pairs, newest = np.unique(taken[latest][::-1], return_index=True)
        weights = back[known][latest][::-1][newest] ** -0.5
        recent = sp.csr_array((weights, np.divmod(pairs, size)), shape=(len(requests), size))
        scores = (recent @ self.similar).tocoo()
        new = ~np.isin(scores.row.astype(np.int64) * size + scores.col, taken)
        return best(scores.row[new], scores.col[new], scores.data[new], requests=len(requests), k=k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    parts = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in PARTS]
    size = len(parts[2]) - 1
    return ItemCF(sp.csr_array(tuple(parts), shape=(size, size)))


def nearest(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` largest entries of each row of a sparse matrix, best first; ties go to the lower column."""
    entries = pl.DataFrame({"row": row, "column": column, "value": value})
    entries = entries.sort("row", "value", "column", descending=[False, True, False])
    entries = entries.filter(pl.int_range(1, pl.len() + 1).over("row") <= k)
    return tuple(entries[name].to_numpy() for name in entries.columns)  # type: ignore[return-value]


def _binary(users: np.ndarray, items: np.ndarray, size: int) -> sp.csr_array:
    count = int(users.max(initial=0)) + 1
    matrix = sp.csr_array((np.ones(len(users)), (users, items)), shape=(count, size))
    matrix.data[:] = 1.0
    return matrix
