"""Graph filter: low-pass filters on the graph of users and items (GF-CF, Shen et al., CIKM 2021).

With X the matrix of who took what, D_U and D_I its degrees,

    W = D_I^−history Xᵀ D_U^−users X D_I^−popularity  +  low_pass · V Vᵀ D_I^(½−popularity)

The first part is the linear filter, with an exponent of its own for each degree (generalised as in LinkProp, Fu et al.,
WSDM 2022; all ½ but D_U^−1 is GF-CF's). The second is the ideal filter, V the first `rank` right singular vectors of
D_U^−½ X D_I^−½; it is scaled so that both parts have equal mean, then by `low_pass`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from pipeline.recall.item_matrix import Engagements, load, power, save, strongest
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load", "smooth"]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 500,
    recent: int = 200,
    users: float = 0.7,
    history: float = 0.5,
    popularity: float = 0.3,
    low_pass: float = 0.1,
    rank: int = 128,
) -> None:
    """Write each item's `neighbours` strongest available ones; all of a user's last `recent` events count alike."""
    known = Engagements.of(snapshot)
    taken = known.matrix()
    per_user, per_item = taken.sum(axis=1), taken.sum(axis=0)
    left = sp.csr_array(power(per_item, -history) @ taken.T @ power(per_user, -users))
    right = sp.csr_array(taken @ power(per_item, -popularity))
    vectors = smooth(sp.csr_array(power(per_user, -0.5) @ taken @ power(per_item, -0.5)), rank if low_pass else 0)
    ideal = vectors.T * power(per_item, 0.5 - popularity).diagonal()
    linear_mean = float(left.sum(axis=0) @ right.sum(axis=1))
    ideal_mean = float(vectors.sum(axis=0) @ ideal.sum(axis=1))
    share = low_pass * linear_mean / ideal_mean if ideal_mean > 0 else 0.0

    def rows(first: int, end: int) -> npt.NDArray[np.float32]:
        dense: npt.NDArray[np.float32] = (left[first:end] @ right).toarray()
        dense += vectors[first:end] @ (np.float32(share) * ideal)
        return dense

    save(strongest(rows, known.available, neighbours=neighbours), folder, decay=0.0, recent=recent)


def smooth(matrix: sp.csr_array, rank: int) -> npt.NDArray[np.float32]:
    """The first `rank` right singular vectors of (U, I), as columns (I, ≤ rank): its smoothest signals on items."""
    rank = min(rank, *(side - 1 for side in matrix.shape))
    if rank < 1 or not matrix.nnz:
        return np.zeros((matrix.shape[1], 0), np.float32)
    start = np.random.default_rng(0).standard_normal(min(matrix.shape)).astype(np.float32)
    found: npt.NDArray[np.float32] = svds(matrix, k=rank, v0=start, return_singular_vectors="vh")[2].T
    return found
