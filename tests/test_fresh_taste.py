from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.recall import fresh_taste

USERS = {"name": ["x", "y"]}
ITEMS = {"author_id": [7, 7, 8, 8], "category": ["a", "b", "a", "b"]}


def test_new_items_of_liked_authors_and_categories(tmp_path: Path) -> None:
    """User 1 took item 1 (author 7, category a). Each value has two of four items; item 4 shares none of item 1's."""
    taken = described(tmp_path, USERS, ITEMS, taken=[(1, 1)], days=[9, 1, 0, 0])
    found = recalled(fresh_taste, taken, tmp_path / "fresh", [1, 2, 0, 99], half_life_days=1.0)
    rare = math.log(1 + 4 / 2) ** 2
    assert found[0] == [(3, pytest.approx(rare)), (2, pytest.approx(rare / 2))]
    assert found[1:] == [[], [], []]


def test_what_is_older_than_two_half_lives_or_of_unknown_age_is_not_new(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, {"author_id": [7] * 4}, taken=[(1, 1)], days=[9, 3, 2, 1])
    items = taken.items.with_columns(published=taken.items["published"].set(taken.items["item"] == 4, None))
    (found,) = recalled(fresh_taste, replace(taken, items=items), tmp_path / "fresh", [1], half_life_days=1.0)
    assert [item for item, _ in found] == [3]


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, taken=[(1, 1), (2, 4)], days=[9, 1, 0, 0])
    for name in ("one", "other"):
        recalled(fresh_taste, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(fresh_taste, taken, tmp_path / "one", [0, 1, 2, 77])
