from __future__ import annotations

import polars as pl
from route_tables import NOW, engaged

from pipeline.recall import cold_start
from pipeline.recall.snapshot import DAY, Snapshot


def test_who_and_what_is_new() -> None:
    """Users 1 and 2 have two and three events; items 1 to 3 are 2, 1 and 0 days old, 4 is of unknown age, 5 to come."""
    before = engaged([(1, 1), (1, 1), (2, 1), (2, 2), (2, 3)], [1, 2, 3, 4])
    items = before.items.with_columns(published=pl.Series([NOW - 2 * DAY, NOW - DAY, NOW, None]))
    snapshot = Snapshot(NOW, before.interactions, before.history, items, before.store)
    requests = pl.DataFrame({"request": [0, 1, 2], "user": [1, 2, 0]}, schema_overrides={"user": pl.Int32})
    rows = [(0, 1), (0, 5), (1, 2), (1, 3), (1, 4), (2, 3)]
    positives = pl.DataFrame(rows, schema={"request": pl.Int64, "item": pl.Int32}, orient="row")
    found = cold_start.groups(snapshot, requests, positives)
    assert found["new_users"].rows() == [(0, 1), (0, 5), (2, 3)]
    assert found["new_items"].rows() == [(1, 2), (1, 3), (2, 3)]
