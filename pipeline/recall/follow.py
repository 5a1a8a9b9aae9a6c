"""R9, follow list: the newest good items of the authors a user follows (a column `follows` of users)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp

from pipeline.recall import hops
from pipeline.recall.attributes import freshness, items_with, scaled, strongest, users_with
from pipeline.recall.fresh import FLOOR, quality
from pipeline.recall.hops import load
from pipeline.recall.snapshot import Snapshot

__all__ = ["fit", "load"]

WIDTH = 1_000


def fit(snapshot: Snapshot, folder: Path, *, per_author: int = 20, half_life_days: float = 7.0) -> None:
    """Write whom every user follows, up to 1,000 of whom are asked, and the `per_author` newest items of every author,
    the worst quarter of the catalogue left out.

    An item's score is 2^(−age / half-life); those of unknown age come last.
    """
    authors, having = items_with(snapshot, "author_id")
    rated = quality(snapshot)
    good = rated.filter(pl.col("quality") >= pl.col("quality").quantile(FLOOR, "higher"))["item"].to_numpy()
    allowed = np.zeros(having.shape[1], bool)
    allowed[good] = True
    newest = np.where(allowed, np.maximum(freshness(snapshot, half_life_days), np.finfo(np.float32).tiny), 0.0)
    hops.save(
        folder,
        of_user=users_with(snapshot, "follows", authors),
        of_item=sp.csr_array((1, len(authors)), dtype=np.float32),
        to_item=strongest(scaled(having, columns=newest.astype(np.float32)), per_author),
        width=WIDTH,
    )
