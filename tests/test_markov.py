from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from linear_worlds import random_log, recalled, snapshot, weights

from pipeline.recall import markov
from pipeline.recall.item_matrix import Engagements


def test_weights_on_paper(tmp_path: Path) -> None:
    taken = snapshot([(1, 1), (1, 2), (1, 3), (2, 1), (2, 3)], items=[1, 2, 3])
    markov.fit(taken, tmp_path, skip_decay=1.0, out=1.0, popularity=0.5)
    expected = np.zeros((4, 4))
    expected[1, 2] = 1.0 / 2
    expected[1, 3] = (1 / 2 + 1.0) / 2 / np.sqrt(2)
    expected[2, 3] = 1.0 / np.sqrt(2)
    np.testing.assert_allclose(weights(markov, tmp_path), expected, rtol=1e-6)


def test_the_direction_counts(tmp_path: Path) -> None:
    taken = snapshot([(1, 1), (1, 2), (2, 2), (3, 1)], items=[1, 2])
    markov.fit(taken, tmp_path)
    assert recalled(markov, tmp_path, taken, [2, 3])["item"].to_list() == [2]


@pytest.mark.parametrize("skips", [1, 3, 50])
def test_transitions_agree_with_loops(skips: int) -> None:
    log = random_log(0)
    expected = np.zeros((10, 10))
    for user in {user for user, _ in log}:
        own = [item for other, item in log if other == user]
        for later in range(len(own)):
            for earlier in range(max(0, later - skips), later):
                expected[own[earlier], own[later]] += (later - earlier) ** -0.5
    known = Engagements.of(snapshot(log, items=list(range(1, 10))))
    np.testing.assert_allclose(markov.transitions(known, skips=skips, skip_decay=0.5).toarray(), expected, rtol=1e-5)
