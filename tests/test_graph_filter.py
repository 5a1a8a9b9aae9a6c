from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from linear_worlds import binary, random_log, snapshot, weights

from pipeline.recall import graph_filter


def test_linear_filter_on_paper(tmp_path: Path) -> None:
    taken = snapshot([(1, 1), (1, 2), (2, 1)], items=[1, 2])
    graph_filter.fit(taken, tmp_path, low_pass=0.0, users=1.0, history=1.0, popularity=0.5)
    np.testing.assert_allclose(weights(graph_filter, tmp_path)[1:, 1:], [[0, 1 / 4], [1 / np.sqrt(8), 0]], rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
def test_agrees_with_dense_matrices(rank: int, tmp_path: Path) -> None:
    log = random_log(5)
    graph_filter.fit(
        snapshot(log, list(range(1, 10))),
        tmp_path,
        users=0.6,
        history=0.4,
        popularity=0.3,
        low_pass=0.5,
        rank=rank,
    )
    taken = binary(log, 10)[:, 1:]
    user, item = taken.sum(axis=1, keepdims=True), taken.sum(axis=0)
    linear = item[:, None] ** -0.4 * (taken.T @ (user**-0.6 * taken)) * item**-0.3
    _, _, vectors = np.linalg.svd(user**-0.5 * taken * item**-0.5)
    ideal = vectors[:rank].T @ vectors[:rank] * item**0.2
    expected = linear + 0.5 * linear.mean() / ideal.mean() * ideal
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights(graph_filter, tmp_path)[1:, 1:], np.maximum(expected, 0), atol=1e-4)


def test_two_groups_without_a_common_user_stay_apart(tmp_path: Path) -> None:
    log = [(user, item) for user in range(1, 5) for item in (1, 2, 3)]
    log += [(user, item) for user in range(5, 9) for item in (4, 5, 6)]
    graph_filter.fit(snapshot(log, list(range(1, 7))), tmp_path, rank=2)
    found = weights(graph_filter, tmp_path)
    assert (found[1:4, 4:] < 1e-5).all()
    assert (found[1:4, 1:4] + np.eye(3) > 1e-3).all()
