from __future__ import annotations

import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from route_tables import ask, engaged

from pipeline.recall import nearest, swing


def similar(taken: list[tuple[int, int]], size: int = 9, **options: float) -> dict[tuple[int, int], float]:
    users, items = np.array(taken).T
    every = np.arange(size)
    found = swing.similarities(users, items, size, available=every, neighbours=size, **options).tocoo()  # type: ignore[arg-type]
    return dict(zip(zip(found.row.tolist(), found.col.tolist(), strict=True), found.data.tolist(), strict=True))


def slow_swing(taken: list[tuple[int, int]], alpha: float, damping: float) -> dict[tuple[int, int], float]:
    baskets: dict[int, set[int]] = defaultdict(set)
    for user, item in taken:
        baskets[user].add(item)
    found: dict[tuple[int, int], float] = defaultdict(float)
    for one, other in combinations(baskets, 2):
        common = baskets[one] & baskets[other]
        weight = (len(baskets[one]) * len(baskets[other])) ** -damping
        for pair in combinations(sorted(common), 2):
            found[pair] += weight / (alpha + len(common))
            found[pair[::-1]] += weight / (alpha + len(common))
    return found


def test_on_paper() -> None:
    taken = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1), (4, 3)]
    assert similar(taken, alpha=1.0, damping=0.0) == pytest.approx(
        {(1, 2): 1.0, (2, 1): 1.0, (1, 3): 1 / 3, (3, 1): 1 / 3}
    )
    half = 1 / math.sqrt(2 * 2) / 3 + 2 / math.sqrt(2 * 3) / 3
    assert similar(taken, alpha=1.0, damping=0.5)[1, 2] == pytest.approx(half)


def test_a_small_circle_says_less_than_as_many_strangers() -> None:
    circle = [(user, item) for user in (1, 2) for item in (1, 2, 3, 4)]
    strangers = [(3, 5), (3, 6), (3, 7), (3, 8), (4, 5), (4, 6), (4, 1), (4, 2)]
    found = similar(circle + strangers, damping=0.0)
    assert found[5, 6] > found[3, 4]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=50),
    st.sampled_from([0.5, 2.0]),
    st.sampled_from([0.0, 0.5]),
)
def test_agrees_with_loops_over_pairs_of_users(taken: list[tuple[int, int]], alpha: float, damping: float) -> None:
    assert similar(taken, alpha=alpha, damping=damping) == pytest.approx(slow_swing(taken, alpha, damping), rel=1e-5)


def test_a_hot_item_is_estimated_from_a_sample_of_its_users() -> None:
    """All 300 users are alike, so that any sample tells the whole: only the scale is put to the test."""
    taken = [(user, item) for user in range(1, 301) for item in (1, 2)]
    assert similar(taken, most_users=10) == pytest.approx(similar(taken))
    some = [(user, item) for user in range(1, 301) for item in (1, 2 + user % 3)]
    sampled, exact = similar(some, most_users=150), similar(some)
    assert similar(some, most_users=150) == sampled != exact
    for pair, value in exact.items():
        assert sampled[pair] == pytest.approx(value, rel=0.4 if pair[0] == 1 else 1e-6)


def test_neither_threads_nor_pieces_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    users, items = generator.integers(1, 30, 300), generator.integers(1, 40, 300)

    def table() -> list[list[float]]:
        found = swing.similarities(users, items, 40, available=np.arange(0, 40, 2), neighbours=5)
        assert not (found.indices % 2).any()
        assert np.diff(found.indptr).max() == 5
        return [found.indptr.tolist(), found.indices.tolist(), found.data.tolist()]

    one = table()
    monkeypatch.setattr(nearest, "PIECES", 3)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert table() == one


def test_recalls_what_swings_with_the_latest(tmp_path: Path) -> None:
    taken = engaged([(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (5, 4)], available=[1, 2, 3])
    swing.fit(taken, tmp_path)
    requests = pl.DataFrame(
        {"request": [0, 1, 2, 3], "user": [3, 0, 5, 77]}, schema={"request": pl.UInt32, "user": pl.Int32}
    )
    found = ask(swing, tmp_path, taken, requests, 5)
    assert found.select("request", "item", "rank").rows() == [(0, 2, 1)]
    assert found["score"].to_list() == pytest.approx([1 / 2 / 3])


def test_no_history_at_all(tmp_path: Path) -> None:
    taken = engaged([], available=[1, 2])
    swing.fit(taken, tmp_path)
    requests = pl.DataFrame({"request": [0], "user": [1]}, schema={"request": pl.UInt32, "user": pl.Int32})
    assert ask(swing, tmp_path, taken, requests, 5).is_empty()
