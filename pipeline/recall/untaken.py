"""The items nearest to users' vectors, those left out that the users took already."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.recall.index import Floats, Nearest
from pipeline.recall.route import NOTHING, Found, Requests


def search(index: Nearest, vectors: Floats, requests: Requests, k: int) -> Found:
    """The `k` items with the highest products with each request's vector (R, D) that are not in its history; nothing
    for a vector of zeros.

    Twice `k` are asked for at first, and again as many more as a history is long by those who are left with fewer.
    """
    width = min(k, len(index))
    found = Found(np.full((len(requests), width), NOTHING, np.int32), np.zeros((len(requests), width), np.float32))
    lengths = np.diff(requests.offsets)
    asking = np.flatnonzero(vectors.any(axis=1)) if width else np.zeros(0, np.int64)
    for ceiling in (2 * k, len(index)):
        if len(asking):
            most = min(k + int(lengths[asking].max()), ceiling, len(index))
            ids, scores = index.search(vectors[asking], most)
            kept = _untaken(asking, ids, scores, requests.offsets, requests.items, found.items, found.scores)
            asking = asking[(kept < k) & (lengths[asking] > most - k)]
    return found


@njit(nogil=True, cache=True)
def _untaken(asking, ids, scores, offsets, taken, items, kept):  # type: ignore[no-untyped-def]
    counts = np.zeros(len(asking), np.int64)
    for row, request in enumerate(asking):
        for place in range(ids.shape[1]):
            count = counts[row]
            if count == items.shape[1] or ids[row, place] == NOTHING:
                break
            new = True
            for event in range(offsets[request], offsets[request + 1]):
                if taken[event] == ids[row, place]:
                    new = False
                    break
            if new:
                items[request, count], kept[request, count] = ids[row, place], scores[row, place]
                counts[row] += 1
    return counts
