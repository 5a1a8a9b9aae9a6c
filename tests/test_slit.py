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


@pytest.mark.parametrize("recent", [1, 4, 50])
def test_agrees_with_a_ridge_regression_of_events(recent: int, tmp_path: Path) -> None:
    log = random_log(4)
    slit.fit(snapshot(log, list(range(1, 10))), tmp_path, ridge=2.0, recent=recent, decay=0.5, popularity=0.3)
    before, after = [], []
    for user in {user for user, _ in log}:
        own = [item for other, item in log if other == user]
        for place in range(len(own)):
            row = np.zeros(10)
            for back, item in enumerate(reversed(own[max(0, place - recent) : place]), start=1):
                row[item] += back**-0.5
            before.append(row)
            after.append(np.eye(10)[own[place]])
    past, next_ = np.array(before), np.array(after)
    solved = np.linalg.solve(past.T @ past + 2.0 * np.eye(10), past.T @ next_)
    count = np.maximum(1, np.bincount([item for _, item in log], minlength=10))
    expected = np.maximum(solved * count**-0.3, 0)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights(slit, tmp_path), expected, atol=1e-5)
