"""C3: does the coarse ranker cut what the fine ranker would have kept?"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.stats import kendalltau

from pipeline.evaluation.replay import Replay

TOPS = (20, 50)


def consistency_curve(replay: Replay, shown: pl.DataFrame) -> pl.DataFrame:
    """For growing k, up to the whole merge and with `keep` among them, means over the requests.

    `fine_20` and `fine_50`: share of the fine ranker's first 20 and 50 (of all merged) inside the coarse first k.
    `ish`: share of the request's held-out positives there, of its own domain; `ash` (ASH@k, Zhang et al. 2023): of the
    positives of all domains of its user; `chance`: what a random order would keep.
    `shown` has user and item of every positive impression of the test slice, in whatever domain.
    """
    ranked = replay.ranked.select("row", "item", "coarse_rank", "fine_rank")
    count = len(replay)
    row, coarse = ranked["row"].to_numpy().astype(np.int64), ranked["coarse_rank"].to_numpy()
    fine = ranked["fine_rank"].to_numpy()
    everywhere = replay.requests.select("row", "user").join(shown.unique(), on="user")
    everywhere = everywhere.join(ranked.select("row", "item", "coarse_rank"), on=["row", "item"], how="left")
    target = everywhere["row"].to_numpy().astype(np.int64)
    place = everywhere["coarse_rank"].cast(pl.Float64).fill_null(np.inf).to_numpy()
    wanted = np.bincount(target, minlength=count)
    merged = np.bincount(row, minlength=count)

    def mean_share(part: np.ndarray, whole: np.ndarray) -> float:
        return float(np.mean(part[whole > 0] / whole[whole > 0])) if whole.any() else float("nan")

    table = []
    for k in _lengths(replay.keep, int(coarse.max(initial=1))):
        inside = coarse <= k
        tops = {
            f"fine_{n}": mean_share(
                np.bincount(row[inside & (fine <= n)], minlength=count), np.bincount(row[fine <= n], minlength=count)
            )
            for n in TOPS
        }
        ash = mean_share(np.bincount(target[place <= k], minlength=count), wanted)
        ish = float(replay.recall("coarse", k).mean())
        chance = mean_share(np.minimum(merged, k), merged)
        table.append({"k": k, **tops, "ish": ish, "ash": ash, "chance": chance})
    return pl.DataFrame(table)


def order_agreement(replay: Replay) -> float:
    """Kendall's τ between the coarse and the fine order of the merge, mean over requests of two candidates or more."""
    ranked = replay.ranked.select("row", "coarse_rank", "fine_rank")
    row = ranked["row"].to_numpy()
    edges = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])[: len(row)]
    coarse = np.split(ranked["coarse_rank"].to_numpy(), edges[1:])
    fine = np.split(ranked["fine_rank"].to_numpy(), edges[1:])
    values = [kendalltau(a, b).statistic for a, b in zip(coarse, fine, strict=True) if len(a) > 1]
    return float(np.mean(values)) if values else float("nan")


def _lengths(keep: int, longest: int) -> list[int]:
    """About twelve cut-offs from 10 (or `keep`) to the whole merge, `keep` and the tops among them."""
    grid = np.geomspace(min(10, longest, keep), longest, 12).round().astype(int)
    return sorted({*grid.tolist(), *(k for k in (*TOPS, keep) if k < longest)})
