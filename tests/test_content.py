from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.lake import InputError
from pipeline.recall import content

USERS = {"name": ["x", "y", "z"]}
DEGREES = [0, 10, 20, 90, 180]


def vectors(degrees: list[float]) -> np.ndarray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_nearest_to_the_mean_of_the_history(tmp_path: Path) -> None:
    """User 1 took items 1 (0°) and then 4 (90°), which counts √2 times as much; user 2 took nothing."""
    taken = described(tmp_path, dict(USERS), {"content": vectors(DEGREES)}, taken=[(1, 1), (1, 4)])
    found = recalled(content, taken, tmp_path / "content", [1, 2, 0, 99], k=2)
    mean = math.degrees(math.atan2(1, 1 / math.sqrt(2)))
    expected = [(item, pytest.approx(math.cos(math.radians(DEGREES[item - 1] - mean)), abs=1e-6)) for item in (3, 2)]
    assert found == [expected, [], [], []]


def test_users_without_history_are_asked_for_by_their_own_vector(tmp_path: Path) -> None:
    users = {"content": vectors([85, 85, 0]) * [[1], [1], [0]]}
    taken = described(tmp_path, users, {"content": vectors(DEGREES)}, taken=[(2, 1)])
    found = recalled(content, taken, tmp_path / "content", [1, 2, 3], k=1)
    assert [[item for item, _ in one] for one in found] == [[4], [2], []]


def test_items_without_vector_or_with_nan_are_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = vectors([0, 10, 20, 5, 15])
    broken[3], broken[4] = 0.0, (np.nan, 1.0)
    taken = described(tmp_path, dict(USERS), {"content": broken}, taken=[(1, 1), (2, 5), (3, 5), (3, 1)])
    (tmp_path / "content").mkdir()
    assert content.fit(taken, tmp_path / "content") == {"without_content": 2}
    assert "2 of 5 items have no usable content" in caplog.text
    found = recalled(content, taken, tmp_path / "again", [1, 2, 3])
    assert [[item for item, _ in one] for one in found] == [[2, 3], [], [2, 3]]


def test_no_content_at_all(tmp_path: Path) -> None:
    taken = described(tmp_path, dict(USERS), {"category": ["a", "b"]}, taken=[(1, 1)])
    assert recalled(content, taken, tmp_path / "content", [1, 2]) == [[], []]


def test_an_index_of_another_width(tmp_path: Path) -> None:
    taken = described(tmp_path, dict(USERS), {"content": vectors(DEGREES)})
    recalled(content, taken, tmp_path / "content", [1])
    wider = replace(taken.store, items={"content": np.ones((6, 3), np.float32)}, users={"code_user_id": np.zeros(4)})
    with pytest.raises(InputError, match=r"holds vectors of width 2, .* 3; build it again"):
        content.load(tmp_path / "content", wider)


def test_agrees_with_brute_force_alone_and_in_company(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    told = vectors(random.uniform(0, 360, 60))
    pairs = [(int(user), int(item)) for user, item in random.integers(1, 21, (120, 2))]
    taken = described(tmp_path, {"name": ["x"] * 20}, {"content": told}, taken=pairs)
    found = recalled(content, taken, tmp_path / "one", list(range(1, 21)), k=9)
    for user, one in enumerate(found, 1):
        own = [item for other, item in pairs if other == user][::-1]
        mean = sum((told[item - 1] / math.sqrt(own.index(item) + 1) for item in dict.fromkeys(own)), np.zeros(2))
        scores = {item: float(told[item - 1] @ mean / np.linalg.norm(mean)) for item in {*range(1, 61)} - {*own}}
        best = sorted(scores, key=lambda item: -scores[item])[:9]
        assert one == [(item, pytest.approx(scores[item], abs=1e-5)) for item in (best if own else [])]
    recalled(content, taken, tmp_path / "other", [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(content, taken, tmp_path / "one", [*range(21), 77])
