from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_worlds import asked, random_log, recalled, snapshot
from route_tables import same_bytes

from pipeline.lake import InputError
from pipeline.recall import ease, graph_filter, item_matrix, markov, slit
from pipeline.recall.candidates import ROUTES
from pipeline.recall.neighbours import Table
from pipeline.recall.route import NOTHING

LINEAR = [ease, graph_filter, markov, slit]
every_route = pytest.mark.parametrize("route", LINEAR, ids=lambda route: route.__name__.rsplit(".", 1)[1])


def matrix(weights: np.ndarray, decay: float = 0.0, recent: int = 10) -> item_matrix.ItemMatrix:
    sparse = sp.csr_array(weights)
    return item_matrix.ItemMatrix(Table(sparse.data, sparse.indices, sparse.indptr), decay, recent)


def test_scores_on_paper() -> None:
    weights = np.zeros((5, 5))
    weights[1, 3], weights[1, 4], weights[2, 3] = 1.0, 2.0, 4.0
    found = matrix(weights, decay=1.0).recall(asked([1, 2]), 2)
    assert found.items.tolist() == [[3, 4]]
    np.testing.assert_allclose(found.scores, [[4.0 + 1.0 / 2, 2.0 / 2]])


def test_of_a_repeated_item_the_newest_event_counts() -> None:
    weights = np.zeros((4, 4))
    weights[1, 3] = 1.0
    found = matrix(weights, decay=1.0).recall(asked([1, 2, 1, 2]), 1)
    np.testing.assert_allclose(found.scores, [[1.0 / 2]])


def test_only_recent_events_speak_but_no_event_comes_back() -> None:
    weights = np.ones((5, 5)) - np.eye(5)
    found = matrix(weights, recent=1).recall(asked([1, 2, 3]), 2)
    assert sorted(found.items[0].tolist()) == [0, 4]
    np.testing.assert_allclose(found.scores, 1.0)


def test_ties_go_to_the_lower_item() -> None:
    weights = np.zeros((6, 6))
    weights[1, [2, 3, 4]] = 1.0
    found = matrix(weights).recall(asked([1], [1]), 2)
    assert found.items.tolist() == [[2, 3], [2, 3]]
    assert matrix(weights).recall(asked([1]), 4).items.tolist() == [[2, 3, 4, NOTHING]]


def test_strange_and_missing_histories() -> None:
    found = matrix(np.ones((3, 3))).recall(asked([], [7], [1]), 2)
    assert found.items.tolist() == [[-1, -1], [-1, -1], [0, 2]]
    assert matrix(np.ones((3, 3))).recall(asked(), 5).items.shape[0] == 0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 7), max_size=9), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 10_000),
)
def test_agrees_with_loops_and_with_each_request_alone(
    histories: list[list[int]], k: int, recent: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.integers(0, 3, (8, 8)) * generator.random((8, 8))
    route = matrix(weights, decay=0.5, recent=recent)
    found = route.recall(asked(*histories), k)
    for number, history in enumerate(histories):
        scores = np.zeros(8)
        for back, item in enumerate(reversed(history[-recent:]), start=1):
            if item not in history[len(history) - back + 1 :]:
                scores += back**-0.5 * weights[item]
        expected = [int(j) for j in np.lexsort((np.arange(8), -scores)) if scores[j] > 0 and j not in history][:k]
        assert [item for item in found.items[number].tolist() if item >= 0] == expected
        np.testing.assert_allclose(found.scores[number, : len(expected)], scores[expected], rtol=1e-5)
        alone = route.recall(asked(history), k)
        width = alone.items.shape[1]
        np.testing.assert_array_equal(alone.items[0], found.items[number, :width])
        np.testing.assert_array_equal(alone.scores[0], found.scores[number, :width])


@pytest.mark.parametrize("block", [1, 3, 500])
def test_strongest_agrees_with_sorting(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_matrix, "BLOCK", block)
    weights = np.random.default_rng(0).integers(-2, 4, (9, 9)).astype(np.float32)
    available = np.arange(9) != 4
    kept = item_matrix.strongest(lambda first, end: weights[first:end].copy(), available, neighbours=3).toarray()
    for i in range(9):
        order = sorted((-weights[i, j], j) for j in range(9) if j not in (i, 4) and weights[i, j] > 0)[:3]
        assert np.flatnonzero(kept[i]).tolist() == sorted(j for _, j in order)
        assert all(kept[i, j] == -value for value, j in order)


@pytest.mark.parametrize("block", [2, 500])
def test_inverse(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_matrix, "BLOCK", block)
    half = np.random.default_rng(0).random((5, 7))
    found = item_matrix.inverse(sp.csr_array(half.T @ half), 0.5)
    np.testing.assert_allclose(found, np.linalg.inv(half.T @ half + 0.5 * np.eye(7)), atol=1e-4)


def test_an_inverse_that_is_none_or_too_large_says_what_to_do() -> None:
    with pytest.raises(InputError, match="ridge"):
        item_matrix.inverse(sp.csr_array(np.ones((2, 2))), -1.0)
    with pytest.raises(InputError, match="most_taken"):
        item_matrix.inverse(sp.csr_array((50_000, 50_000)), 1.0)


def test_most_taken_are_renumbered_and_spread_back() -> None:
    known = item_matrix.Engagements.of(snapshot([(1, 5), (1, 2), (2, 5), (2, 7), (3, 2)], [2, 5]))
    fewer, part = known.most_taken(2)
    assert part.tolist() == [2, 5]
    assert fewer.item.tolist() == [1, 0, 1, 0]
    assert fewer.user.tolist() == [0, 0, 1, 2]
    assert known.most_taken(9)[1].tolist() == [2, 5, 7]
    back = item_matrix.spread(sp.csr_array(np.array([[0.0, 3.0], [4.0, 0.0]])), part, known.size).toarray()
    assert back[2, 5] == 3.0
    assert back[5, 2] == 4.0
    assert np.count_nonzero(back) == 2


@every_route
def test_unknown_users_empty_histories_and_items_not_available(route, tmp_path):
    taken = snapshot([*random_log(1), (20, 1)], items=[1, 2, 3, 4, 5, 6, 7])
    route.fit(taken, tmp_path)
    found = recalled(route, tmp_path, taken, [0, 20, 99, 1])
    assert set(found["request"].unique()) <= {1, 3}
    assert found.filter(pl.col("request") == 1).height > 0
    assert found["item"].max() <= 7
    seen = taken.history.filter(pl.col("user") == 1)["item"]
    assert not set(found.filter(pl.col("request") == 3)["item"]) & set(seen)


@every_route
def test_nothing_to_learn_from(route, tmp_path):
    taken = snapshot([], items=[1, 2])
    route.fit(taken, tmp_path)
    assert recalled(route, tmp_path, taken, [1]).is_empty()


@every_route
def test_the_same_log_gives_the_same_bytes(route, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        route.fit(snapshot(random_log(2), items=list(range(1, 10))), tmp_path / name)
    same_bytes(tmp_path / "one", tmp_path / "two")


@every_route
def test_it_is_listed(route):
    assert route in ROUTES.values()
