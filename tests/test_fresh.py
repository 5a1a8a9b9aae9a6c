from __future__ import annotations

from pathlib import Path

import polars as pl
from route_tables import ask

from pipeline.recall import fresh
from pipeline.recall.snapshot import DAY, Snapshot

NOW = 100 * DAY
REQUEST = pl.DataFrame({"request": [4, 7]}, schema={"request": pl.UInt32})


def snapshot(items: dict[int, tuple[float | None, int]], shown: dict[int, tuple[int, int]]) -> Snapshot:
    """`items`: number → (age in days, author); `shown`: number → (shows, engagements)."""
    rows = [(item, place < engaged) for item, (shows, engaged) in shown.items() for place in range(shows)]
    interactions = pl.DataFrame(rows, schema={"item": pl.Int32, "engaged": pl.Boolean}, orient="row")
    columns = [(item, None if age is None else NOW - round(age * DAY), by, 1) for item, (age, by) in items.items()]
    schema = {"item": pl.Int32, "published": pl.Int64, "author_id": pl.Int64, "category": pl.Int64}
    catalogue = pl.DataFrame(columns, schema=schema, orient="row")
    return Snapshot(NOW, interactions, interactions, catalogue, store=None)  # type: ignore[arg-type]


def recalled(taken: Snapshot, folder: Path, k: int = 10) -> list[int]:
    fresh.fit(taken, folder, days=3.0)
    found = ask(fresh, folder, taken, REQUEST, k)
    first, second = (found.filter(pl.col("request") == request).drop("request") for request in (4, 7))
    assert first.equals(second)
    assert first["rank"].to_list() == list(range(1, len(first) + 1))
    return first["item"].to_list()


def test_newest_first_then_older_ones_by_quality(tmp_path: Path) -> None:
    items = {1: (2.0, 0), 2: (1.0, 0), 3: (9.0, 0), 4: (8.0, 0), 5: (None, 0), 6: (1.0, 0)}
    taken = snapshot(items, {3: (20, 15), 4: (20, 5)})
    assert recalled(taken, tmp_path) == [2, 6, 1, 3, 5]
    assert recalled(taken, tmp_path, k=2) == [2, 6]


def test_quality_is_that_of_the_narrowest_group_with_20_shows() -> None:
    items = {1: (1.0, 1), 2: (1.0, 1), 3: (1.0, 2), 4: (1.0, 2), 5: (1.0, 0)}
    taken = snapshot(items, {1: (20, 10), 2: (10, 2), 3: (19, 19)})
    told = dict(fresh.quality(taken).select("item", "quality").iter_rows())
    assert told == {1: 0.5, 2: 12 / 30, 3: 31 / 49, 4: 31 / 49, 5: 31 / 49}


def test_the_worst_quarter_is_left_out(tmp_path: Path) -> None:
    taken = snapshot(dict.fromkeys(range(1, 5), (1.0, 0)), {item: (20, item) for item in range(1, 5)})
    assert recalled(taken, tmp_path) == [4, 3, 2]


def test_nothing_shown_and_nothing_there(tmp_path: Path) -> None:
    assert recalled(snapshot({1: (2.0, 0), 2: (1.0, 0)}, {}), tmp_path) == [2, 1]
    assert recalled(snapshot({}, {}), tmp_path) == []
