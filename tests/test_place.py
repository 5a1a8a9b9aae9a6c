from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.features import geohash
from pipeline.lake import InputError
from pipeline.recall import place
from pipeline.recall.attributes import demand


def cell(x: int, y: int, precision: int = 5) -> str:
    return geohash.encode(np.array([x]), np.array([y]), precision)[0]


def test_nearer_rings_come_first_whatever_the_demand(tmp_path: Path) -> None:
    """Item 4, two cells away, is the most wanted; item 6, three away, is out of reach; item 5 has no place."""
    items = {"place": [cell(10, 10), cell(11, 9), cell(10, 10), cell(8, 12), None, cell(13, 10)]}
    users = {"place": [cell(10, 10), cell(12, 10), None, cell(100, 100)]}
    taken = described(tmp_path, users, items, taken=[(9, 4)] * 5 + [(9, 3)])
    found = recalled(place, taken, tmp_path / "place", [1, 2, 3, 4, 0, 99])
    assert [[item for item, _ in one] for one in found] == [[3, 1, 2, 4], [2, 6, 3, 1], [], [], [], []]
    share = (1 + demand(taken) / demand(taken).max()) / 2
    assert found[0] == [(item, pytest.approx(share[item] / 2**ring)) for item, ring in ((3, 0), (1, 0), (2, 1), (4, 2))]


def test_rings_agree_with_a_loop(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cells = [(int(x), int(y)) for x, y in random.integers(0, 6, (40, 2))]
    edge = geohash.columns(5) - 3
    texts = [cell((x + edge) % geohash.columns(5), y) for x, y in cells]
    taken = described(tmp_path, {"place": texts}, {"place": texts})
    found = recalled(place, taken, tmp_path / "place", list(range(1, 41)), k=40, rings=1)
    for (x, y), one in zip(cells, found, strict=True):
        near = {number for number, (a, b) in enumerate(cells, 1) if max(abs(a - x), abs(b - y)) <= 1}
        assert {item for item, _ in one} == near


def test_finer_places_lie_in_their_cells_and_names_are_cells_of_their_own(tmp_path: Path) -> None:
    items = {"place": [cell(10, 10) + "zz", "berlin", "u33", "bern", "berlin"]}
    users = {"place": [cell(10, 10) + "00", "berlin", "u33", "rome"]}
    taken = described(tmp_path, users, items)
    found = recalled(place, taken, tmp_path / "place", [1, 2, 3, 4])
    assert [[item for item, _ in one] for one in found] == [[1], [2, 5], [3], []]


def test_what_was_taken_is_left_out(tmp_path: Path) -> None:
    taken = described(tmp_path, {"place": [cell(1, 1)]}, {"place": [cell(1, 1)] * 3}, taken=[(1, 2)])
    assert [item for item, _ in recalled(place, taken, tmp_path / "place", [1])[0]] == [1, 3]


def test_no_places_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = described(tmp_path, {"name": ["x"]}, {"category": ["a"]})
    assert recalled(place, taken, tmp_path / "place", [1]) == [[]]
    assert "items have no place" in caplog.text
    (tmp_path / "half").mkdir()
    taken = described(tmp_path / "half", {"place": ["rome"]}, {"category": ["a"]})
    assert recalled(place, taken, tmp_path / "half" / "place", [1]) == [[]]


def test_rings_wider_than_the_globe(tmp_path: Path) -> None:
    taken = described(tmp_path, {"place": ["u"]}, {"place": ["u"]})
    with pytest.raises(InputError, match=r"rings = 4 at precision 1; rings are 0 to 3"):
        recalled(place, taken, tmp_path / "place", [1], precision=1, rings=4)


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = [cell(int(x), int(y)) for x, y in random.integers(0, 5, (50, 2))]
    taken = described(tmp_path, {"place": texts}, {"place": texts})
    for name in ("one", "other"):
        recalled(place, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(place, taken, tmp_path / "one", [*range(51), 77])
