from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from linear_worlds import random_log, snapshot, weights

from pipeline.recall import slit


def test_weights_on_paper(tmp_path: Path) -> None:
    """One step 1 → 2: SᵀS = SᵀY = 1, so that W12 = 1 / (1 + λ)."""
    slit.fit(snapshot([(1, 1), (1, 2)], items=[1, 2]), tmp_path, ridge=3.0)
    expected = np.zeros((3, 3))
    expected[1, 2] = 1 / 4
    np.testing.assert_allclose(weights(slit, tmp_path), expected, rtol=1e-6)


def test_backwards_on_paper(tmp_path: Path) -> None:
    """Read backwards with half the weight, the step is 2 → 1: RᵀR = RᵀY = 1/2, so that W21 = 1/2 / (1/2 + λ)."""
    slit.fit(snapshot([(1, 1), (1, 2)], items=[1, 2]), tmp_path, ridge=3.0, reverse=0.5)
    expected = np.zeros((3, 3))
    expected[1, 2], expected[2, 1] = 1 / 4, 1 / 7
    np.testing.assert_allclose(weights(slit, tmp_path), expected, rtol=1e-6)


@pytest.mark.parametrize("reverse", [0.0, 0.3])
@pytest.mark.parametrize("recent", [1, 4, 50])
def test_agrees_with_a_ridge_regression_of_events(recent: int, reverse: float, tmp_path: Path) -> None:
    log = random_log(4)
    options = {"ridge": 2.0, "recent": recent, "decay": 0.5, "popularity": 0.3, "reverse": reverse}
    slit.fit(snapshot(log, list(range(1, 10))), tmp_path, **options)
    weight, context, target = [], [], []
    for user in {user for user, _ in log}:
        own = [item for other, item in log if other == user]
        for direction, told in ((own, 1.0), (own[::-1], reverse)):
            for place in range(len(own)):
                row = np.zeros(10)
                for back, item in enumerate(reversed(direction[max(0, place - recent) : place]), start=1):
                    row[item] += back**-0.5
                weight.append(told)
                context.append(row)
                target.append(np.eye(10)[direction[place]])
    rows, next_ = np.array(context), np.array(target)
    weighted = rows.T * np.array(weight)
    solved = np.linalg.solve(weighted @ rows + 2.0 * np.eye(10), weighted @ next_)
    count = np.maximum(1, np.bincount([item for _, item in log], minlength=10))
    expected = np.maximum(solved * count**-0.3, 0)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights(slit, tmp_path), expected, atol=1e-5)
