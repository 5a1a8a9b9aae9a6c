"""Two hops over a table of neighbours: from what a request begins with, such as items its user took, to items.

The sums of a request are kept in a small table by hashes, compiled by Numba: there is no array as long as the
catalogue, and nothing is sorted but what is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit

from pipeline.lake import mapped
from pipeline.recall.nearest import LAST, replace_worst
from pipeline.recall.route import NOTHING, Found, Requests

RECENT = 50
LEAST = np.iinfo(np.int64).min
PARTS = ("data", "indices", "indptr")


@dataclass(frozen=True)
class Table:
    """Row i's neighbours are `indices[indptr[i]:indptr[i + 1]]`, with their weights in `data`."""

    data: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def follow(
        self,
        requests: Requests,
        row: npt.NDArray[np.int64],
        middle: npt.NDArray[np.int64],
        weight: npt.NDArray[np.floating],
        k: int,
    ) -> Found:
        """The `k` items with the highest sums of `weight` times the table's own over all ways there, those already
        taken left out.

        Way p (P,) begins at request `row[p]`, in ascending order, and goes through the table's row `middle[p]`. Sums
        are taken in the order of the ways, so that a request is answered alike alone and in company; ties, as float32,
        go to the lower item number.
        """
        found = Found(np.full((len(requests), k), NOTHING, np.int32), np.zeros((len(requests), k), np.float32))
        begins = np.searchsorted(row, np.arange(len(requests) + 1))
        weights = np.asarray(weight, np.float64)
        parts = (self.data, self.indices, self.indptr)
        _follow(begins, middle, weights, *parts, requests.offsets, requests.items, found.items, found.scores)
        return found


@dataclass(frozen=True)
class SimilarItems:
    """Items near those a user took (u2i2i): row i of `table` holds what is similar to item i."""

    table: Table

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items nearest to each user's last 50, those already taken left out.

        An item's score is the sum of its similarities to them, the latest counting 1, the one before 1/√2, then 1/√3 …
        """
        row, item, back = latest(requests, len(self.table))
        return self.table.follow(requests, row, item, back**-0.5, k)


def latest(
    requests: Requests, size: int, recent: int = RECENT
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What each request's user took in his last `recent` events, of the items below `size`, each once: request, item,
    and how far its newest event lies back (1 = the newest of all), by request and newest first."""
    row, item, back = np.empty((3, min(len(requests) * recent, len(requests.items))), np.int64)
    count = _latest(requests.offsets, requests.items, size, recent, row, item, back)
    return row[:count], item[:count], back[:count]


def save(table: sp.csr_array, folder: Path) -> None:
    """Write a table whose row i is a row's neighbours."""
    for name, kind in zip(PARTS, (np.float32, np.int32, np.int64), strict=True):
        np.save(folder / f"{name}.npy", getattr(table, name).astype(kind))


def load(folder: Path) -> Table:
    return Table(*(mapped(folder / f"{name}.npy") for name in PARTS))


@njit(nogil=True, cache=True)
def _latest(offsets, items, size, recent, row, item, back):  # type: ignore[no-untyped-def]
    count = 0
    for request in range(len(offsets) - 1):
        first, end = count, offsets[request + 1]
        for event in range(end - 1, max(offsets[request], end - recent) - 1, -1):
            known = items[event] >= size
            for place in range(first, count):
                known |= item[place] == items[event]
            if not known:
                row[count], item[count], back[count] = request, items[event], end - event
                count += 1
    return count


@njit(nogil=True, cache=True)
def _follow(begins, middle, weight, data, indices, indptr, offsets, taken, items, scores):  # type: ignore[no-untyped-def]
    heap = np.empty(items.shape[1], np.int64)
    for request in range(len(items)):
        most = offsets[request + 1] - offsets[request]
        for way in range(begins[request], begins[request + 1]):
            most += indptr[middle[way] + 1] - indptr[middle[way]]
        owner, bits = empty_table(most)
        total = np.zeros(len(owner))
        for place in range(offsets[request], offsets[request + 1]):
            slot = slot_of(owner, bits, taken[place])
            owner[slot], total[slot] = taken[place], -np.inf
        met, count = np.empty(most, np.int64), 0
        for way in range(begins[request], begins[request + 1]):
            for place in range(indptr[middle[way]], indptr[middle[way] + 1]):
                slot = slot_of(owner, bits, indices[place])
                if owner[slot] == NOTHING:
                    owner[slot] = indices[place]
                    met[count] = slot
                    count += 1
                total[slot] += data[place] * weight[way]
        heap[:] = LEAST
        for number in range(count):
            key = _key(total[met[number]], owner[met[number]])
            if len(heap) and key > heap[0]:
                replace_worst(heap, key)
        best = np.sort(heap)[::-1]
        for rank in range(len(best)):
            if best[rank] == LEAST:
                break
            items[request, rank] = LAST - (best[rank] & LAST)
            scores[request, rank] = total[slot_of(owner, bits, items[request, rank])]


@njit(nogil=True, cache=True)
def empty_table(most):  # type: ignore[no-untyped-def]
    """A table by hashes (`slot_of`) with room for so many items, at most half full, and the bits of its size."""
    bits = 4
    while (1 << bits) < 2 * most:
        bits += 1
    return np.full(1 << bits, NOTHING, np.int32), bits


@njit(nogil=True, cache=True, inline="always")
def slot_of(owner, bits, item):  # type: ignore[no-untyped-def]
    """Where the item is in the table by hashes, or the free place for it (Fibonacci hashing, linear probing)."""
    slot = ((np.uint64(item) * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)) >> np.uint64(32 - bits)
    place = np.int64(slot)
    while owner[place] != NOTHING and owner[place] != item:
        place = (place + 1) & (len(owner) - 1)
    return place


@njit(nogil=True, cache=True, inline="always")
def _key(value, column):  # type: ignore[no-untyped-def]
    """One integer that orders as the value, as float32, and then against the column."""
    bits = np.float32(value + 0.0).view(np.int32)
    ascending = np.int64(bits ^ np.int32(0x7FFFFFFF)) if bits < 0 else np.int64(bits)
    return ascending << 32 | np.int64(LAST - column)
