from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from route_tables import ask, engaged

from pipeline.recall import user_cf
from pipeline.recall.snapshot import Snapshot


def recalled(taken: Snapshot, folder: Path, users: list[int], k: int = 10, neighbours: int = 10) -> pl.DataFrame:
    user_cf.fit(taken, folder, neighbours=neighbours)
    requests = pl.DataFrame(
        {"request": range(len(users)), "user": users}, schema={"request": pl.UInt32, "user": pl.Int32}
    )
    return ask(user_cf, folder, taken, requests, k)


def slow_similarities(taken: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    baskets = {user: {item for other, item in taken if other == user} for user, _ in taken}
    takers = {item: {user for user, other in taken if other == item} for _, item in taken}
    return {
        (one, other): sum(1 / math.log(1 + len(takers[item])) for item in baskets[one] & baskets[other])
        / math.sqrt(len(baskets[one]) * len(baskets[other]))
        for one in baskets
        for other in baskets
        if one != other and baskets[one] & baskets[other]
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=40))
def test_agrees_with_loops(taken: list[tuple[int, int]]) -> None:
    users, items = np.array(taken).T
    similar = user_cf.similarities(users, items, neighbours=9).tocoo()
    found = zip(similar.row.tolist(), similar.col.tolist(), similar.data.tolist(), strict=True)
    assert {(one, other): value for one, other, value in found} == pytest.approx(slow_similarities(taken))


def test_the_items_of_near_users_by_the_sum_of_their_similarities(tmp_path: Path) -> None:
    pairs = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (3, 3), (3, 4), (4, 5)]
    near = slow_similarities(pairs)
    found = recalled(engaged(pairs, available=[1, 2, 3, 4, 5]), tmp_path, [1])
    assert found["item"].to_list() == [3, 4]
    assert found["score"].to_list() == pytest.approx([near[1, 2] + near[1, 3], near[1, 3]])


def test_a_hot_item_makes_less_alike(tmp_path: Path) -> None:
    pairs = [(1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 1), (5, 1)]
    assert recalled(engaged(pairs, available=[3, 4]), tmp_path, [1])["item"].to_list() == [4, 3]


def test_only_the_nearest_users_their_latest_and_available_items(tmp_path: Path) -> None:
    pairs = [(1, 1), (2, 1), (3, 1), (3, 9), (2, 99)] + [(2, item) for item in range(100, 150)]
    found = recalled(engaged(pairs, available=[9, *range(99, 149)]), tmp_path, [1], k=90, neighbours=1)
    assert found["item"].to_list() == [9]
    (tmp_path / "two").mkdir()
    found = recalled(engaged(pairs, available=[9, *range(99, 150)]), tmp_path / "two", [1], k=90, neighbours=2)
    assert sorted(found["item"].to_list()) == [9, *range(100, 150)]


def test_nobody_and_users_without_history_or_neighbours_get_nothing(tmp_path: Path) -> None:
    pairs = [(1, 1), (1, 2), (2, 1), (4, 7)]
    found = recalled(engaged(pairs, available=[1, 2, 7]), tmp_path, [2, 0, 3, 4, 77, 2])
    assert found.select("request", "item", "rank").rows() == [(0, 2, 1), (5, 2, 1)]


def test_what_was_taken_since_is_left_out(tmp_path: Path) -> None:
    user_cf.fit(engaged([(1, 1), (1, 2), (2, 1)], available=[1, 2]), tmp_path)
    later = engaged([(1, 1), (1, 2), (2, 1), (2, 2)], available=[1, 2])
    request = pl.DataFrame({"request": [0], "user": [2]}, schema={"request": pl.UInt32, "user": pl.Int32})
    assert ask(user_cf, tmp_path, later, request, 5).is_empty()


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pairs = list(zip(generator.integers(1, 30, 300).tolist(), generator.integers(1, 40, 300).tolist(), strict=True))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        together = recalled(engaged(pairs, available=list(range(40))), tmp_path / name, list(range(1, 30)), k=7)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.npy")]
    assert len(files) == 6
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)
    taken = engaged(pairs, available=list(range(40)))
    for user in range(1, 30):
        request = pl.DataFrame(
            {"request": [user - 1], "user": [user]}, schema=together.select("request").schema | {"user": pl.Int32}
        )
        alone = ask(user_cf, tmp_path / "one", taken, request, 7)
        assert alone.equals(together.filter(pl.col("request") == user - 1))


def test_no_history_at_all(tmp_path: Path) -> None:
    assert recalled(engaged([], available=[1, 2]), tmp_path, [1]).is_empty()
