"""R4, itemCF: items whose users are also the users of what this user took (u2i2i).

Cosine of item columns (Linden, Smith & York, Amazon.com Recommendations, 2003), each common user weighted by the
inverse user frequency of Breese, Heckerman & Kadie (UAI 1998), so that users who take everything say little:

    sim(i, j) = Σ_{u took i and j} w_u / √(|U_i| · |U_j|),   w_u = 1 / log(1 + |I_u|)

or the weighted share of common users among the users of either (Jaccard, 1901): Σ_{u took i and j} w_u / Σ_{u took i
or j} w_u.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from pipeline.features.store import FeatureStore
from pipeline.recall import neighbours as tables
from pipeline.recall.nearest import Integers, Measure, Taken, nearest_items
from pipeline.recall.route import Route
from pipeline.recall.snapshot import Snapshot


def fit(snapshot: Snapshot, folder: Path, *, neighbours: int = 100, measure: Measure = "cosine") -> None:
    """Write the `neighbours` most similar available items of every item that anybody took."""
    users, items = (snapshot.history[name].to_numpy() for name in ("user", "item"))
    available = snapshot.items["item"].to_numpy()
    size = int(max(items.max(initial=0), available.max(initial=0))) + 1
    similar = similarities(users, items, size, available=available, neighbours=neighbours, measure=measure)
    tables.save(similar, folder)


def similarities(
    users: Integers,
    items: Integers,
    size: int,
    *,
    available: Integers,
    neighbours: int,
    measure: Measure = "cosine",
) -> sp.csr_array:
    """The (size, size) matrix whose row i holds the similarity to i of its nearest `available` items, best first.

    `users` and `items` are (N,): who took what; repeated pairs count once. Ties go to the lower item number.
    """
    taken = Taken.of(users, items, size)
    weight = 1 / np.log1p(np.maximum(np.diff(taken.of_user), 1))
    allowed = np.isin(np.arange(size), available)
    return nearest_items(taken, weight=weight, allowed=allowed, neighbours=neighbours, measure=measure)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    return tables.SimilarItems(tables.load(folder))
