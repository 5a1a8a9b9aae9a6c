"""Nearest by content: the items whose vectors lie next to the mean of what the user took.

It needs nobody's engagement with an item, so that it serves what was published a minute ago; and where users have a
`content` of their own (the same outside model's, say of what they chose at the start) it serves those without history.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.features.store import FeatureStore
from pipeline.recall import index as nearest
from pipeline.recall import index_choice, untaken
from pipeline.recall.neighbours import latest
from pipeline.recall.route import Found, Requests, Route
from pipeline.recall.snapshot import Snapshot

INDEX = "index"
Vectors = npt.NDArray[np.float32]


def fit(snapshot: Snapshot, folder: Path, *, index: str = "auto") -> dict[str, int]:
    """Write the index of the available items' vectors; returns how many have none or one with NaN, which are left out.

    `index` is what `index_choice.make` says."""
    vectors = usable(snapshot.store, "items")
    ids = snapshot.items["item"].to_numpy()
    there = ids[vectors[ids].any(axis=1)] if vectors.shape[1] else ids[:0]
    if missing := len(ids) - len(there):
        logging.getLogger(__name__).warning("%s of %s items have no usable content", missing, len(ids))
    queries = means(Requests.sample(snapshot, index_choice.QUERIES), vectors, usable(snapshot.store, "users"))
    own, asking = (each.reshape(-1, max(1, vectors.shape[1])) for each in (vectors[there], queries))
    (folder / INDEX).mkdir()
    index_choice.make(own, there, index, asking, model="", name=Path(__file__).stem).save(folder / INDEX)
    return {"without_content": missing}


def usable(store: FeatureStore, side: str) -> Vectors:
    """The vectors (N, D) of "users" or "items", zeros for one with NaN; (N, 0) where the table has no content."""
    table = getattr(store, side)
    if "content" not in table:
        return np.zeros((len(table[f"code_{side[:-1]}_id"]), 0), np.float32)
    vectors: Vectors = table["content"]
    if len(broken := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        vectors = vectors.copy()
        vectors[broken] = 0.0
    return vectors


@dataclass(frozen=True)
class Content:
    """The index, and the vectors (I, D) of all items and (U, D) of users, or (U, 0) where they have none."""

    index: nearest.Nearest
    items: Vectors
    users: Vectors

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items nearest by cosine to the mean of the user's last 50, the newest counting 1, the one before 1/√2
        …; or, where these have no vector, to his own vector. Those already taken are left out."""
        return untaken.search(self.index, means(requests, self.items, self.users), requests, k)


def means(requests: Requests, items: Vectors, users: Vectors) -> Vectors:
    """The direction (R, D) of each request's user, of length 1, or zeros where nothing tells it."""
    row, item, back = latest(requests, len(items))
    mean = np.zeros((len(requests), items.shape[1]))
    np.add.at(mean, row, items[item] * (back**-0.5)[:, None])
    if users.shape[1]:
        own = users[np.where(requests.user < len(users), requests.user, 0)]
        mean = np.where(mean.any(axis=1, keepdims=True), mean, own)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    unit: Vectors = (mean / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


def load(folder: Path, store: FeatureStore) -> Route:
    items = usable(store, "items")
    return Content(nearest.load(folder / INDEX, max(1, items.shape[1])), items, usable(store, "users"))
