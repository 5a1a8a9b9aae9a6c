from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.recall import similar_author
from pipeline.recall.attributes import demand

USERS = {"name": ["x"] * 4}
ITEMS = {"author_id": [7, 7, 8, 8, 9, None]}
TAKEN = [(1, 1), (2, 1), (2, 3), (3, 6)]


def test_on_paper(tmp_path: Path) -> None:
    """Authors 7 and 8 share user 2, who takes both; 7 has two users, 8 one."""
    taken = described(tmp_path, USERS, ITEMS, taken=TAKEN)
    found = recalled(similar_author, taken, tmp_path / "author", [1, 3, 4, 0, 99])
    near = 1 / math.log(3) / math.sqrt(2)
    wanted = demand(taken)
    scores = {2: wanted[2], 3: near * wanted[3], 4: near * wanted[4]}
    assert dict(found[0]) == pytest.approx(scores, rel=1e-5)
    assert found[1:] == [[], [], [], []]


def test_only_the_best_of_each_author_and_the_nearest(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, taken=TAKEN)
    found = recalled(similar_author, taken, tmp_path / "author", [1], per_author=1)
    assert [item for item, _ in found[0]] == [3]


@pytest.mark.parametrize("pairs", [[], TAKEN])
def test_no_history_and_no_authors(tmp_path: Path, pairs: list[tuple[int, int]]) -> None:
    items = {"category": ["a"] * 6} if pairs else ITEMS
    taken = described(tmp_path, USERS, items, taken=pairs)
    assert recalled(similar_author, taken, tmp_path / "author", [1, 2]) == [[], []]


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pairs = [
        (int(user), int(item))
        for user, item in zip(random.integers(1, 20, 99), random.integers(1, 61, 99), strict=True)
    ]
    taken = described(tmp_path, {"name": ["x"] * 20}, {"author_id": random.integers(0, 9, 60)}, taken=pairs)
    for name in ("one", "other"):
        recalled(similar_author, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(similar_author, taken, tmp_path / "one", [*range(21), 77])
