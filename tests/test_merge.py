from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recall.merge import limits_of, packed, snake, snake_merge
from pipeline.recall.route import NOTHING, Found


def frame(*requests: dict[str, list[int]]) -> pl.DataFrame:
    rows = [
        (request, item, route, rank, 1.0 / rank)
        for request, routes in enumerate(requests)
        for route, items in routes.items()
        for rank, item in enumerate(items, 1)
    ]
    schema = {"request": pl.UInt32, "item": pl.Int32, "route": pl.String, "rank": pl.Int32, "score": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def merged(routes: dict[str, list[int]], size: int = 100, **quota: int) -> list[int]:
    return snake_merge(frame(routes), list(routes), size=size, quota=quota)["item"].to_list()


def slow_merge(routes: dict[str, list[int]], size: int, quota: dict[str, int]) -> list[tuple[int, str]]:
    """The same as a loop over the routes by name: each within its quota first, then what is left."""
    taken: dict[int, str] = {}
    for within in (True, False):
        for turn in range(max(map(len, routes.values()), default=0)):
            names = sorted(routes, reverse=turn % 2 == 1)
            for name in names:
                offers = turn < len(routes[name]) and (turn < quota.get(name, 10**9)) == within
                if offers and routes[name][turn] not in taken:
                    taken[routes[name][turn]] = name
    return list(taken.items())[:size]


def test_known_answer() -> None:
    assert merged({"a": [1, 2, 3], "b": [4, 5, 6], "c": [7, 8, 9]}) == [1, 4, 7, 8, 5, 2, 3, 6, 9]


def test_a_duplicate_belongs_to_its_first_giver_and_the_other_route_passes() -> None:
    result = snake_merge(frame({"a": [1, 2], "b": [1, 3]}), ["a", "b"], size=9)
    assert result.rows() == [(0, 1, 1, "a", 1, 1.0), (0, 3, 2, "b", 2, 0.5), (0, 2, 3, "a", 2, 0.5)]


def test_a_short_route_is_refilled_by_the_others() -> None:
    assert merged({"a": [1], "b": [], "c": [2, 3, 4]}, size=3) == [1, 2, 3]


def test_beyond_its_quota_a_route_waits_for_the_others() -> None:
    assert merged({"a": [1, 2, 3], "b": [4, 5, 6]}, a=1) == [1, 4, 5, 6, 2, 3]
    assert merged({"a": [1, 2, 3], "b": [4, 5, 6]}, size=4, a=1) == [1, 4, 5, 6]


def test_a_route_with_a_quota_of_0_only_fills_up() -> None:
    assert merged({"a": [1, 2], "b": [3, 1, 4]}, b=0) == [1, 2, 3, 4]


def test_order_is_priority() -> None:
    both = frame({"a": [1], "b": [2]})
    assert snake_merge(both, ["b", "a"], size=2)["item"].to_list() == [2, 1]
    assert snake_merge(both, ["b"], size=2)["item"].to_list() == [2]


def test_nothing_to_merge() -> None:
    assert snake_merge(frame({"a": []}), ["a"], size=3).columns == [
        "request",
        "item",
        "position",
        "route",
        "rank",
        "score",
    ]


lists = st.fixed_dictionaries({name: st.lists(st.integers(1, 12), unique=True, max_size=8) for name in "abc"})


@settings(deadline=None)
@given(
    st.lists(lists, min_size=1, max_size=3),
    st.integers(1, 20),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)),
)
def test_agrees_with_a_loop(requests: list[dict[str, list[int]]], size: int, quota: dict[str, int]) -> None:
    result = snake_merge(frame(*requests), ["a", "b", "c"], size=size, quota=quota)
    for number, routes in enumerate(requests):
        one = result.filter(pl.col("request") == number)
        assert one.select("item", "route").rows() == slow_merge(routes, size, quota)
        assert one["position"].to_list() == list(range(1, len(one) + 1))


@settings(deadline=None)
@given(st.lists(lists, min_size=2, max_size=3))
def test_a_request_is_merged_alike_alone_and_in_company(requests: list[dict[str, list[int]]]) -> None:
    together = snake_merge(frame(*requests), ["a", "b", "c"], size=9)
    for number in range(len(requests)):
        alone = frame(*requests).filter(pl.col("request") == number)
        assert snake_merge(alone, ["a", "b", "c"], size=9).equals(together.filter(pl.col("request") == number))


@settings(deadline=None)
@given(st.lists(lists, min_size=1, max_size=3), st.integers(1, 20))
def test_what_routes_found_online_is_merged_as_the_table_is(requests: list[dict[str, list[int]]], size: int) -> None:
    found = []
    for name in "abc":
        items = np.full((len(requests), 8), NOTHING, np.int32)
        for row, routes in zip(items, requests, strict=True):
            row[: len(routes[name])] = routes[name]
        found.append(Found(items, np.zeros(items.shape, np.float32)))
    request, item, place, rank = packed(found)
    kept, position = snake(request, item, place, rank, limits=limits_of("abc", {"b": 2}), size=size)
    table = snake_merge(frame(*requests), ["a", "b", "c"], size=size, quota={"b": 2})
    assert request[kept].tolist() == table["request"].to_list()
    assert item[kept].tolist() == table["item"].to_list()
    assert position.tolist() == table["position"].to_list()
    assert ["abc"[one] for one in place[kept]] == table["route"].to_list()
    assert rank[kept].tolist() == table["rank"].to_list()
