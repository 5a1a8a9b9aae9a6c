"""Cold start of users: what is hot among users of the same segment.

    score(i | s, d) = (n_sdi + μ p_di) / (n_sd + μ),    p_di = (n_di + μ p_i) / (n_d + μ),    p_i = n_i / n

where n counts the engagements of segment s in domain d, older ones less: Dirichlet smoothing (Zhai & Lafferty, SIGIR
2001) of a segment's taste with its domain's, and of that with everybody's. Nothing of the user himself is needed but
his profile; who has none is told what is hot in the domain.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, write_json
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import DAY, Snapshot

LONGEST = 1_000
SMOOTHING = 100.0


def fit(snapshot: Snapshot, folder: Path, *, column: str = "segment", half_life_days: float = 3.0) -> None:
    """Write a list of at most 1,000 items for each value of the users' `column` and each domain.

    Raises `InputError` for a column that is not among `features.user`.
    """
    segment = _segments(snapshot.store, column)
    age = (snapshot.time - pl.col("time")) / (half_life_days * DAY)
    engaged = (
        snapshot.interactions.filter("engaged")
        .join(snapshot.items.select("item"), on="item", how="semi")
        .select("user", "domain", "item", weight=(-age * float(np.log(2))).exp())
        .sort("user", "domain", "item", "weight")
    )
    user, domain, item, weight = (engaged[name].to_numpy() for name in ("user", "domain", "item", "weight"))
    size = int(item.max(initial=0)) + 1
    everybody = np.bincount(item, weight, size) / max(weight.sum(), 1.0)
    shape = (
        int(segment.max(initial=0)) + 1,
        len(snapshot.store.schema.domains),
        min(LONGEST, int(np.count_nonzero(everybody))),
    )
    items, scores = np.full(shape, NOTHING, np.int32), np.zeros(shape, np.float32)
    for place in range(shape[1]):
        here = domain == place
        local = smoothed(np.bincount(item[here], weight[here], size), everybody)
        for group in range(shape[0]):
            own = here & (segment[user] == group)
            liked = smoothed(np.bincount(item[own], weight[own], size), local) if group else local
            best = np.argsort(-liked.astype(np.float32), kind="stable")[: shape[2]]
            items[group, place], scores[group, place] = best, liked[best]
    np.save(folder / "items.npy", items)
    np.save(folder / "scores.npy", scores)
    write_json(folder / "segment.json", {"column": column})


def smoothed(counts: npt.NDArray[np.number], prior: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Shares (I,) of what was counted, smoothed with 100 more engagements that fall as the prior shares do."""
    shares: npt.NDArray[np.float64] = (counts + SMOOTHING * prior) / (counts.sum() + SMOOTHING)
    return shares


@dataclass(frozen=True)
class SegmentHot:
    """A list (S, P, L) for each segment and domain, those of segment 0 for users of none; `segment` (U,) is every
    user's."""

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    segment: npt.NDArray[np.integer]

    def recall(self, requests: Requests, k: int) -> Found:
        """The first `k` items of each request's segment and domain; nothing for an unknown domain."""
        known = requests.user < len(self.segment)
        segment = np.where(known, self.segment[np.where(known, requests.user, 0)], 0)
        segment = np.where(segment < len(self.items), segment, 0)
        items = self.items[segment, requests.domain, :k]
        items[requests.domain < 0] = NOTHING
        return Found(items, self.scores[segment, requests.domain, :k])


def load(folder: Path, store: FeatureStore) -> Route:
    items, scores = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("items", "scores"))
    told = json.loads((folder / "segment.json").read_text())
    return SegmentHot(items, scores, _segments(store, told["column"]))


def _segments(store: FeatureStore, column: str) -> npt.NDArray[np.integer]:
    if (key := f"key_{column}") in store.users:
        return store.users[key]
    there = ", ".join(name.removeprefix("key_") for name in store.users if name.startswith("key_")) or "none"
    raise InputError(f"recall.options.segment_hot.column: {column!r} is not in features.user; there are {there}")
