"""ItemCF and Swing on interactions with a long tail: seconds for the table of every item's hundred nearest."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from pipeline.bench.measure import seconds
from pipeline.recall import item_cf, swing

NEIGHBOURS = 100

Pairs = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


def bench_item_cf(
    interactions: int = 2_000_000, users: int = 100_000, items: int = 20_000, seed: int = 0
) -> dict[str, float]:
    """Against implicit's cosine, where it is installed, and against scipy's product alone, which does not yet choose
    the nearest."""
    user, item = _interactions(interactions, users, items, seed)
    matrix = sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(users, items))
    scaled = matrix @ sp.diags(np.maximum(np.bincount(item, minlength=items), 1) ** -0.5).astype(np.float32)
    columns, every = scaled.T.tocsr(), np.arange(items)

    def ours() -> object:
        return item_cf.similarities(user, item, items, available=every, neighbours=NEIGHBOURS)

    own = seconds(ours)
    rivals = {"scipy": seconds(lambda: columns @ scaled)}
    if find_spec("implicit"):
        from implicit.nearest_neighbours import CosineRecommender

        rival = CosineRecommender(K=NEIGHBOURS, num_threads=torch.get_num_threads())
        with warnings.catch_warnings(action="ignore"):
            rivals["implicit"] = seconds(lambda: rival.fit(matrix, show_progress=False))
    ratios = {f"ratio_to_{name}": taken / own for name, taken in rivals.items()}
    return {"interactions": len(user), "seconds": own, **ratios}


def bench_swing(
    interactions: int = 2_000_000, users: int = 100_000, items: int = 20_000, seed: int = 0
) -> dict[str, float]:
    """No item's users are sampled here."""
    user, item = _interactions(interactions, users, items, seed)
    every, hottest = np.arange(items), int(np.bincount(item).max())

    def ours() -> object:
        return swing.similarities(user, item, items, available=every, neighbours=NEIGHBOURS, most_users=hottest)

    return {"interactions": len(user), "users_of_the_hottest": hottest, "seconds": seconds(ours, runs=1)}


def _interactions(count: int, users: int, items: int, seed: int) -> Pairs:
    """Distinct pairs of users of log-normal activity and items of Zipf-like popularity, sorted."""
    generator = np.random.default_rng(seed)
    activity, popularity = generator.lognormal(size=users), (np.arange(items) + 20.0) ** -0.8
    drawn = max(count, 1) * 6 // 5
    user = generator.choice(users, drawn, p=activity / activity.sum())
    item = generator.choice(items, drawn, p=popularity / popularity.sum())
    pairs = generator.permutation(np.unique(user * items + item))[:count]
    user, item = np.divmod(np.sort(pairs), items)
    return user.astype(np.int32), item.astype(np.int32)
