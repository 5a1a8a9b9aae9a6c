"""What linear item-to-item routes share: a sparse matrix of weights between items, kept on disk and asked by history.

    score(j) = Σ_{i taken} weight(i) · W_ij,    weight(i) = b_i ^ −decay

where b_i says how far i's newest event lies back (1 = the newest of all). What was taken already is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch
from scipy.linalg import lapack

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, write_json
from pipeline.recall import neighbours
from pipeline.recall.neighbours import Table, latest
from pipeline.recall.route import Found, Requests, Route
from pipeline.recall.snapshot import Snapshot

BLOCK = 500
LARGEST = 46_000
SETTINGS = "settings.json"


@dataclass(frozen=True)
class ItemMatrix:
    """Row i of the weights (I, I), none of them below 0, holds what item i speaks for; of a history the last `recent`
    events are read."""

    weights: Table
    decay: float
    recent: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` highest scores of each request."""
        row, item, back = latest(requests, len(self.weights), self.recent)
        return self.weights.follow(requests, row, item, back**-self.decay, k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    settings = json.loads((folder / SETTINGS).read_text())
    return ItemMatrix(neighbours.load(folder), settings["decay"], settings["recent"])


def save(weights: sp.csr_array, folder: Path, *, decay: float, recent: int) -> None:
    """Write the weights (I, I) and how a history is read, for `load`."""
    neighbours.save(weights, folder)
    write_json(folder / SETTINGS, {"decay": decay, "recent": recent})


@dataclass(frozen=True)
class Engagements:
    """A snapshot's history as arrays (S,), by user and oldest first, in a catalogue of `size` item numbers of which
    the `available` (size,) may be recalled."""

    user: npt.NDArray[np.int64]
    item: npt.NDArray[np.int64]
    available: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        return len(self.available)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Engagements:
        """Users are numbered from 0 in order of their own numbers."""
        history = snapshot.history.select("user", "item").with_columns(pl.col("user").rle_id())
        item, there = history["item"].to_numpy(), snapshot.items["item"].to_numpy()
        available = np.zeros(int(max(item.max(initial=0), there.max(initial=0))) + 1, bool)
        available[there] = True
        return cls(history["user"].to_numpy().astype(np.int64), item.astype(np.int64), available)

    def most_taken(self, count: int) -> tuple[Engagements, npt.NDArray[np.int64]]:
        """Only the events of the `count` items with the most, renumbered, and these items' own numbers (ascending)."""
        events = np.bincount(self.item, minlength=self.size)
        part = np.sort(np.argsort(-events, kind="stable")[: min(count, np.count_nonzero(events))])
        place = np.full(self.size, -1)
        place[part] = np.arange(len(part))
        kept = place[self.item] >= 0
        return Engagements(self.user[kept], place[self.item[kept]], self.available[part]), part

    def backwards(self) -> Engagements:
        """The same, newest first, by user still."""
        return Engagements(self.user[::-1], self.item[::-1], self.available)

    def matrix(self) -> sp.csr_array:
        """Who took what, once each: (users, size) of 0 and 1."""
        users = int(self.user.max(initial=-1)) + 1
        taken = sp.csr_array((np.ones(len(self.user), np.float32), (self.user, self.item)), shape=(users, self.size))
        taken.data[:] = 1.0
        return taken


def inverse(gram: sp.csr_array, ridge: float) -> npt.NDArray[np.float32]:
    """(gram + ridge)⁻¹ of a sparse symmetric matrix without negative eigenvalues (n, n), dense, by Cholesky in place.

    Raises `InputError` where 32-bit LAPACK cannot hold it, or `ridge` is too small for it to be invertible.
    """
    size = gram.shape[0]
    if ridge < 0 or (ridge == 0 and size):
        raise InputError(f"ridge {ridge} is not above 0; raise the route's option ridge")
    if size > LARGEST:
        raise InputError(
            f"a dense inverse of {size} × {size} is too large; set the route's option most_taken ≤ {LARGEST}"
        )
    dense = np.asfortranarray(gram.toarray(), dtype=np.float32)
    dense[np.diag_indices(size)] += ridge
    dense, failed = lapack.spotrf(dense, lower=1, overwrite_a=1)
    if failed:
        raise InputError(f"a matrix of {size} × {size} is not invertible; raise the route's option ridge")
    dense, _ = lapack.spotri(dense, lower=1, overwrite_c=1)
    for first in range(0, size, BLOCK):
        end = min(first + BLOCK, size)
        dense[first:end, end:] = dense[end:, first:end].T
        corner = np.tril(dense[first:end, first:end])
        dense[first:end, first:end] = corner + np.tril(corner, -1).T
    inverted: npt.NDArray[np.float32] = dense
    return inverted


def spread(weights: sp.csr_array, part: npt.NDArray[np.int64], size: int) -> sp.csr_array:
    """Weights between the items `part` (N,), ascending, as a matrix (size, size)."""
    counts = np.zeros(size, np.int64)
    counts[part] = np.diff(weights.indptr)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return sp.csr_array((weights.data, part[weights.indices], indptr), shape=(size, size))


def power(counts: npt.NDArray[Any], exponent: float) -> sp.dia_array:
    """The diagonal matrix of counts^exponent, 0 where the count is 0."""
    there = counts > 0
    values = np.zeros(len(counts), np.float32)
    values[there] = np.asarray(counts)[there].astype(np.float64) ** exponent
    return sp.diags_array(values)


def strongest(
    rows: Callable[[int, int], npt.NDArray[np.float32]], available: npt.NDArray[np.bool_], *, neighbours: int
) -> sp.csr_array:
    """The matrix (I, I) with the `neighbours` largest positive weights of each row between different items, towards
    `available` (I,) ones.

    `rows(first, end)` gives dense rows (end - first, I) of the whole matrix, which this may overwrite. Ties go to the
    lower item number.
    """
    size = len(available)
    counts, columns, values = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for first in range(0, size, BLOCK):
        block = rows(first, min(first + BLOCK, size))
        block[:, ~available] = 0.0
        np.fill_diagonal(block[:, first:], 0.0)
        top = torch.from_numpy(block).topk(min(neighbours, size), sorted=False).values
        bound = top.amin(dim=1, keepdim=True).clamp(min=0.0).numpy()
        kept, ties = block > bound, (block == bound) & (bound > 0)
        room = neighbours - kept.sum(axis=1, keepdims=True)
        kept |= ties & (np.cumsum(ties, axis=1, dtype=np.int32) <= room)
        counts.append(kept.sum(axis=1))
        columns.append(np.nonzero(kept)[1].astype(np.int32))
        values.append(block[kept])
    indptr = np.cumsum(np.concatenate(counts))
    return sp.csr_array((np.concatenate(values), np.concatenate(columns), indptr), shape=(size, size))
