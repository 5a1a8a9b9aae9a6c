"""Those of whom little is known: users with fewer than 3 engagements before the request, and items published within
the day before it."""

from __future__ import annotations

import polars as pl

from pipeline.recall.snapshot import DAY, Snapshot

FEW = 3


def groups(snapshot: Snapshot, requests: pl.DataFrame, positives: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The positives (request, item) that are `new_users`' and those that are `new_items`.

    Items published after the snapshot, which nothing could have recalled, are no new ones.
    """
    known = snapshot.history.group_by("user").len().filter(pl.col("len") >= FEW)
    newcomers = requests.join(known, on="user", how="anti")
    young = snapshot.items.filter(pl.col("published") >= snapshot.time - DAY)
    return {
        "new_users": positives.join(newcomers, on="request", how="semi", maintain_order="left"),
        "new_items": positives.join(young, on="item", how="semi", maintain_order="left"),
    }
