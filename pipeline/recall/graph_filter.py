"""Graph filter: what is smooth on the graph of users and items, sharpened (GF-CF, Shen et al., CIKM 2021; blurring and
sharpening, BSPM, Choi et al., SIGIR 2023).

With X the matrix of who took what and D_U and D_I its degrees,

    P = D_I^−½ Xᵀ D_U^−users X D_I^−½ / (its largest eigenvalue)
    W = D_I^(½−history) (P − sharpen·P²) D_I^(½−popularity)

P is the linear filter of GF-CF, with exponents of its own for each degree (LinkProp, Fu et al., WSDM 2022). The second
term is BSPM's sharpening in one Euler step of length `sharpen`: it takes back what spreads furthest, most of all along
P's first eigenvector, the popularity D_I^½, which a smaller exponent `popularity` returns.

W is never made, nor cut to each item's nearest. P is walked when a user asks, from his items to those who took them and
on to theirs. Of P², whose eigenvalues fall off as squares, the `rank` leading ones are kept. It only takes back, never
gives: so it is computed where P is not 0, and of what even without it would be among the best.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit
from scipy.sparse.linalg import svds

from pipeline.features.store import FeatureStore
from pipeline.lake import mapped, write_json
from pipeline.recall import neighbours
from pipeline.recall.item_matrix import Engagements, power
from pipeline.recall.nearest import hold, unpacked
from pipeline.recall.neighbours import Table, empty_table, latest, slot_of
from pipeline.recall.route import NOTHING, Found, Requests, Route
from pipeline.recall.snapshot import Snapshot

USERS, ITEMS = "users", "items"
BEFORE, AFTER, SHARPENER, SETTINGS = "before.npy", "after.npy", "sharpener.npy", "settings.json"
TOLERANCE = 1e-3

Floats = npt.NDArray[np.float32]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    recent: int = 200,
    users: float = 0.7,
    history: float = 0.5,
    popularity: float = 0.1,
    sharpen: float = 0.9,
    rank: int = 128,
) -> None:
    """Write the normalised matrix both ways round and its leading singular vectors; all of a user's last `recent`
    events count alike."""
    known = Engagements.of(snapshot)
    taken = known.matrix()
    per_item = taken.sum(axis=0)
    by_user = sp.csr_array(power(taken.sum(axis=1), -users / 2) @ taken @ power(per_item, -0.5))
    values, vectors = leading(by_user, max(rank, 1))
    largest = np.float32(values.max(initial=0.0) or 1.0)
    by_user /= largest
    for name, table in ((USERS, by_user), (ITEMS, sp.csr_array(by_user.T))):
        (folder / name).mkdir()
        neighbours.save(table, folder / name)
    np.save(folder / BEFORE, power(per_item, 0.5 - history).diagonal())
    np.save(folder / AFTER, power(per_item, 0.5 - popularity).diagonal() * known.available)
    np.save(folder / SHARPENER, vectors[:, :rank] * (values[:rank] / largest) ** 2 * np.float32(sharpen**0.5))
    write_json(folder / SETTINGS, {"recent": recent})


def leading(matrix: sp.csr_array, rank: int) -> tuple[Floats, Floats]:
    """The up to `rank` largest singular values (R,) of a matrix (U, I), in descending order, and the right vectors
    (I, R)."""
    if min(matrix.shape) <= rank:
        _, values, vectors = np.linalg.svd(matrix.toarray(), full_matrices=False)
    else:
        start = np.ones(min(matrix.shape), np.float32)
        _, values, vectors = svds(matrix, k=rank, v0=start, tol=TOLERANCE, return_singular_vectors="vh")
    order = np.argsort(-values, kind="stable")
    return values[order].astype(np.float32), vectors[order].T.astype(np.float32)


@dataclass(frozen=True)
class GraphFilter:
    """Who took what, normalised, from `users` to items and from `items` to users; √P² (I, R) of the items, times the
    root of `sharpen`; and the powers (I,) of their degrees."""

    users: Table
    items: Table
    sharpener: Floats
    before: Floats
    after: Floats
    recent: int

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` highest scores above 0 of each request."""
        row, item, _ = latest(requests, len(self.items), self.recent)
        keys = np.zeros((len(requests), max(k, 1)), np.int64)
        if len(row):
            _walk(
                *(np.searchsorted(row, np.arange(len(requests) + 1)), item, requests.offsets, requests.items),
                *(self.items.data, self.items.indices, self.items.indptr),
                *(self.users.data, self.users.indices, self.users.indptr),
                *(self.sharpener, self.before, self.after, keys),
            )
        keys.sort(axis=1)
        scores, items = unpacked(keys[:, ::-1][:, :k])
        return Found(np.where(scores > 0, items, np.int32(NOTHING)), scores)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _walk(  # type: ignore[no-untyped-def]
    begins, history, offsets, taken, to_user, users, of_item, to_item, items, of_user, sharpener, before, after, keys
):
    size, rank = sharpener.shape
    spread = np.empty(rank, np.float32)
    for request in range(len(keys)):
        spread[:] = 0.0
        most = 0
        for way in range(begins[request], begins[request + 1]):
            own = history[way]
            for number in range(rank):
                spread[number] += before[own] * sharpener[own, number]
            most += of_item[own + 1] - of_item[own]
        person, bits = empty_table(min(most, len(of_user) - 1))
        reached, asked, people = np.zeros(len(person)), np.empty(len(person), np.int64), 0
        most = 0
        for way in range(begins[request], begins[request + 1]):
            own = history[way]
            for at in range(of_item[own], of_item[own + 1]):
                user = users[at]
                slot = slot_of(person, bits, user)
                if person[slot] == NOTHING:
                    person[slot], asked[people] = user, slot
                    people += 1
                    most += of_user[user + 1] - of_user[user]
                reached[slot] += before[own] * to_user[at]
        owner, bits = empty_table(min(most, size))
        blurred, met, count = np.zeros(len(owner)), np.empty(len(owner), np.int64), 0
        for number in range(people):
            user, weight = person[asked[number]], reached[asked[number]]
            for at in range(of_user[user], of_user[user + 1]):
                slot = slot_of(owner, bits, items[at])
                if owner[slot] == NOTHING:
                    owner[slot], met[count] = items[at], slot
                    count += 1
                blurred[slot] += weight * to_item[at]
        for event in range(offsets[request], offsets[request + 1]):
            blurred[slot_of(owner, bits, taken[event])] = 0.0
        for number in range(count):
            item, value = owner[met[number]], blurred[met[number]]
            highest = np.float32(value * after[item])
            if highest > 0.0 and np.int64(highest.view(np.int32)) >= keys[request, 0] >> 32:
                back = np.float32(0.0)
                for place in range(rank):
                    back += spread[place] * sharpener[item, place]
                hold(keys[request], (value - max(back, np.float32(0.0))) * after[item], item)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    sharpener, before, after = (mapped(folder / name) for name in (SHARPENER, BEFORE, AFTER))
    recent = json.loads((folder / SETTINGS).read_text())["recent"]
    users, items = (neighbours.load(folder / name) for name in (USERS, ITEMS))
    return GraphFilter(users, items, sharpener, before, after, recent)
