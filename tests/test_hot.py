from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from route_tables import ask

from pipeline.recall import hot
from pipeline.recall.snapshot import DAY, Snapshot

NOW = 10 * DAY


def snapshot(rows: list[tuple[int, int, int, bool]], items: list[int], domains: int = 3) -> Snapshot:
    """Rows are (item, domain, days ago, engaged)."""
    schema = {"item": pl.Int32, "domain": pl.Int16, "time": pl.Int64, "engaged": pl.Boolean}
    timed = [(item, domain, NOW - ago * DAY, engaged) for item, domain, ago, engaged in rows]
    interactions = pl.DataFrame(timed, schema=schema, orient="row")
    store = SimpleNamespace(schema=SimpleNamespace(domains=range(domains)))
    available = pl.DataFrame({"item": items}, schema={"item": pl.Int32})
    return Snapshot(NOW, interactions, interactions, available, store)  # type: ignore[arg-type]


def requests(*domains: int) -> pl.DataFrame:
    columns = {"request": range(len(domains)), "user": [1] * len(domains), "domain": domains}
    return pl.DataFrame(columns, schema={"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16})


def test_counts_decay_by_half_lives_within_a_domain_and_others_fill_up(tmp_path: Path) -> None:
    rows = [
        (1, 0, 2, True),
        (1, 0, 2, True),
        (1, 0, 2, True),
        (2, 0, 0, True),
        (3, 0, 0, False),
        (4, 1, 0, True),
        (5, 1, 0, True),
        (9, 1, 0, True),
    ]
    taken = snapshot(rows, [1, 2, 3, 4, 5])
    hot.fit(taken, tmp_path, half_life_days=1.0)
    found = ask(hot, tmp_path, taken, requests(1, 0, 2), 3)
    assert found.rows() == [
        (0, 4, 1, 1.0),
        (0, 5, 2, 1.0),
        (0, 2, 3, 1.0),
        (1, 2, 1, 1.0),
        (1, 1, 2, 0.75),
        (1, 4, 3, 1.0),
        (2, 2, 1, 1.0),
        (2, 4, 2, 1.0),
        (2, 5, 3, 1.0),
    ]


def test_one_request_is_answered_as_among_others(tmp_path: Path) -> None:
    taken = snapshot([(item, item % 2, item, True) for item in range(1, 9)], list(range(1, 9)))
    hot.fit(taken, tmp_path, half_life_days=3.0)
    many = ask(hot, tmp_path, taken, requests(0, 1), 5)
    one = ask(hot, tmp_path, taken, requests(0, 1)[1:], 5)
    assert one.equals(many.filter(pl.col("request") == 1))


@pytest.mark.parametrize("rows", [[], [(1, 0, 0, False)]])
def test_without_an_engagement_nothing_is_hot(tmp_path: Path, rows: list[tuple[int, int, int, bool]]) -> None:
    taken = snapshot(rows, [1])
    hot.fit(taken, tmp_path, half_life_days=1.0)
    assert ask(hot, tmp_path, taken, requests(0), 3).is_empty()
