"""The items nearest to users' vectors, those left out that the users took already."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.recall.index import Floats, Nearest
from pipeline.recall.route import NOTHING, Found, Requests


def search(index: Nearest, vectors: Floats, requests: Requests, k: int) -> Found:
    """The `k` items with the highest products with each request's vector (R, D) that are not in its history; nothing
    for a vector of zeros."""
    asking = np.flatnonzero(vectors.any(axis=1))
    longest = int((requests.offsets[asking + 1] - requests.offsets[asking]).max(initial=0))
    most = min(k + longest, len(index)) if len(asking) else 0
    width = min(k, most)
    found = Found(np.full((len(requests), width), NOTHING, np.int32), np.zeros((len(requests), width), np.float32))
    if most:
        ids, scores = index.search(vectors[asking], most)
        _untaken(asking, ids, scores, requests.offsets, requests.items, found.items, found.scores)
    return found


@njit(nogil=True, cache=True)
def _untaken(asking, ids, scores, offsets, taken, items, kept):  # type: ignore[no-untyped-def]
    for row, request in enumerate(asking):
        count = 0
        for place in range(ids.shape[1]):
            if count == items.shape[1] or ids[row, place] == NOTHING:
                break
            new = True
            for event in range(offsets[request], offsets[request + 1]):
                if taken[event] == ids[row, place]:
                    new = False
                    break
            if new:
                items[request, count], kept[request, count] = ids[row, place], scores[row, place]
                count += 1
