from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from route_tables import ask, engaged

from pipeline.recall import item_cf, nearest
from pipeline.recall.snapshot import Snapshot

REQUEST = {"request": pl.UInt32, "user": pl.Int32}


def recalled(taken: Snapshot, folder: Path, users: list[int], k: int = 10, neighbours: int = 10) -> pl.DataFrame:
    item_cf.fit(taken, folder, neighbours=neighbours)
    requests = pl.DataFrame({"request": range(len(users)), "user": users}, schema=REQUEST)
    return ask(item_cf, folder, taken, requests, k)


def slow_similarities(taken: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    baskets: dict[int, set[int]] = {}
    takers: dict[int, set[int]] = {}
    for user, item in taken:
        baskets.setdefault(user, set()).add(item)
        takers.setdefault(item, set()).add(user)
    return {
        (one, other): sum(1 / math.log(1 + len(baskets[user])) for user in takers[one] & takers[other])
        / math.sqrt(len(takers[one]) * len(takers[other]))
        for one in takers
        for other in takers
        if one != other and takers[one] & takers[other]
    }


def test_similarity_on_paper() -> None:
    users, items = np.array([1, 1, 2, 2, 2, 3]), np.array([1, 2, 1, 2, 3, 1])
    similar = item_cf.similarities(users, items, 4, available=np.array([1, 2, 3]), neighbours=9).toarray()
    two, three = 1 / math.log(3), 1 / math.log(4)
    expected = np.zeros((4, 4))
    expected[1, 2] = expected[2, 1] = (two + three) / math.sqrt(3 * 2)
    expected[1, 3] = expected[3, 1] = three / math.sqrt(3 * 1)
    expected[2, 3] = expected[3, 2] = three / math.sqrt(2 * 1)
    np.testing.assert_allclose(similar, expected, rtol=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=40))
def test_agrees_with_loops(taken: list[tuple[int, int]]) -> None:
    users, items = np.array(taken).T
    similar = item_cf.similarities(users, items, 9, available=np.arange(1, 9), neighbours=9).tocoo()
    found = {
        (int(one), int(other)): value for one, other, value in zip(similar.row, similar.col, similar.data, strict=True)
    }
    expected = slow_similarities(taken)
    assert found.keys() == expected.keys()
    for pair, value in expected.items():
        assert math.isclose(found[pair], value, rel_tol=1e-5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=40))
def test_jaccard_agrees_with_sets(taken: list[tuple[int, int]]) -> None:
    users, items = np.array(taken).T
    similar = item_cf.similarities(users, items, 9, available=np.arange(1, 9), neighbours=9, measure="jaccard").tocoo()
    takers = {item: {user for user, other in taken if other == item} for _, item in taken}
    weight = {user: 1 / math.log(1 + len({item for other, item in taken if other == user})) for user, _ in taken}
    expected = {
        (one, other): sum(weight[user] for user in takers[one] & takers[other])
        / sum(weight[user] for user in takers[one] | takers[other])
        for one in takers
        for other in takers
        if one != other and takers[one] & takers[other]
    }
    found = zip(similar.row.tolist(), similar.col.tolist(), similar.data.tolist(), strict=True)
    assert {(one, other): value for one, other, value in found} == pytest.approx(expected)


@pytest.mark.parametrize("measure", ["cosine", "jaccard"])
def test_neither_threads_nor_pieces_matter(measure: nearest.Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    users, items = generator.integers(1, 30, 300), generator.integers(1, 40, 300)

    def similar() -> sp.csr_array:
        return item_cf.similarities(users, items, 40, available=np.arange(1, 40), neighbours=5, measure=measure)

    one = similar()
    monkeypatch.setattr(nearest, "PIECES", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    other = similar()
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert (np.diff(one.indptr) <= 5).all()
    best_first = [one.data[begin:end] for begin, end in pairwise(one.indptr)]
    assert all((np.diff(values) <= 0).all() for values in best_first)


def test_only_available_neighbours_are_kept_and_the_nearest_of_them() -> None:
    users, items = np.array([1, 1, 1, 2, 2]), np.array([1, 2, 3, 1, 3])
    similar = item_cf.similarities(users, items, 4, available=np.array([1, 2]), neighbours=1)
    assert similar.toarray().nonzero()[1].tolist() == [2, 1, 1]


def test_recent_items_count_more_and_taken_ones_are_left_out(tmp_path: Path) -> None:
    pairs = [(1, 1), (1, 3), (2, 2), (2, 4), (9, 1), (9, 2)]
    found = recalled(engaged(pairs, [1, 2, 3, 4]), tmp_path, [9])
    similarity = 1 / math.log(3) / math.sqrt(2)
    assert found["item"].to_list() == [4, 3]
    assert found["rank"].to_list() == [1, 2]
    np.testing.assert_allclose(found["score"], [similarity, similarity / math.sqrt(2)], rtol=1e-6)


def test_a_user_may_ask_in_two_domains_and_one_without_history_gets_nothing(tmp_path: Path) -> None:
    pairs = [(1, 1), (1, 2), (2, 1)]
    found = recalled(engaged(pairs, [1, 2]), tmp_path, [2, 0, 77, 2])
    assert found.select("request", "item", "rank").rows() == [(0, 2, 1), (3, 2, 1)]


def test_an_item_unknown_to_the_matrix_is_passed_over(tmp_path: Path) -> None:
    before = engaged([(1, 1), (1, 2)], [1, 2])
    item_cf.fit(before, tmp_path, neighbours=5)
    after = engaged([(1, 1), (1, 2), (2, 1), (2, 9)], [1, 2, 9])
    request = pl.DataFrame({"request": [0], "user": [2]}, schema=REQUEST)
    assert ask(item_cf, tmp_path, after, request, 5)["item"].to_list() == [2]


def test_no_history_at_all(tmp_path: Path) -> None:
    assert recalled(engaged([], [1, 2]), tmp_path, [1]).is_empty()
