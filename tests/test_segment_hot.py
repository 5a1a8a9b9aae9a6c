from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from route_tables import NOW, SHOWN, alone_as_in_company, ask, described, same_bytes

from pipeline.lake import InputError
from pipeline.recall import segment_hot
from pipeline.recall.snapshot import DAY, Snapshot

USERS = {"segment": ["s", "s", "t", None]}
ITEMS = {"category": ["a"] * 4}


def world(folder: Path, engaged: list[tuple[int, int, int]]) -> Snapshot:
    """From (user, item, domain), all just engaged with."""
    taken = described(folder, USERS, ITEMS)
    rows = [(user, item, domain, NOW, True) for user, item, domain in engaged]
    return replace(taken, interactions=pl.DataFrame(rows, schema=SHOWN, orient="row"))


def lists(folder: Path, taken: Snapshot, asked: list[tuple[int, int]], k: int = 10) -> list[list[tuple[int, float]]]:
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}
    requests = pl.DataFrame([(n, *one) for n, one in enumerate(asked)], schema=schema, orient="row")
    found = ask(segment_hot, folder, taken, requests, k)
    return [found.filter(request=number).select("item", "score").rows() for number in range(len(asked))]


def test_shares_on_paper(tmp_path: Path) -> None:
    """Of all 400 engagements item 2 has ¾, item 1 ¼; in domain 0, segment s has taken item 1 a hundred times."""
    taken = world(tmp_path, [(1, 1, 0)] * 100 + [(3, 2, 0)] * 200 + [(3, 2, 1)] * 100)
    segment_hot.fit(taken, tmp_path)
    local = {1: (100 + 25) / 400, 2: (200 + 75) / 400}
    own = {1: (100 + 100 * local[1]) / 200, 2: 100 * local[2] / 200}
    there = lists(tmp_path, taken, [(1, 0), (4, 0), (0, 0), (99, 0), (2, 1)])
    assert there[0] == [(1, pytest.approx(own[1])), (2, pytest.approx(own[2]))]
    assert there[1] == there[2] == there[3] == [(2, pytest.approx(local[2])), (1, pytest.approx(local[1]))]
    assert [item for item, _ in there[4]] == [2, 1]


def test_older_engagement_counts_less_and_gone_items_not(tmp_path: Path) -> None:
    rows = [(1, 1, 0, NOW - 6 * DAY, True)] * 3 + [(1, 2, 0, NOW, True), (1, 3, 0, NOW, False), (1, 9, 0, NOW, True)]
    taken = replace(described(tmp_path, USERS, ITEMS), interactions=pl.DataFrame(rows, schema=SHOWN, orient="row"))
    segment_hot.fit(taken, tmp_path, half_life_days=3.0)
    assert [item for item, _ in lists(tmp_path, taken, [(1, 0)])[0]] == [2, 1]


def test_an_unknown_domain_and_an_empty_log(tmp_path: Path) -> None:
    taken = world(tmp_path, [(1, 1, 0)])
    segment_hot.fit(taken, tmp_path)
    assert lists(tmp_path, taken, [(1, -1)]) == [[]]
    segment_hot.fit(world(tmp_path, []), tmp_path)
    assert lists(tmp_path, taken, [(1, 0)]) == [[]]


def test_a_column_that_is_no_feature(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"segment_hot\.column: 'age' is not in features\.user; there are segment"):
        segment_hot.fit(described(tmp_path, USERS, ITEMS), tmp_path, column="age")


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    taken = world(tmp_path, [(1, 1, 0), (3, 2, 0), (4, 3, 0)])
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        segment_hot.fit(taken, tmp_path / name)
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(segment_hot, taken, tmp_path / "one", [*range(5), 77])
