from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from linear_worlds import binary, random_log, recalled, snapshot
from test_item_matrix import asked

from pipeline.recall import als
from pipeline.recall.candidates import ROUTES

UNOBSERVED, RIDGE = 0.1, 0.05


def loss(taken: np.ndarray, users: np.ndarray, items: np.ndarray) -> float:
    foreseen = users @ items.T
    observed = (taken * (1 - foreseen) ** 2).sum() + UNOBSERVED * (foreseen**2).sum()
    by_user = RIDGE * (taken.sum(axis=1) + UNOBSERVED * len(items)) @ (users**2).sum(axis=1)
    by_item = RIDGE * (taken.sum(axis=0) + UNOBSERVED * len(users)) @ (items**2).sum(axis=1)
    return float(observed + by_user + by_item)


def solved(taken: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Each row's normal equations, solved one by one."""
    rows = []
    for row in taken:
        own = other[row > 0]
        weight = RIDGE * (len(own) + UNOBSERVED * len(other))
        matrix = own.T @ own + UNOBSERVED * other.T @ other + weight * np.eye(other.shape[1])
        rows.append(np.linalg.solve(matrix, own.sum(axis=0)))
    return np.array(rows)


def test_one_dimension_on_paper() -> None:
    """q = (1, 2), taken (1, 0), α = .1, λ = .05: (1 + .1 · 5 + .05 · (1 + .1 · 2)) p = 1."""
    items, users = np.array([[1.0], [2.0]], np.float32), np.zeros((1, 1), np.float32)
    gram = als.shared(items, UNOBSERVED, RIDGE)
    als.solve(sp.csr_array(np.array([[1.0, 0.0]])), items, gram, users, ridge=RIDGE, steps=1)
    assert users[0, 0] == pytest.approx(1 / 1.56)


def test_enough_steps_solve_each_row() -> None:
    taken = binary(random_log(0), 10)[:, 1:]
    items = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    users = np.random.default_rng(1).standard_normal((len(taken), 3)).astype(np.float32)
    als.solve(sp.csr_array(taken), items, als.shared(items, UNOBSERVED, RIDGE), users, ridge=RIDGE, steps=9)
    np.testing.assert_allclose(users, solved(taken, items), atol=1e-4)


def test_sweeps_reach_what_exact_sweeps_reach() -> None:
    taken = binary(random_log(2), 10)[:, 1:]
    found = als.factors(sp.csr_array(taken), 2, sweeps=60, unobserved=UNOBSERVED, ridge=RIDGE, seed=0).astype(float)
    items = np.random.default_rng(5).normal(0, 0.1, (9, 2))
    for _ in range(200):
        users = solved(taken, items)
        items = solved(taken.T, users)
    assert loss(taken, solved(taken, found), found) == pytest.approx(loss(taken, users, items), rel=1e-4)


def test_each_group_is_given_its_own_items(tmp_path: Path) -> None:
    log = [(user, item) for user in range(1, 7) for item in (1, 2, 3) if (user + item) % 6]
    log += [(user, item) for user in range(7, 13) for item in (4, 5, 6) if (user + item) % 6]
    taken = snapshot(log, list(range(1, 7)))
    als.fit(taken, tmp_path, dimensions=2)
    found = recalled(als, tmp_path, taken, list(range(1, 13)), k=1)
    own = dict(found.select("request", "item").iter_rows())
    for user, missing in ((3, 3), (4, 2), (5, 1), (8, 4), (7, 5), (12, 6)):
        assert own[user - 1] == missing


def test_a_user_not_seen_when_it_was_fitted_is_solved_for_from_the_history(tmp_path: Path) -> None:
    log = random_log(3, users=30, events=150)
    taken = snapshot(log, list(range(1, 10)))
    als.fit(taken, tmp_path, dimensions=4, unobserved=UNOBSERVED, ridge=RIDGE)
    items = np.load(tmp_path / als.ITEMS).astype(float)
    history = [2, 5, 2, 77]
    found = als.load(tmp_path, None).recall(asked(history), 5)
    row = np.isin(np.arange(len(items)), history).astype(float)
    scores = items @ solved(row[None], items)[0]
    scores[[0, 2, 5]] = -np.inf
    expected = [int(item) for item in np.argsort(-scores) if scores[item] > 0][:5]
    assert [item for item in found.items[0].tolist() if item >= 0] == expected
    np.testing.assert_allclose(found.scores[0, : len(expected)], scores[expected], atol=1e-4)


def test_requests_are_answered_alike_alone_and_in_company(tmp_path: Path) -> None:
    als.fit(snapshot(random_log(4, users=30, events=150), list(range(1, 10))), tmp_path, dimensions=4)
    histories = [[1, 2, 3, 4, 5, 6], [], [7], [9, 9, 1]]
    route = als.load(tmp_path, None)
    together = route.recall(asked(*histories), 4)
    for number, history in enumerate(histories):
        alone = route.recall(asked(history), 4)
        width = alone.items.shape[1]
        np.testing.assert_array_equal(alone.items[0], together.items[number, :width])
        np.testing.assert_allclose(alone.scores[0], together.scores[number, :width], rtol=1e-5)
        assert (together.items[number, width:] == -1).all()


def test_unknown_users_empty_histories_and_items_not_available(tmp_path: Path) -> None:
    taken = snapshot(random_log(1), items=[1, 2, 3, 4, 5])
    als.fit(taken, tmp_path)
    found = recalled(als, tmp_path, taken, [0, 99, 1])
    assert found["request"].unique().to_list() == [2]
    assert found["item"].max() <= 5
    assert not set(found["item"]) & set(taken.history.filter(pl.col("user") == 1)["item"])


@pytest.mark.parametrize("items", [[1, 2], []])
def test_nothing_to_learn_from(items: list[int], tmp_path: Path) -> None:
    taken = snapshot([], items=items)
    als.fit(taken, tmp_path)
    assert recalled(als, tmp_path, taken, [1]).is_empty()


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        als.fit(snapshot(random_log(2), items=list(range(1, 10))), tmp_path / name, dimensions=8)
    one, two = tmp_path / "one", tmp_path / "two"
    written = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(written) > 3
    for path in written:
        assert (one / path).read_bytes() == (two / path).read_bytes()


def test_it_is_listed() -> None:
    assert ROUTES["als"] is als
