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
from numba import njit
from scipy.linalg import lapack

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, mapped, write_json
from pipeline.recall.nearest import hold, unpacked
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import Snapshot

BLOCK = 500
LARGEST = 46_000
PARTS = ("data", "indices", "indptr")
SETTINGS = "settings.json"
SPOKE, MET = 1, 2


@dataclass(frozen=True)
class ItemMatrix:
    """Row i of the (I, I) weights, in compressed rows, holds what item i speaks for; of a history the last `recent`
    events are read."""

    data: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    decay: float
    recent: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` highest scores above 0 of each request."""
        keys = np.zeros((len(requests), max(k, 1)), np.int64)
        _sum_and_hold(
            requests.items, requests.offsets, self.recent, self.decay, self.data, self.indices, self.indptr, keys
        )
        keys.sort(axis=1)
        scores, items = unpacked(keys[:, ::-1][:, : min(k, int((keys > 0).sum(axis=1).max(initial=0)))])
        return Found(np.where(scores > 0, items, np.int32(NOTHING)), scores)


@njit(nogil=True, cache=True)
def _sum_and_hold(history, offsets, recent, decay, data, indices, indptr, keys):  # type: ignore[no-untyped-def]
    size = len(indptr) - 1
    score, met, state = np.zeros(size), np.empty(size, np.int32), np.zeros(size, np.int8)
    for request in range(len(keys)):
        begin, end = offsets[request], offsets[request + 1]
        count = 0
        for at in range(end - 1, begin - 1, -1):
            source = history[at]
            if source >= size or state[source] & SPOKE:
                continue
            state[source] |= SPOKE
            if end - at > recent:
                continue
            weight = np.float64(end - at) ** -decay
            for entry in range(indptr[source], indptr[source + 1]):
                item = indices[entry]
                if not state[item] & MET:
                    state[item] |= MET
                    met[count] = item
                    count += 1
                score[item] += weight * data[entry]
        for place in range(count):
            item = met[place]
            if not state[item] & SPOKE:
                hold(keys[request], score[item], item)
            score[item] = 0.0
            state[item] &= SPOKE
        for at in range(begin, end):
            if history[at] < size:
                state[history[at]] = 0


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    data, indices, indptr = (mapped(folder / f"{name}.npy") for name in PARTS)
    settings = json.loads((folder / SETTINGS).read_text())
    return ItemMatrix(data, indices, indptr, settings["decay"], settings["recent"])


def save(weights: sp.csr_array, folder: Path, *, decay: float, recent: int) -> None:
    """Write the weights (I, I) and how a history is read, for `load`."""
    for name, kind in zip(PARTS, (np.float32, np.int32, np.int64), strict=True):
        np.save(folder / f"{name}.npy", getattr(weights, name).astype(kind))
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
