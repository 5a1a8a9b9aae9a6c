"""What a route is asked and what it answers: arrays, alike for a million requests of a batch and for one online.

A route is a module with `fit(snapshot, folder, …)`, which writes what it needs to a folder and may return counts of
what it had to do without, and `load(folder, store)`, which opens this as a `Route`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.recall.snapshot import CANDIDATES, Snapshot

NOTHING = -1
KEY_BITS = 63


@dataclass(frozen=True)
class Requests:
    """R requests: who asks, in which domain (-1 = unknown) and when (µs), and what each engaged with before.

    The histories are packed: request r's are `items[offsets[r]:offsets[r + 1]]` with their `times` (µs), oldest first.
    User 0 is unknown and has none.
    """

    user: npt.NDArray[np.int32]
    domain: npt.NDArray[np.int16]
    time: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """The request of each event of the histories (S,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def back(self) -> npt.NDArray[np.int64]:
        """How far each event lies back (S,): 1 is the request's newest."""
        return np.repeat(self.offsets[1:], np.diff(self.offsets)) - np.arange(len(self.items))

    @classmethod
    def of(cls, snapshot: Snapshot, requests: pl.DataFrame) -> Requests:
        """Requests at the snapshot's time from a table with user and domain."""
        users = requests["user"].to_numpy()
        owner = snapshot.history["user"].to_numpy()
        begin, end = np.searchsorted(owner, users), np.searchsorted(owner, users, side="right")
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
        event = np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], end - begin)
        return cls(
            user=users.astype(np.int32),
            domain=requests["domain"].to_numpy().astype(np.int16),
            time=np.full(len(users), snapshot.time),
            items=snapshot.history["item"].to_numpy()[event],
            times=snapshot.history["time"].to_numpy()[event],
            offsets=offsets,
        )

    @classmethod
    def sample(cls, snapshot: Snapshot, most: int, *, domains: int = 1) -> Requests:
        """Requests at the snapshot's time of up to `most` users of the history, at random, the domains in turn."""
        users = np.random.default_rng(0).permutation(snapshot.history["user"].unique(maintain_order=True).to_numpy())
        users = users[:most]
        return cls.of(snapshot, pl.DataFrame({"user": users, "domain": np.arange(len(users)) % domains}))


@dataclass(frozen=True)
class Found:
    """Up to k items for each of R requests, best first: `items` (R, k), where `NOTHING` fills up, and their `scores`
    (R, k)."""

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def frame(self, request: pl.Series) -> pl.DataFrame:
        """As a table of request, item, rank (from 1) and score; `request` holds the requests' numbers."""
        there = self.items != NOTHING
        row, column = np.nonzero(there)
        columns = {"item": self.items[there], "rank": column + 1, "score": self.scores[there]}
        return pl.DataFrame({"request": request.gather(row), **columns}).cast(CANDIDATES)  # type: ignore[arg-type]


def nothing(requests: int) -> Found:
    """That no item was found for these."""
    return Found(np.zeros((requests, 0), np.int32), np.zeros((requests, 0), np.float32))


class Route(Protocol):
    def recall(self, requests: Requests, k: int) -> Found:
        """The best `k` items for each request."""


def same_for_all(items: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], requests: Requests, k: int) -> Found:
    """One list (N,), best first, for every request."""
    shape = (len(requests), min(k, len(items)))
    return Found(np.broadcast_to(items[:k], shape), np.broadcast_to(scores[:k], shape))


def only(found: Found, available: npt.NDArray[np.integer]) -> Found:
    """Of what was found, the items that are still `available` (N,), ascending; the rest of each list moves up."""
    place = np.minimum(np.searchsorted(available, found.items), max(len(available) - 1, 0))
    kept = available[place] == found.items if len(available) else np.zeros(found.items.shape, bool)
    if kept.all():
        return found
    order = np.argsort(~kept, axis=1, kind="stable")
    items, scores = np.where(kept, found.items, NOTHING), np.where(kept, found.scores, np.float32(0))
    return Found(np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1))


def best(
    row: npt.NDArray[np.integer],
    item: npt.NDArray[np.integer],
    score: npt.NDArray[np.floating],
    *,
    requests: int,
    k: int,
) -> Found:
    """The `k` highest of the scored items (N,) of each request; ties, as float32, go to the lower item number."""
    bits = (score.astype(np.float32) + np.float32(0)).view(np.int32)
    ascending = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    order = packed_order(row, ~ascending, item)
    row = row[order]
    counts = np.bincount(row, minlength=requests)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = rank < k
    order, row, rank = order[first], row[first], rank[first]
    shape = (requests, min(k, int(counts.max(initial=0))))
    found = Found(np.full(shape, NOTHING, np.int32), np.zeros(shape, np.float32))
    found.items[row, rank] = item[order]
    found.scores[row, rank] = score[order]
    return found


def packed_order(*columns: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """The order (N,) by several columns of whole numbers, the first counting most: by one key where 63 bits hold it."""
    lowest = [int(column.min(initial=0)) for column in columns]
    bits = [(int(column.max(initial=0)) - low).bit_length() for column, low in zip(columns, lowest, strict=True)]
    if sum(bits) > KEY_BITS:
        return np.lexsort(columns[::-1])
    key = np.zeros(len(columns[0]), np.int64)
    for column, low, width in zip(columns, lowest, bits, strict=True):
        key <<= width
        key |= column.astype(np.int64) - low
    return np.argsort(key)
