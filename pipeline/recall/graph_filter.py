"""Graph filter: what is smooth on the graph of users and items, sharpened (GF-CF, Shen et al., CIKM 2021; blurring and
sharpening, BSPM, Choi et al., SIGIR 2023).

With X the matrix of who took what and D_U and D_I its degrees,

    P = D_I^−½ Xᵀ D_U^−users X D_I^−½ / (its largest eigenvalue)
    W = D_I^(½−history) (P − sharpen·P²) D_I^(½−popularity)

P is the linear filter of GF-CF, with exponents of its own for each degree (LinkProp, Fu et al., WSDM 2022). The second
term is BSPM's sharpening in one Euler step of length `sharpen`: it takes back what spreads furthest, most of all along
P's first eigenvector, the popularity D_I^½, which a smaller exponent `popularity` returns. As it only takes back, P² is
computed where P is not 0 and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numba import njit
from scipy.sparse.linalg import svds

from pipeline.recall.item_matrix import Engagements, load, power, save
from pipeline.recall.nearest import hold, in_pieces
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 500,
    recent: int = 200,
    users: float = 0.7,
    history: float = 0.5,
    popularity: float = 0.1,
    sharpen: float = 0.9,
) -> None:
    """Write each item's `neighbours` strongest available ones; all of a user's last `recent` events count alike."""
    known = Engagements.of(snapshot)
    taken = known.matrix()
    per_user, per_item = taken.sum(axis=1), taken.sum(axis=0)
    by_user = sp.csr_array(power(per_user, -users / 2) @ taken @ power(per_item, -0.5))
    by_user *= np.float32(1 / largest(by_user))
    by_item = sp.csr_array(by_user.T)
    weights = in_pieces(
        _sharpened,
        known.size,
        neighbours,
        *(by_item.data, by_item.indices, by_item.indptr),
        *(by_user.data, by_user.indices, by_user.indptr),
        power(per_item, 0.5 - history).diagonal(),
        power(per_item, 0.5 - popularity).diagonal() * known.available,
        sharpen,
    )
    save(weights, folder, decay=0.0, recent=recent)


@njit(nogil=True, cache=True)
def _sharpened(begin, end, data, users, of_item, by_user, items, of_user, before, after, sharpen, keys):  # type: ignore[no-untyped-def]
    blurred, met = np.zeros(len(of_item) - 1), np.empty(len(of_item), np.int32)
    reached = np.empty(len(of_user) - 1)
    for row in range(begin, end):
        count = 0
        for at in range(of_item[row], of_item[row + 1]):
            user = users[at]
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                met[count] = item
                count += blurred[item] == 0.0
                blurred[item] += data[at] * by_user[place]
        reached[:] = 0.0
        for item in met[:count]:
            for at in range(of_item[item], of_item[item + 1]):
                reached[users[at]] += blurred[item] * data[at]
        for item in met[:count]:
            again = 0.0
            for at in range(of_item[item], of_item[item + 1]):
                again += reached[users[at]] * data[at]
            if item != row:
                hold(keys[row], (blurred[item] - sharpen * again) * before[row] * after[item], item)
        for item in met[:count]:
            blurred[item] = 0.0


def largest(matrix: sp.csr_array) -> float:
    """The largest singular value of (U, I), none of whose entries is negative; 1 where all are 0."""
    if not matrix.nnz:
        return 1.0
    if min(matrix.shape) == 1:
        return float(np.linalg.norm(matrix.data))
    return float(svds(matrix, k=1, v0=np.ones(min(matrix.shape), np.float32), return_singular_vectors=False)[0])
