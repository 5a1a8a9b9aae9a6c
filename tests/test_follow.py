from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.recall import follow

ITEMS = {"author_id": [7, 7, 8, 8, 9, None]}
USERS = {"follows": [[7], [8, 7], [], None, [12], [9, 8]]}


def test_the_newest_items_of_the_followed(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, days=[3, 1, 2, 7, 14, 0])
    found = recalled(follow, taken, tmp_path / "follow", [1, 2, 3, 4, 5, 6, 0, 99])
    assert [[item for item, _ in one] for one in found] == [[2, 1], [2, 3, 1, 4], [], [], [], [3, 4, 5], [], []]
    assert [score for _, score in found[5]] == pytest.approx([0.5 ** (2 / 7), 0.5, 0.25])


def test_few_of_each_author_and_nothing_taken(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, days=[3, 1, 2, 7, 14, 0], taken=[(2, 3)])
    found = recalled(follow, taken, tmp_path / "follow", [2], per_author=1)
    assert [item for item, _ in found[0]] == [2]


def test_the_worst_quarter_is_left_out(tmp_path: Path) -> None:
    """Items 1 to 3 were engaged with whenever they were shown, item 4 never."""
    pairs = [(9, item) for item in (1, 2, 3, 4) for _ in range(20)]
    taken = described(tmp_path, {"follows": [["7"]]}, {"author_id": [7] * 4}, taken=pairs)
    shown = taken.interactions.with_columns(engaged=taken.interactions["item"] < 4)
    liked = replace(taken, interactions=shown)
    assert [item for item, _ in recalled(follow, liked, tmp_path / "follow", [1])[0]] == [1, 2, 3]


@pytest.mark.parametrize(("users", "items"), [({"name": ["x"]}, ITEMS), ({"follows": [[7]]}, {"category": ["a"]})])
def test_nobody_follows_or_nobody_wrote(tmp_path: Path, users: dict, items: dict) -> None:
    assert recalled(follow, described(tmp_path, users, items), tmp_path / "follow", [1]) == [[]]


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    taken = described(tmp_path, USERS, ITEMS, days=[3, 1, 2, 7, 14, 0], taken=[(2, 3)])
    for name in ("one", "other"):
        recalled(follow, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(follow, taken, tmp_path / "one", [*range(7), 77])
