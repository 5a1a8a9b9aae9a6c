"""R6, Swing: items which users took together who have little else in common (u2i2i).

Yang et al., Large Scale Product Graph Construction for Recommendation in E-commerce (2020), section 3.1. Two users who
both took i and j are a swing between them:

    sim(i, j) = Σ_{u, v took i and j} w_u · w_v / (α + |I_u ∩ I_v|),   w_u = |I_u|^-damping

over pairs u < v, so that a small circle of people who take the same things says little.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numba import njit

from pipeline.features.store import FeatureStore
from pipeline.recall import neighbours as tables
from pipeline.recall.exposure import pair_keys
from pipeline.recall.nearest import Integers, Taken, hold, in_pieces
from pipeline.recall.route import Route, packed_order
from pipeline.recall.snapshot import Snapshot


def fit(
    snapshot: Snapshot,
    folder: Path,
    *,
    neighbours: int = 100,
    alpha: float = 1.0,
    damping: float = 0.5,
    most_users: int = 5_000,
) -> None:
    """Write the `neighbours` most similar available items of every item that anybody took."""
    users, items = (snapshot.history[name].to_numpy() for name in ("user", "item"))
    available = snapshot.items["item"].to_numpy()
    size = int(max(items.max(initial=0), available.max(initial=0))) + 1
    options = {"alpha": alpha, "damping": damping, "most_users": most_users}
    tables.save(similarities(users, items, size, available=available, neighbours=neighbours, **options), folder)  # type: ignore[arg-type]


def similarities(
    users: Integers,
    items: Integers,
    size: int,
    *,
    available: Integers,
    neighbours: int,
    alpha: float = 1.0,
    damping: float = 0.5,
    most_users: int = 5_000,
) -> sp.csr_array:
    """The (size, size) matrix whose row i holds the similarity to i of its nearest `available` items, best first.

    `users` and `items` are (N,): who took what; repeated pairs count once. Exact for items with up to `most_users`
    users. In the row of one with more, the pairs of so many, chosen by a hash, stand for all pairs; this bounds the
    memory of a row by what these took, and its time by their pairs.
    """
    taken = Taken.of(users, items, size)
    counts = np.diff(taken.of_item).astype(np.int64)
    some = np.minimum(counts, most_users)
    scale = np.maximum(counts * (counts - 1), 1) / np.maximum(some * (some - 1), 1)
    owner = np.repeat(np.arange(size), counts)
    hot = counts[owner] > most_users
    sampled = np.ones(len(owner), bool)
    if hot.any():
        places = np.flatnonzero(hot)
        draw = pair_keys(taken.users[hot], owner[hot]) >> np.uint64(32)
        places = places[packed_order(owner[hot], draw.astype(np.int64))]
        begins = np.searchsorted(owner[places], owner[places])
        sampled[places[np.arange(len(places)) - begins >= most_users]] = False
    of_item = np.concatenate([[0], np.cumsum(some)])
    activity = np.diff(taken.of_user)
    weight = np.maximum(activity, 1.0) ** -damping
    share = 1 / (alpha + np.arange(int(activity.max(initial=0)) + 1))
    allowed = np.isin(np.arange(size), available)
    return in_pieces(
        _swing,
        size,
        neighbours,
        taken.users[sampled],
        of_item,
        taken.items,
        taken.of_user,
        weight,
        share,
        scale,
        allowed,
    )


def load(folder: Path, store: FeatureStore) -> Route:  # noqa: ARG001
    return tables.SimilarItems(tables.load(folder))


@njit(nogil=True, cache=True)
def _swing(begin, end, users, of_item, items, of_user, weight, share, scale, allowed, keys):  # type: ignore[no-untyped-def]
    """For each row, who of its users took each item (`members`, from `start` to `stop` of the item), and then for each
    of its users how many items all later ones share with that user, before these pairs are counted for every item."""
    size = len(of_item) - 1
    score = np.zeros(size)
    start, stop = np.zeros(size, np.int64), np.zeros(size, np.int64)
    met = np.empty(size + 1, np.int32)
    for row in range(begin, end):
        crowd = users[of_item[row] : of_item[row + 1]]
        count, total = 0, 0
        for user in crowd:
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                met[count] = item
                count += stop[item] == 0
                stop[item] += 1
        for place in range(count):
            item = met[place]
            start[item] = total
            total += stop[item]
            stop[item] = start[item]
        members = np.empty(total, np.int32)
        common = np.ones(len(crowd), np.int32)
        for number in range(len(crowd)):
            user = crowd[number]
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                members[stop[item]] = number
                stop[item] += 1
        for number in range(len(crowd)):
            user = crowd[number]
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                start[item] += 1
                if item != row:
                    for member in range(start[item], stop[item]):
                        common[members[member]] += 1
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                if item != row:
                    swings = 0.0
                    for member in range(start[item], stop[item]):
                        other = members[member]
                        swings += weight[crowd[other]] * share[common[other]]
                    score[item] += weight[user] * swings
            for place in range(of_user[user], of_user[user + 1]):
                item = items[place]
                if item != row:
                    for member in range(start[item], stop[item]):
                        common[members[member]] = 1
        heap = keys[row]
        for place in range(count):
            item = met[place]
            if allowed[item]:
                hold(heap, score[item] * scale[row], item)
            score[item] = 0.0
            stop[item] = 0
