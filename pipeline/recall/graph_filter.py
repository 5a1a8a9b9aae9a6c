"""Graph filter: what is smooth on the graph of users and items, sharpened (GF-CF, Shen et al., CIKM 2021; blurring and
sharpening, BSPM, Choi et al., SIGIR 2023).

With X the matrix of who took what and D_U and D_I its degrees,

    P = D_I^−½ Xᵀ D_U^−users X D_I^−½ / (its largest eigenvalue),    W = D_I^(½−history) (P − sharpen·P²) D_I^(½−popularity)

P is the linear filter of GF-CF, with exponents of its own for each degree (LinkProp, Fu et al., WSDM 2022). The second
term is BSPM's sharpening in one Euler step of length `sharpen`: it takes back what spreads furthest, most of all along
P's first eigenvector, the popularity D_I^½, which a smaller exponent `popularity` returns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from pipeline.recall.item_matrix import Engagements, load, power, save, strongest
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
    before, after = power(per_item, 0.5 - history).diagonal(), power(per_item, 0.5 - popularity).diagonal()

    def rows(first: int, end: int) -> npt.NDArray[np.float32]:
        blurred = by_item[first:end] @ by_user
        dense = blurred.toarray()
        if sharpen:
            dense -= np.float32(sharpen) * ((blurred @ by_item).toarray() @ by_user)
        dense *= before[first:end, None]
        dense *= after
        return dense

    save(strongest(rows, known.available, neighbours=neighbours), folder, decay=0.0, recent=recent)


def largest(matrix: sp.csr_array) -> float:
    """The largest singular value of (U, I), none of whose entries is negative; 1 where all are 0."""
    if not matrix.nnz:
        return 1.0
    if min(matrix.shape) == 1:
        return float(np.linalg.norm(matrix.data))
    return float(svds(matrix, k=1, v0=np.ones(min(matrix.shape), np.float32), return_singular_vectors=False)[0])
