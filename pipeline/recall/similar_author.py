"""R10, similar author: authors whose users are also the users of the authors a user likes, then their items.

Authors are alike as items are in itemCF: by the cosine over their users, each weighted by his inverse frequency. An
author is nearest to himself, so the items of the authors that a user likes come as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipeline.recall import hops, item_cf
from pipeline.recall.attributes import demand, items_with, scaled, strongest
from pipeline.recall.hops import load
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]


def fit(snapshot: Snapshot, folder: Path, *, neighbours: int = 20, per_author: int = 50) -> None:
    """Write the author of every item, his `neighbours` nearest authors, and everyone's `per_author` best items."""
    authors, having = items_with(snapshot, "author_id")
    by_item = having.T.tocsr()
    users, items = (snapshot.history[name].to_numpy() for name in ("user", "item"))
    events = by_item[items]
    owner = np.repeat(users, np.diff(events.indptr))
    size = len(authors)
    everyone = np.arange(size)
    similar = item_cf.similarities(owner, events.indices, size, available=everyone, neighbours=neighbours)
    hops.save(
        folder,
        of_user=sp.csr_array((1, size), dtype=np.float32),
        of_item=by_item,
        between=[sp.csr_array(similar + sp.eye_array(size, dtype=np.float32, format="csr"))],
        to_item=strongest(scaled(having, columns=demand(snapshot)), per_author),
    )
