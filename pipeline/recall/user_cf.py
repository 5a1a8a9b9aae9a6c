"""R5, userCF: what users of like taste took (u2u2i).

Cosine of user rows (GroupLens: Resnick et al., CSCW 1994; on implicit feedback), each common item weighted by the
inverse user frequency of Breese, Heckerman & Kadie (UAI 1998), so that items which everybody takes say little:

    sim(u, v) = Σ_{i in I_u and I_v} w_i / √(|I_u| · |I_v|),   w_i = 1 / log(1 + |U_i|)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from pipeline.features.store import FeatureStore
from pipeline.recall import neighbours as tables
from pipeline.recall.nearest import Integers, Taken, nearest_items
from pipeline.recall.neighbours import RECENT, Table
from pipeline.recall.route import Found, Requests, Route
from pipeline.recall.snapshot import Snapshot


def fit(snapshot: Snapshot, folder: Path, *, neighbours: int = 50) -> None:
    """Write the `neighbours` nearest users of every user, and what each took lately: up to 50 available items."""
    pairs = snapshot.history.select("user", "item").unique(keep="last", maintain_order=True)
    latest = pairs.join(snapshot.items.select("item"), on="item", how="semi", maintain_order="left")
    latest = latest.filter(pl.int_range(pl.len(), 0, -1).over("user") <= RECENT)
    users, items = (pairs[name].to_numpy() for name in ("user", "item"))
    similar = similarities(users, items, neighbours=neighbours)
    size = similar.shape[0]
    owner, item = (latest[name].to_numpy() for name in ("user", "item"))
    width = int(item.max(initial=0)) + 1
    for name, table in {
        "users": similar,
        "items": sp.csr_array((np.ones(len(owner), np.float32), (owner, item)), shape=(size, width)),
    }.items():
        (folder / name).mkdir()
        tables.save(table, folder / name)


def similarities(users: Integers, items: Integers, *, neighbours: int) -> sp.csr_array:
    """The (U, U) matrix whose row u holds the similarity to u of its nearest users, best first.

    `users` and `items` are (N,): who took what; repeated pairs count once. Exact; ties go to the lower user number.
    """
    taken = Taken.of(users, items, int(items.max(initial=0)) + 1).turned
    weight = 1 / np.log1p(np.maximum(np.diff(taken.of_user), 1))
    everybody = np.ones(len(taken.of_item) - 1, bool)
    return nearest_items(taken, weight=weight, allowed=everybody, neighbours=neighbours, measure="cosine")


@dataclass(frozen=True)
class UserCF:
    """`similar` holds each user's nearest users, `latest` what each user took lately."""

    similar: Table
    latest: Table

    def recall(self, requests: Requests, k: int) -> Found:
        """The `k` items that the nearest users took, by the sum of their similarities, those already taken left out.

        Who is near was found when the route was fitted: a user who came later is near nobody.
        """
        user = np.minimum(requests.user, len(self.similar) - 1)
        counts = np.where(user == requests.user, self.similar.indptr[user + 1] - self.similar.indptr[user], 0)
        row = np.repeat(np.arange(len(requests)), counts)
        first = self.similar.indptr[user] - (np.cumsum(counts) - counts)
        place = np.arange(len(row)) + first[row]
        near, weight = self.similar.indices[place].astype(np.int64), self.similar.data[place].astype(np.float64)
        return self.latest.follow(requests, row, near, weight, k)


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    return UserCF(tables.load(folder / "users"), tables.load(folder / "items"))
