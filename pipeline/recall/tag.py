"""R3, tag: the tags of what a user took lately, and the items that bear them.

Tags are weighted as terms are in retrieval (TF-IDF, Salton & Buckley 1988), users and items being the documents:

    score(u, i) = demand(i) · Σ_{t in T_i} w_ut · idf_t / √|T_i|,    w_ut = Σ_{e taken, t in T_e} idf_t / √(b_e |T_e|)

where b_e says how far event e lies back (1 = the newest). Tags in the user's own profile (a column `tags` of users)
count as an event older than all, so that they speak for a user without history.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.recall import hops
from pipeline.recall.attributes import demand, items_with, rarity, scaled, strongest, users_with
from pipeline.recall.hops import load
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]


def fit(snapshot: Snapshot, folder: Path, *, most: int = 200) -> None:
    """Write the tags of every item and of every user's profile, and the `most` best available items of every tag."""
    tags, having = items_with(snapshot, "tags")
    profile = users_with(snapshot, "tags", tags)
    share = (1 / np.sqrt(np.maximum(np.bincount(having.indices, minlength=having.shape[1]), 1))).astype(np.float32)
    own = (1 / np.sqrt(np.maximum(np.diff(profile.indptr), 1))).astype(np.float32)
    rare = rarity(snapshot, having)
    weighted = scaled(having, rows=rare, columns=share)
    hops.save(
        folder,
        of_user=scaled(profile, rows=own, columns=rare),
        of_item=weighted.T.tocsr(),
        to_item=strongest(scaled(weighted, columns=demand(snapshot)), most),
    )
