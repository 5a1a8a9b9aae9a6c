from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from linear_worlds import asked, binary, random_log, snapshot

from pipeline.recall import graph_filter
from pipeline.recall.route import NOTHING


def weights(folder: Path) -> np.ndarray:
    """W (I, I): what each item alone speaks for."""
    route = graph_filter.load(folder, None)
    size = len(route.items)
    found = route.recall(asked(*([item] for item in range(size))), size)
    dense = np.zeros((size, size))
    row, rank = np.nonzero(found.items != NOTHING)
    dense[row, found.items[row, rank]] = found.scores[row, rank]
    return dense


def test_linear_filter_on_paper(tmp_path: Path) -> None:
    """D_I^-½ XᵀD_U^-1 X D_I^-½ has 1 as its largest eigenvalue: W12 = 1/2 · 2^-1 · 1^-½ and W21 = 1/2 · 1^-1 · 2^-½."""
    taken = snapshot([(1, 1), (1, 2), (2, 1)], items=[1, 2])
    graph_filter.fit(taken, tmp_path, sharpen=0.0, users=1.0, history=1.0, popularity=0.5)
    np.testing.assert_allclose(weights(tmp_path)[1:, 1:], [[0, 1 / 4], [1 / np.sqrt(8), 0]], rtol=1e-5)


def test_sharpening_on_paper(tmp_path: Path) -> None:
    """P = [[3/4, 1/√8], [1/√8, 1/2]], so that P²'s off-diagonal is (5/4) / √8."""
    taken = snapshot([(1, 1), (1, 2), (2, 1)], items=[1, 2])
    graph_filter.fit(taken, tmp_path, sharpen=0.4, users=1.0, history=0.5, popularity=0.5)
    expected = (1 - 0.4 * 5 / 4) / np.sqrt(8)
    np.testing.assert_allclose(weights(tmp_path)[1:, 1:], [[0, expected], [expected, 0]], rtol=1e-5)


@pytest.mark.parametrize("sharpen", [0.0, 0.5, 2.0])
def test_agrees_with_dense_matrices(sharpen: float, tmp_path: Path) -> None:
    log = random_log(5)
    options = {"users": 0.6, "history": 0.4, "popularity": 0.3, "sharpen": sharpen}
    graph_filter.fit(snapshot(log, list(range(1, 10))), tmp_path, **options)
    taken = binary(log, 10)[:, 1:]
    user, item = taken.sum(axis=1, keepdims=True), taken.sum(axis=0)
    half = user**-0.3 * taken * item**-0.5
    blur = half.T @ half / np.linalg.eigvalsh(half.T @ half)[-1]
    expected = item[:, None] ** 0.1 * (blur - sharpen * blur @ blur) * item**0.2
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights(tmp_path)[1:, 1:], np.maximum(expected, 0), atol=1e-5)


def test_two_groups_without_a_common_user_stay_apart(tmp_path: Path) -> None:
    log = [(user, item) for user in range(1, 5) for item in (1, 2, 3)]
    log += [(user, item) for user in range(5, 9) for item in (4, 5, 6)]
    graph_filter.fit(snapshot(log, list(range(1, 7))), tmp_path, sharpen=0.5)
    found = weights(tmp_path)
    assert (found[1:4, 4:] == 0).all()
    assert (found[1:4, 1:4] + np.eye(3) > 1e-3).all()


def test_sharpening_prefers_what_only_the_same_users_take(tmp_path: Path) -> None:
    """Item 2 goes with item 1 alone; item 3 goes with everything, and with item 1 as often."""
    log = [(user, item) for user in range(1, 5) for item in (1, 2, 3)]
    log += [(user, item) for user in range(5, 30) for item in (3, 4 + user % 3)]
    found = {}
    for sharpen in (0.0, 0.9):
        folder = tmp_path / str(sharpen)
        folder.mkdir()
        graph_filter.fit(snapshot(log, list(range(1, 7))), folder, sharpen=sharpen, popularity=0.0)
        found[sharpen] = weights(folder)[1]
    assert found[0.0][3] == pytest.approx(found[0.0][2])
    assert found[0.9][2] > found[0.9][3]


def test_a_history_is_the_sum_of_its_items_and_is_not_recalled(tmp_path: Path) -> None:
    graph_filter.fit(snapshot(random_log(5), list(range(1, 10))), tmp_path, history=0.3)
    route = graph_filter.load(tmp_path, None)
    found = route.recall(asked([2, 5, 2], [], [77], [3]), 9)
    total = unclipped(tmp_path)[[2, 5]].sum(axis=0)
    total[[2, 5]] = 0
    expected = [item for item in np.argsort(-total, kind="stable") if total[item] > 0]
    assert [item for item in found.items[0] if item != NOTHING] == expected
    np.testing.assert_allclose(found.scores[0, : len(expected)], total[expected], rtol=1e-4)
    assert (found.items[1:3] == NOTHING).all()


def unclipped(folder: Path) -> np.ndarray:
    """P − sharpen·P² between the powers of degrees, from the files."""
    route = graph_filter.load(folder, None)
    half = sp.csr_array((route.items.data, route.items.indices, route.items.indptr)).toarray()
    return route.before[:, None] * (half @ half.T - route.sharpener @ route.sharpener.T) * route.after


@pytest.mark.parametrize(("shape", "rank"), [((5, 7), 9), ((60, 40), 8), ((40, 60), 8)])
def test_leading_singular_vectors(shape: tuple[int, int], rank: int) -> None:
    dense = np.random.default_rng(0).random(shape).astype(np.float32)
    values, vectors = graph_filter.leading(sp.csr_array(dense), rank)
    _, exact, right = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(values, exact[:rank], rtol=1e-3)
    np.testing.assert_allclose(np.abs((vectors * right[:rank].T).sum(axis=0)), 1, atol=0.02)


def test_an_item_withdrawn_changes_nothing_between_the_others(tmp_path: Path) -> None:
    log = [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]
    found = {}
    for items in ([1, 2, 3], [1, 3]):
        folder = tmp_path / str(len(items))
        folder.mkdir()
        graph_filter.fit(snapshot(log, items), folder)
        found[len(items)] = weights(folder)
    np.testing.assert_array_equal(found[2][:, [1, 3]], found[3][:, [1, 3]])
    assert not found[2][:, 2].any()
