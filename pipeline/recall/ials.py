"""iALS: factors of users and items by alternating least squares (Hu et al., ICDM 2008), as in Rendle et al., Revisiting
the Performance of iALS on Item Recommendation Benchmarks, RecSys 2022.

With w_u and h_i the vectors of users and items, U and I their numbers, and n_u, n_i how many events each has:

    Σ_taken (⟨w_u, h_i⟩ − 1)² + α Σ_u,i ⟨w_u, h_i⟩² + λ Σ_u (n_u + αI)^ν ‖w_u‖² + λ Σ_i (n_i + αU)^ν ‖h_i‖²

Each side is solved exactly, the other fixed. In the basis in which α Σ_i h_i h_iᵀ is a diagonal D, a user with fewer
events than there are numbers in a vector takes the inverse of a matrix of his events alone: with H their vectors and
D_u = D + λ (n_u + αI)^ν,

    w_u = (D_u + Hᵀ H)⁻¹ Hᵀ 1 = D_u⁻¹ Hᵀ (1 + H D_u⁻¹ Hᵀ)⁻¹ 1

Only the items' vectors are kept: a user's is solved for when he asks, from the history that the request brings.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError, mapped, write_json
from pipeline.recall import index as nearest
from pipeline.recall import index_choice, untaken
from pipeline.recall.item_matrix import Engagements
from pipeline.recall.neighbours import latest
from pipeline.recall.route import Found, Requests, Route
from pipeline.recall.snapshot import Snapshot

INDEX, VECTORS, DIAGONAL, SETTINGS = "index", "vectors.npy", "diagonal.npy", "ials.json"
PIECES = 64
SPREAD = 0.1

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Penalty:
    """λ (n + `always`)^ν of a row with n events, where `always` = α times the number of rows on the other side."""

    ridge: float
    exponent: float
    always: float

    def __call__(self, events: Integers) -> Floats:
        penalty: Floats = (self.ridge * (events + self.always) ** self.exponent).astype(np.float32)
        return penalty


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    width: int = 256,
    unobserved: float = 0.01,
    ridge: float = 0.003,
    exponent: float = 1.0,
    sweeps: int = 8,
    recent: int = 200,
    index: str = "auto",
) -> None:
    """Write the items' vectors and an index of the available ones, as `index_choice.make` says.

    `unobserved` is α, `ridge` λ and `exponent` ν; of a user who asks, the last `recent` events are read. Raises
    `InputError` where λ or α is not above 0.
    """
    if min(ridge, unobserved) <= 0:
        raise InputError(f"ridge {ridge} and unobserved {unobserved} must be above 0; raise the route's options")
    known = Engagements.of(snapshot)
    taken = known.matrix()
    users, items = taken.tocsr(), taken.T.tocsr()
    of_users = Penalty(ridge, exponent, unobserved * float(np.count_nonzero(np.diff(items.indptr))))
    of_items = Penalty(ridge, exponent, unobserved * float(users.shape[0]))
    vectors = np.random.default_rng(0).normal(scale=SPREAD * width**-0.5, size=(known.size, width)).astype(np.float32)
    vectors[np.diff(items.indptr) == 0] = 0.0
    for _ in range(sweeps):
        vectors, diagonal = turned(vectors, unobserved)
        vectors, diagonal = turned(solved(vectors, diagonal, users.indices, users.indptr, of_users), unobserved)
        vectors = solved(vectors, diagonal, items.indices, items.indptr, of_items)
    vectors, diagonal = turned(vectors, unobserved)
    np.save(folder / VECTORS, vectors)
    np.save(folder / DIAGONAL, diagonal)
    write_json(folder / SETTINGS, {"recent": recent, **vars(of_users)})
    ids = snapshot.items["item"].to_numpy()
    ids = ids[vectors[ids].any(axis=1)]
    asked = users_of(Requests.sample(snapshot, index_choice.QUERIES), vectors, diagonal, of_users, recent)
    (folder / INDEX).mkdir()
    made = index_choice.make(vectors[ids], ids, index, asked, model="", name=Path(__file__).stem)
    made.save(folder / INDEX)


@dataclass(frozen=True)
class Factors:
    """The vectors (I, D) of items, in the basis in which α Σ h hᵀ is `diagonal` (D,), and the index of the available
    ones."""

    index: nearest.Nearest
    vectors: Floats
    diagonal: Floats
    penalty: Penalty
    recent: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items not taken with the highest ⟨w_u, h_i⟩."""
        users = users_of(requests, self.vectors, self.diagonal, self.penalty, self.recent)
        return untaken.search(self.index, users, requests, k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    """Raises `InputError` for an index of another width."""
    vectors, diagonal = mapped(folder / VECTORS), mapped(folder / DIAGONAL)
    settings = json.loads((folder / SETTINGS).read_text())
    recent = settings.pop("recent")
    return Factors(nearest.load(folder / INDEX, len(diagonal)), vectors, diagonal, Penalty(**settings), recent)


def users_of(requests: Requests, vectors: Floats, diagonal: Floats, penalty: Penalty, recent: int) -> Floats:
    """The vectors (R, D) of each request's user, zeros where he took no known item."""
    row, item, _ = latest(requests, len(vectors), recent)
    return solved(vectors, diagonal, item, np.searchsorted(row, np.arange(len(requests) + 1)), penalty)


def turned(vectors: Floats, unobserved: float) -> tuple[Floats, Floats]:
    """The vectors (N, D) in the basis of the eigenvectors of α Σ v vᵀ, and its eigenvalues (D,)."""
    values, basis = np.linalg.eigh(unobserved * (vectors.T @ vectors).astype(np.float64))
    return vectors @ basis.astype(np.float32), np.maximum(values, 0.0).astype(np.float32)


def solved(vectors: Floats, diagonal: Floats, of_row: Integers, offsets: Integers, penalty: Penalty) -> Floats:
    """The least-squares vectors (R, D) of rows whose events are `of_row[offsets[r]:offsets[r + 1]]`, given the other
    side's `vectors` (N, D); as many threads as torch has."""
    rows = len(offsets) - 1
    found = np.zeros((rows, vectors.shape[1]), np.float32)
    penalties = penalty(np.diff(offsets))
    edges = np.linspace(0, rows, min(rows, PIECES) + 1).astype(np.int64)

    def piece(begin: int, end: int) -> None:
        _solve(begin, end, vectors, diagonal, of_row, offsets, penalties, found)

    if rows == 1:
        piece(0, 1)
        return found
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(piece, edges[:-1], edges[1:]))
    return found


@njit(nogil=True, cache=True)
def _solve(begin, end, vectors, diagonal, of_row, offsets, penalties, found):  # type: ignore[no-untyped-def]
    width = vectors.shape[1]
    for row in range(begin, end):
        count = offsets[row + 1] - offsets[row]
        if not count:
            continue
        own = np.empty((count, width), np.float32)
        for place in range(count):
            own[place] = vectors[of_row[offsets[row] + place]]
        base = diagonal + penalties[row]
        if count <= width:
            scaled = own / base
            inner = np.dot(scaled, own.T)
            for place in range(count):
                inner[place, place] += np.float32(1.0)
            found[row] = np.dot(np.linalg.solve(inner, np.ones(count, np.float32)), scaled)
        else:
            normal = np.dot(own.T, own)
            for place in range(width):
                normal[place, place] += base[place]
            found[row] = np.linalg.solve(normal, np.dot(np.ones(count, np.float32), own))
