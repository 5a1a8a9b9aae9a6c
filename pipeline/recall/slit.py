"""SLIT: ridge regression of each event on the user's events before it, in closed form (the transition part of SLIST,
Choi et al., WWW 2021):

    W = (SᵀS + ρ RᵀR + λ)⁻¹ (SᵀY + ρ RᵀY) D_I^−popularity

Row e of S holds the events before event e, those g back with weight g^−decay, row e of R those after it in the same
way, and row e of Y the event itself: ρ (`reverse`) is what histories read backwards count. A history is asked with the
same decay. Differs from the paper in the power law of the decay (exponential there), in its one event as target (there
all later ones), and in R, which does what the paper's other part, a regression of whole histories, does there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipeline.recall.item_matrix import Engagements, inverse, load, power, save, spread, strongest
from pipeline.recall.markov import transitions
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 500,
    recent: int = 50,
    most_taken: int = 20_000,
    ridge: float = 30.0,
    decay: float = 0.7,
    reverse: float = 0.0,
    popularity: float = 0.0,
) -> None:
    """Write each item's `neighbours` largest positive weights to available ones, learnt from the last `recent` events.

    Only the `most_taken` items take part, n at most: 4 n² bytes and about n³ multiplications.
    """
    everything = Engagements.of(snapshot)
    known, part = everything.most_taken(most_taken)
    before = past(known, recent=recent, decay=decay)
    after = past(known.backwards(), recent=recent, decay=decay)
    inverted = inverse(before.T @ before + reverse * (after.T @ after), ridge)
    count = np.bincount(known.item, minlength=known.size)
    follow = transitions(known, skips=recent, skip_decay=decay)
    next_ = sp.csr_array((follow + reverse * follow.T) @ power(count, -popularity))
    weights = strongest(lambda first, end: inverted[first:end] @ next_, known.available, neighbours=neighbours)
    save(spread(weights, part, everything.size), folder, decay=decay, recent=recent)


def past(known: Engagements, *, recent: int, decay: float) -> sp.csr_array:
    """Row e (S, I): the items of the user's last `recent` events before event e, those g back adding g^−decay."""
    events, rows, items, weights = len(known.item), [], [], []
    for gap in range(1, recent + 1):
        row = gap + np.flatnonzero(known.user[gap:] == known.user[:-gap])
        if not len(row):
            break
        rows.append(row)
        items.append(known.item[row - gap])
        weights.append(np.full(len(row), gap**-decay, np.float32))
    if not rows:
        return sp.csr_array((events, known.size), dtype=np.float32)
    place = np.concatenate(rows), np.concatenate(items)
    return sp.csr_array((np.concatenate(weights), place), shape=(events, known.size))
