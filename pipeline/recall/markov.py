"""Markov: what follows an item in users' histories, skipped events counting less (first order, Rendle, Freudenthaler &
Schmidt-Thieme, WWW 2010, with counts in place of factors):

    W_ij = Σ_{i then j, g events apart} g^−skip_decay  /  (|E_i|^out · |E_j|^popularity)

|E_i| counts the events of item i. Recent events of the asking user count more (`decay`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipeline.recall.item_matrix import Engagements, load, power, save, strongest
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load", "transitions"]


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 300,
    recent: int = 50,
    decay: float = 0.7,
    skips: int = 20,
    skip_decay: float = 0.5,
    out: float = 0.5,
    popularity: float = 0.2,
) -> None:
    """Write each item's `neighbours` likeliest available followers, up to `skips` events later."""
    known = Engagements.of(snapshot)
    follow = transitions(known, skips=skips, skip_decay=skip_decay)
    count = np.bincount(known.item, minlength=known.size)
    weights = sp.csr_array(power(count, -out) @ follow @ power(count, -popularity))
    kept = strongest(lambda first, end: weights[first:end].toarray(), known.available, neighbours=neighbours)
    save(kept, folder, decay=decay, recent=recent)


def transitions(known: Engagements, *, skips: int, skip_decay: float) -> sp.csr_array:
    """Entry (i, j) of (I, I): over all users and pairs of their events i before j, at most `skips` apart, the sum of
    gap^−skip_decay."""
    total = sp.csr_array((known.size, known.size), dtype=np.float32)
    for gap in range(1, skips + 1):
        same = known.user[gap:] == known.user[:-gap]
        if not same.any():
            break
        steps = known.item[:-gap][same], known.item[gap:][same]
        weight = np.full(len(steps[0]), gap**-skip_decay, np.float32)
        total = total + sp.csr_array((weight, steps), shape=total.shape)
    return total
