"""Two hops over a table of neighbours: from what a request begins with, such as items its user took, to items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pipeline.recall.route import NOTHING, Found, Requests, best, packed_order

RECENT = 50
AT_ONCE = 1 << 20
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
        are taken in the order of the ways, so that a request is answered alike alone and in company.
        """
        counts = self.indptr[middle + 1] - self.indptr[middle]
        cuts = np.searchsorted(np.cumsum(counts), np.arange(AT_ONCE, counts.sum(), AT_ONCE))
        cuts = np.searchsorted(row, row[cuts])
        found = Found(np.full((len(requests), k), NOTHING, np.int32), np.zeros((len(requests), k), np.float32))
        for begin, end in zip([0, *cuts], [*cuts, len(row)], strict=True):
            if begin == end:
                continue
            part, first, last = slice(begin, end), int(row[begin]), int(row[end - 1]) + 1
            owner, item, score = self._sums(row[part] - first, middle[part], weight[part], counts[part])
            new = ~_taken(requests, first, last, owner, item)
            some = best(owner[new], item[new], score[new], requests=last - first, k=k)
            found.items[first:last, : some.items.shape[1]] = some.items
            found.scores[first:last, : some.items.shape[1]] = some.scores
        return found

    def _sums(
        self,
        row: npt.NDArray[np.int64],
        middle: npt.NDArray[np.int64],
        weight: npt.NDArray[np.floating],
        counts: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        begins = np.cumsum(counts) - counts
        way = np.repeat(np.arange(len(row)), counts)
        place = np.arange(len(way)) + (self.indptr[middle] - begins)[way]
        owner, item = row[way], self.indices[place]
        order = packed_order(owner, item, way)
        owner, item, value = owner[order], item[order], (self.data[place] * weight[way])[order]
        heads = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(item, prepend=-1) != 0))
        return owner[heads], item[heads], np.add.reduceat(value, heads) if len(heads) else value


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


def latest(requests: Requests, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What each request's user took in his last 50 events, of the items below `size`, each once: request, item, and how
    far its newest event lies back (1 = the newest of all), by request and newest first."""
    chosen = (requests.back <= RECENT) & (requests.items < size)
    pairs = requests.row[chosen] * size + requests.items[chosen]
    pairs, newest = np.unique(pairs[::-1], return_index=True)
    back = requests.back[chosen][::-1][newest]
    row, item = np.divmod(pairs, size)
    order = packed_order(row, back)
    return row[order], item[order], back[order]


def save(table: sp.csr_array, folder: Path) -> None:
    """Write a table whose row i is a row's neighbours."""
    for name, kind in zip(PARTS, (np.float32, np.int32, np.int64), strict=True):
        np.save(folder / f"{name}.npy", getattr(table, name).astype(kind))


def load(folder: Path) -> Table:
    """Map a table into memory, as plain arrays: each slice of a `np.memmap` costs more than what is done with it."""
    return Table(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in PARTS))


def _taken(
    requests: Requests, first: int, last: int, row: npt.NDArray[np.int64], item: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """Which pairs (N,) of a request, counted from `first`, and an item are in the request's own history."""
    offsets = requests.offsets[first : last + 1]
    owner = np.repeat(np.arange(last - first), np.diff(offsets))
    history = requests.items[offsets[0] : offsets[-1]]
    return np.isin(row << 32 | item, owner << 32 | history)
