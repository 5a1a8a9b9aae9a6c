"""EASE: ridge regression of every item on all others, in closed form (Steck, WWW 2019), on a normalised matrix.

With X̃ = D_U^(−users/2) X D_I^−items, as in Steck's paper where all exponents are 0:

    P = (X̃ᵀ X̃ + λ)⁻¹,    W = D_I^−items · B · D_I^restore,    B_ij = −P_ij / P_jj,    B_jj = 0

Normalising by degrees before the regression is what linear autoencoders lack on sparse data (Park et al., SIGIR 2025).
Where there are fewer users than items the same P comes from the users' side (Woodbury), by (X̃ X̃ᵀ + λ)⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from pipeline.recall.item_matrix import BLOCK, Engagements, inverse, load, power, save, spread, strongest
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]

Rows = Callable[[int, int], npt.NDArray[np.float32]]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 500,
    recent: int = 200,
    most_taken: int = 20_000,
    ridge: float = 10.0,
    users: float = 0.7,
    items: float = 0.25,
    restore: float = 0.1,
) -> None:
    """Write each item's `neighbours` largest positive weights to available ones; all of a user's last `recent` events
    count alike.

    Only the `most_taken` items take part. `ridge` is λ in units of the mean squared length of X̃'s rows. Takes 4 n²
    bytes and about n³ multiplications, n being the smaller of the numbers of these items and of users.
    """
    everything = Engagements.of(snapshot)
    known, part = everything.most_taken(most_taken)
    taken = known.matrix()
    per_item = taken.sum(axis=0)
    scaled = sp.csr_array(power(taken.sum(axis=1), -users / 2) @ taken @ power(per_item, -items))
    explained, left_over = regression(scaled, ridge * float(scaled.data @ scaled.data) / max(1, scaled.shape[0]))
    before, after = power(per_item, -items).diagonal(), power(per_item, restore).diagonal() / left_over

    def rows(first: int, end: int) -> npt.NDArray[np.float32]:
        weights: npt.NDArray[np.float32] = before[first:end, None] * explained(first, end) * after
        return weights

    kept = strongest(rows, known.available, neighbours=neighbours)
    save(spread(kept, part, everything.size), folder, decay=0.0, recent=recent)


def regression(scaled: sp.csr_array, ridge: float) -> tuple[Rows, npt.NDArray[np.float32]]:
    """From X̃ (U, I): 1 − λP, as a function (first, end) that gives its rows (end − first, I), and the diagonal (I,) of
    λP."""
    rows, columns = scaled.shape
    if columns <= rows:
        inverted = inverse(scaled.T @ scaled, ridge)
        inverted *= -ridge
        left_over = -inverted.diagonal()
        inverted[np.diag_indices(columns)] += 1.0
        return (lambda first, end: np.ascontiguousarray(inverted[first:end])), left_over
    between = inverse(scaled @ scaled.T, ridge)
    by_item = sp.csr_array(scaled.T)
    own = [by_item[first : first + BLOCK] for first in range(0, columns, BLOCK)]
    parts = [one.multiply(one @ between).sum(axis=1) for one in own]
    return (lambda first, end: (by_item[first:end] @ between) @ scaled), (1.0 - np.concatenate(parts)).astype(
        np.float32
    )
