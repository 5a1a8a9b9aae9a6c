"""Re-ranking one request's list so that its items differ: MMR and a determinantal point process, both chosen greedily.

An item's worth is (1 − weight) · its score, scaled, and `weight` · how new its content is beside the items above it.
To MMR that is its distance from the nearest of them (Carbonell & Goldstein, "The use of MMR", SIGIR 1998), to the
process what all of them together leave of it (Chen, Zhang & Zhou, "Fast Greedy MAP Inference for Determinantal Point
Process to Improve Recommendation Diversity", NeurIPS 2018).

Scores are scaled to [0, 1] within the list, (s − least) / (greatest − least), all to 0 where all are the same. Ties go
to the better score, then to the item that is first in the list; a `weight` of 0 is the order of the scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]

SAME = 1e-6


def mmr(scores: Floats, vectors: Floats, k: int, *, weight: float) -> Integers:
    """Maximal marginal relevance: the next item has the highest (1 − w) · s_i − w · max_{j above} cos(i, j).

    `scores` (N,) are finite; `vectors` (N, D) have length 1, or 0 where an item has no content: it is at a right angle
    to all others. Returns the places of the min(k, N) items in the list given, in their new order.
    """
    order, worth, content = _ranked(scores, vectors, weight)
    nearest = np.full(len(order), -1.0)
    chosen = np.empty(min(k, len(order)), np.int64)
    for place in range(len(chosen)):
        item = (worth - weight * nearest).argmax()
        chosen[place], worth[item] = item, -np.inf
        np.maximum(nearest, content @ content[item], out=nearest)
    return order[chosen]


def dpp(scores: Floats, vectors: Floats, k: int, *, weight: float) -> Integers:
    """Greedy search for the k items that are likeliest together: those of the largest det L, L_ij = q_i S_ij q_j.

    S_ij = (1 + cos(i, j)) / 2, S_ii = 1 and q_i = exp(α s_i), α = θ / (2 (1 − θ)), where the paper's θ is 1 − `weight`.
    So log det L is Σ θ s_i + (1 − θ) log det S, over 1 − θ, and the next item has the highest θ s_i + (1 − θ) log d_i²:
    d_i² is what its row of the Cholesky factor of S leaves of S_ii, kept for all items as rows are added (Algorithm 1).

    An item of d² < 1e-6 depends on those above it, as one with the content of another does; it counts as if d² were
    1e-6. Since the rank of S is at most D + 1 where all have content, items after so many come in the order of scores.

    Arguments and result are those of `mmr`. Takes O(k N (D + k)).
    """
    order, worth, content = _ranked(scores, vectors, weight)
    halves = np.hstack([content, np.ones((len(order), 1))]) / np.sqrt(2)
    left = np.ones(len(order))
    chosen = np.empty(min(k, len(order)), np.int64)
    factor, rank = np.empty((len(chosen), len(order))), 0
    for place in range(len(chosen)):
        item = (worth + weight * np.log(np.maximum(left, SAME))).argmax()
        chosen[place], worth[item] = item, -np.inf
        if left[item] > SAME:
            explained = factor[:rank, item] @ factor[:rank]
            factor[rank] = (halves @ halves[item] - explained) / np.sqrt(left[item])
            left -= factor[rank] ** 2
            rank += 1
    return order[chosen]


RERANKERS = {"mmr": mmr, "dpp": dpp}


def _ranked(
    scores: Floats, vectors: Floats, weight: float
) -> tuple[Integers, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The places in the order of the scores and, in that order, what scores are worth (N,) and the vectors (N, D)."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    above = ranked - ranked[-1:]
    scaled = np.divide(above, above[:1], out=np.zeros_like(above), where=above[:1] > 0)
    return order, (1 - weight) * scaled, vectors[order].astype(np.float64)
