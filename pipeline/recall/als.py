"""ALS: factors of users and items by alternating least squares on what was taken and what was not (Hu, Koren &
Volinsky, ICDM 2008), regularised by frequency (Rendle, Krichene, Zhang & Koren, RecSys 2022):

    Σ_{u took i} (1 − p_u·q_i)² + α Σ_{u, i} (p_u·q_i)² + λ Σ_u (|I_u| + α|I|) |p_u|² + λ Σ_i (|U_i| + α|U|) |q_i|²

α is `unobserved`, λ `ridge`. Each side is solved by a few steps of conjugate gradients from where it was (Takács,
Pilászy & Tikk, RecSys 2011). Who asks is solved for from their history, so that a user who came later is no stranger.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from numba import njit

from pipeline.features.store import FeatureStore
from pipeline.lake import hash_file, write_json
from pipeline.recall import index as nearest
from pipeline.recall import index_choice
from pipeline.recall.item_matrix import Engagements
from pipeline.recall.nearest import PIECES
from pipeline.recall.route import Found, Requests, Route, best
from pipeline.recall.snapshot import Snapshot

ITEMS, SHARED, INDEX, SETTINGS = "items.npy", "shared.npy", "index", "settings.json"
STEPS, STEPS_ALONE = 3, 30
CONVERGED = 1e-12

Floats = npt.NDArray[np.float32]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    dimensions: int = 128,
    sweeps: int = 10,
    unobserved: float = 0.02,
    ridge: float = 0.002,
    seed: int = 0,
    index: str = "auto",
) -> None:
    """Write the items' factors, what they all add to a user's equations, and the index of the available ones, as
    `index_choice.make` says."""
    known = Engagements.of(snapshot)
    items = factors(known.matrix(), dimensions, sweeps=sweeps, unobserved=unobserved, ridge=ridge, seed=seed)
    np.save(folder / ITEMS, items)
    gram = shared(items, unobserved, ridge)
    np.save(folder / SHARED, gram)
    there = np.flatnonzero(known.available)
    queries, _ = asking(Requests.sample(snapshot, index_choice.QUERIES), items, gram, ridge)
    fingerprint = hash_file(folder / ITEMS)
    (folder / INDEX).mkdir()
    index_choice.make(items[there], there, index, queries, model=fingerprint, name="als").save(folder / INDEX)
    write_json(folder / SETTINGS, {"ridge": ridge})


def factors(taken: sp.csr_array, dimensions: int, *, sweeps: int, unobserved: float, ridge: float, seed: int) -> Floats:
    """The items' factors (I, D) after `sweeps` over both sides of the matrix (U, I) of 0 and 1."""
    users = np.zeros((taken.shape[0], dimensions), np.float32)
    items = (
        np.random.default_rng(seed).normal(0, 0.1 / dimensions**0.5, (taken.shape[1], dimensions)).astype(np.float32)
    )
    by_item = sp.csr_array(taken.T)
    for _ in range(sweeps):
        solve(taken, items, shared(items, unobserved, ridge), users, ridge=ridge, steps=STEPS)
        solve(by_item, users, shared(users, unobserved, ridge), items, ridge=ridge, steps=STEPS)
    return items


def shared(other: Floats, unobserved: float, ridge: float) -> Floats:
    """α Σ q qᵀ + α λ N (D, D) of factors (N, D): what is the same in everybody's equations."""
    gram: Floats = np.float32(unobserved) * (other.T @ other)
    gram[np.diag_indices(len(gram))] += np.float32(unobserved * ridge * len(other))
    return gram


def solve(taken: sp.csr_array, other: Floats, gram: Floats, own: Floats, *, ridge: float, steps: int) -> None:
    """Bring `own` (N, D) closer to what fits the factors `other` (M, D) and their `shared` part, in place, by up to
    `steps` of conjugate gradients; row n of `taken` (N, M) says which of them it took. Who took none gets zeros."""
    edges = np.linspace(0, len(own), min(len(own), PIECES) + 1).astype(np.int64)
    arguments = taken.indices, taken.indptr, other, gram, np.float32(ridge), steps, own
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(lambda begin, end: _descend(begin, end, *arguments), edges[:-1], edges[1:]))


@njit(nogil=True, cache=True)
def _descend(begin, end, indices, indptr, other, gram, ridge, steps, own):  # type: ignore[no-untyped-def]
    width = len(gram)
    for row in range(begin, end):
        taken = indices[indptr[row] : indptr[row + 1]]
        factor = own[row]
        if len(taken) == 0:
            factor[:] = 0
            continue
        weight = ridge * np.float32(len(taken))
        left = -np.dot(gram, factor) - weight * factor
        for item in taken:
            error = np.float32(1) - np.dot(other[item], factor)
            for place in range(width):
                left[place] += error * other[item, place]
        way, length = left.copy(), np.dot(left, left)
        for _ in range(steps):
            if length < CONVERGED:
                break
            turned = np.dot(gram, way) + weight * way
            for item in taken:
                share = np.dot(other[item], way)
                for place in range(width):
                    turned[place] += share * other[item, place]
            step = length / np.dot(way, turned)
            factor += step * way
            left -= step * turned
            before, length = length, np.dot(left, left)
            way = left + length / before * way


@dataclass(frozen=True)
class Factors:
    """The items' factors (I, D), what they share (D, D), and the index of those available."""

    items: Floats
    gram: Floats
    index: nearest.Nearest
    ridge: float

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items that each user's factors foresee most, by p_u·q_i above 0, those already taken left out."""
        users, taken = asking(requests, self.items, self.gram, self.ridge)
        longest = int(np.diff(taken.indptr).max(initial=0))
        ids, scores = self.index.search(users, k + longest)
        owner, place = np.nonzero(scores > 0)
        found, score = ids[owner, place], scores[owner, place]
        new = ~np.isin(owner << 32 | found, requests.row << 32 | requests.items)
        return best(owner[new], found[new].astype(np.int32), score[new], requests=len(requests), k=k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    items, gram = (np.load(folder / name, mmap_mode="r") for name in (ITEMS, SHARED))
    ridge = json.loads((folder / SETTINGS).read_text())["ridge"]
    index = nearest.load(folder / INDEX, len(gram), hash_file(folder / ITEMS))
    return Factors(items, np.asarray(gram), index, ridge)


def asking(requests: Requests, items: Floats, gram: Floats, ridge: float) -> tuple[Floats, sp.csr_array]:
    """The factors (R, D) of who asks, solved for from their histories, and these (R, I) with 1 for each item taken."""
    known = requests.items < len(items)
    row, item = requests.row[known], requests.items[known]
    taken = sp.csr_array((np.ones(len(row), np.float32), (row, item)), shape=(len(requests), len(items)))
    users = np.zeros((len(requests), len(gram)), np.float32)
    solve(taken, items, gram, users, ridge=ridge, steps=STEPS_ALONE)
    return users, taken
