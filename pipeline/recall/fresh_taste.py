"""Cold start of items: those just published, by how much the user likes their authors and categories.

    score(u, i) = 2^(−age_i / half-life) · Σ_{a in A_i} w_ua · idf_a,    w_ua = Σ_{e taken, a in A_e} idf_a / √b_e

where A_i holds an item's author and category and b_e says how far event e lies back (1 = the newest). Nobody need have
engaged with an item for it to be found.
"""

from __future__ import annotations

from pathlib import Path

import scipy.sparse as sp

from pipeline.recall import hops
from pipeline.recall.attributes import freshness, items_with, rarity, scaled, strongest
from pipeline.recall.hops import load
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]

OLDEST = 0.25


def fit(snapshot: Snapshot, folder: Path, *, half_life_days: float = 2.0, most: int = 200) -> None:
    """Write the author and category of every item, and the `most` newest items of each that are at most two half-lives
    old."""
    having = sp.vstack([items_with(snapshot, name)[1] for name in ("author_id", "category")], format="csr")
    new = freshness(snapshot, half_life_days)
    new[new < OLDEST] = 0.0
    weighted = scaled(having, rows=rarity(snapshot, having))
    nobody = sp.csr_array((1, having.shape[0]), dtype=having.dtype)
    hops.save(
        folder,
        of_user=nobody,
        of_item=weighted.T.tocsr(),
        to_item=strongest(scaled(weighted, columns=new), most),
    )
