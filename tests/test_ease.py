from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from linear_worlds import binary, random_log, recalled, snapshot, weights

from pipeline.lake import InputError
from pipeline.recall import ease

PLAIN = {"users": 0.0, "items": 0.0, "restore": 0.0}


def test_weights_on_paper(tmp_path: Path) -> None:
    """XᵀX = [[2, 1], [1, 1]]; with λ = 1, P = [[2, -1], [-1, 3]] / 5, so that W12 = 1/3 and W21 = 1/2."""
    taken = snapshot([(1, 1), (1, 2), (2, 1)], items=[1, 2])
    ease.fit(taken, tmp_path, ridge=2 / 3, **PLAIN)
    np.testing.assert_allclose(weights(ease, tmp_path)[1:, 1:], [[0, 1 / 3], [1 / 2, 0]], rtol=1e-5)


@pytest.mark.parametrize("users", [5, 30], ids=["fewer users than items", "more users than items"])
@pytest.mark.parametrize("exponents", [(0.0, 0.0, 0.0), (0.7, 0.25, 0.1)])
def test_agrees_with_a_regression_of_each_item(
    users: int, exponents: tuple[float, float, float], tmp_path: Path
) -> None:
    log = random_log(3, users=users, items=9, events=60)
    per_user, per_item, restore = exponents
    ease.fit(snapshot(log, list(range(1, 10))), tmp_path, ridge=0.4, users=per_user, items=per_item, restore=restore)
    taken = binary(log, 10)[:, 1:]
    degree = taken.sum(axis=0)
    scaled = taken.sum(axis=1, keepdims=True) ** (-per_user / 2) * taken * degree**-per_item
    ridge = 0.4 * (scaled**2).sum() / len(scaled)
    expected = np.zeros((9, 9))
    for item in range(9):
        rest = np.arange(9) != item
        others = scaled[:, rest]
        solved = np.linalg.solve(others.T @ others + ridge * np.eye(8), others.T @ scaled[:, item])
        expected[rest, item] = degree[rest] ** -per_item * solved * degree[item] ** restore
    np.testing.assert_allclose(weights(ease, tmp_path)[1:, 1:], np.maximum(expected, 0), atol=2e-5)


def test_only_the_most_taken_items_take_part(tmp_path: Path) -> None:
    taken = snapshot([(1, 7), (1, 3), (1, 5), (2, 7), (2, 5), (3, 7)], items=[3, 5, 7])
    ease.fit(taken, tmp_path, most_taken=2)
    assert np.argwhere(weights(ease, tmp_path)).tolist() == [[5, 7], [7, 5]]
    assert recalled(ease, tmp_path, taken, [3])["item"].to_list() == [5]


def test_a_ridge_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ridge"):
        ease.fit(snapshot([(1, 1)], items=[1]), tmp_path, ridge=0.0)
