"""The merged candidates of a set of requests, as the rankers read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.features.store import FeatureStore, Rows
from pipeline.parquet import read_parquet


@dataclass(frozen=True)
class Merged:
    """R requests and their N candidates, sorted by request and place in the merge.

    `user`, `domain`, `time`, `fold` and `positives` (how many items the user engaged with in the slice, recalled or
    not) are (R,); `request` in 0 … R-1, `item`, `position` and `positive` are (N,).
    """

    user: np.ndarray
    domain: np.ndarray
    time: np.ndarray
    fold: np.ndarray
    positives: np.ndarray
    request: np.ndarray
    item: np.ndarray
    position: np.ndarray
    positive: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Merged:
        requests = _columns(folder / "requests.parquet")
        merged = _columns(folder / "merged.parquet")
        positives = _columns(folder / "positives.parquet")
        count = len(requests["request"])
        request = merged["request"].astype(np.int64)
        return cls(
            user=requests["user"],
            domain=requests["domain"],
            time=requests["time"],
            fold=requests["fold"],
            positives=np.bincount(positives["request"], minlength=count),
            request=request,
            item=merged["item"],
            position=merged["position"],
            positive=np.isin(_pair(request, merged["item"]), _pair(positives["request"], positives["item"])),
        )

    def __len__(self) -> int:
        return len(self.user)

    def only(self, chosen: np.ndarray) -> Merged:
        """The requests at `chosen`, a mask (R,), numbered anew."""
        number = np.cumsum(chosen) - 1
        of_chosen = chosen[self.request]
        per_request = {name: getattr(self, name)[chosen] for name in ("user", "domain", "time", "fold", "positives")}
        per_candidate = {name: getattr(self, name)[of_chosen] for name in ("item", "position", "positive")}
        return Merged(request=number[self.request[of_chosen]], **per_request, **per_candidate)

    def sample(self, negatives: int, seed: int) -> Merged:
        """Every positive and up to `negatives` other candidates of each request, at random."""
        key = np.where(self.positive, -1.0, np.random.default_rng(seed).random(len(self.item)))
        order = np.lexsort((key, self.request))
        request = self.request[order]
        place = np.arange(len(order)) - np.searchsorted(request, request)
        recalled = np.bincount(self.request[self.positive], minlength=len(self))
        kept = np.sort(order[place < negatives + recalled[request]])
        return replace(
            self, **{name: getattr(self, name)[kept] for name in ("request", "item", "position", "positive")}
        )

    def rows(self, store: FeatureStore) -> Rows:
        """Features of all candidates as of their request's time."""
        return store.rows(self.user[self.request], self.item, self.domain[self.request], self.time[self.request])

    def chunks(self, candidates: int) -> Iterator[Merged]:
        """The requests in order, in pieces of about so many candidates, so that a piece's features fit in memory."""
        piece = np.searchsorted(self.request, np.arange(len(self))) // candidates
        for number in np.unique(piece):
            yield self.only(piece == number)


def _columns(path: Path) -> dict[str, np.ndarray]:
    table = read_parquet(path)
    return {name: np.array(table[name]) for name in table.column_names}


def _pair(request: np.ndarray, item: np.ndarray) -> np.ndarray:
    return request.astype(np.int64) << 32 | item.astype(np.int64)
