from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recall import value
from pipeline.recall.merge import limits_of, snake_merge
from pipeline.recall.value import Judged, best_quotas, quota_gain, route_values

ROUTES = ("a", "b", "c")
Lists = dict[str, list[int]]
Frames = tuple[pl.DataFrame, pl.DataFrame]


def frames(requests: list[Lists], wanted: list[list[int]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = [
        (request, item, route, rank)
        for request, routes in enumerate(requests)
        for route, items in routes.items()
        for rank, item in enumerate(items, 1)
    ]
    schema = {"request": pl.UInt32, "item": pl.Int32, "route": pl.String, "rank": pl.Int32}
    candidates = pl.DataFrame(rows, schema=schema, orient="row").with_columns(score=pl.lit(0.0, pl.Float32))
    pairs = [(request, item) for request, items in enumerate(wanted) for item in items]
    return candidates, pl.DataFrame(pairs, schema={"request": pl.UInt32, "item": pl.Int32}, orient="row")


def judged(requests: list[Lists], wanted: list[list[int]]) -> Judged:
    return Judged.of(*frames(requests, wanted), ROUTES)


def test_worth_on_paper() -> None:
    """Request 0: a alone has item 2, a and b have item 1. Request 1: b has its only item, a has another one."""
    both = judged([{"a": [1, 2], "b": [1]}, {"a": [3], "b": [5]}], [[1, 2], [5]])
    table = route_values(both, ("a", "b"), {}, 2, np.array([7, 8]), ["home", "feed"])
    worth = {row[:3]: row[3:] for row in table.select("of", "domain", "route", "with", "without", "difference").rows()}
    assert worth["union", "all", "a"] == pytest.approx((1.0, 0.75, 0.25))
    assert worth["union", "all", "b"] == pytest.approx((1.0, 0.5, 0.5))
    assert worth["union", "home", "b"] == pytest.approx((1.0, 1.0, 0.0))
    assert worth["union", "feed", "b"] == pytest.approx((1.0, 0.0, 1.0))
    shorter = route_values(both, ("a", "b"), {}, 1, np.array([7, 8]), ["home", "feed"])
    row = shorter.filter(of="merge", domain="all", route="a").row(0, named=True)
    assert (row["with"], row["without"], row["difference"]) == pytest.approx((0.25, 0.75, -0.5))
    assert row["low"] <= row["difference"] <= row["high"]


lists = st.fixed_dictionaries({name: st.lists(st.integers(1, 12), unique=True, max_size=6) for name in ROUTES})
wanted = st.lists(st.integers(1, 14), unique=True, min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(st.tuples(lists, wanted), min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([None, 0, 2]))
def test_positions_are_those_of_the_merge(world: list[tuple[Lists, list[int]]], size: int, without: int | None) -> None:
    requests, held_out = [one for one, _ in world], [one for _, one in world]
    candidates, positives = frames(requests, held_out)
    left = [route for place, route in enumerate(ROUTES) if place != without]
    quota = {"a": 1, "b": 2}
    if without is not None:
        candidates = candidates.filter(pl.col("route").is_in(left))
    limits = limits_of(ROUTES, quota)
    found = judged(requests, held_out).positions(limits, without)
    told = snake_merge(candidates, ROUTES, size=size, quota=quota)
    expected = positives.join(told, on=["request", "item"], how="left", maintain_order="left")["position"]
    assert [None if position > size else position for position in found.tolist()] == expected.to_list()


def world(requests: int, good: str, generator: np.random.Generator) -> Frames:
    """Each route gives ten items of its own; the only positive is the `good` one's, anywhere in its list."""
    given_, held_out = [], []
    for _ in range(requests):
        items = generator.permutation(1_000)[:30].reshape(3, 10).tolist()
        given_.append(dict(zip(ROUTES, items, strict=True)))
        held_out.append([given_[-1][good][generator.integers(10)]])
    return frames(given_, held_out)


def test_the_only_good_route_gets_all_the_room() -> None:
    best = world(200, "b", np.random.default_rng(0))
    quota = best_quotas(*best, ROUTES, per_route=10, size=10)
    assert quota == {"a": 0, "c": 0}
    told = Judged.of(*best, ROUTES)
    users = np.arange(200)
    gain = quota_gain(told, ROUTES, quota, 10, users)
    even = np.mean(told.positions(limits_of(ROUTES, {})) <= 10)
    assert gain.mean == pytest.approx(1 - even)
    assert gain.low > 0.5


def test_two_routes_share_the_room_where_each_knows_half() -> None:
    """a's first twelve hold its positive, b's first eight hold the other, and there is room for twenty."""
    generator = np.random.default_rng(1)
    given_, held_out = [], []
    for _ in range(400):
        items = generator.permutation(1_000)[:60].reshape(3, 20).tolist()
        given_.append(dict(zip(ROUTES, items, strict=True)))
        held_out.append([items[0][generator.integers(12)], items[1][generator.integers(8)]])
    shared = judged(given_, held_out)
    quota = best_quotas(*frames(given_, held_out), ROUTES, per_route=20, size=20)
    position = shared.positions(limits_of(ROUTES, quota))
    assert np.mean(position <= 20) == 1
    assert quota["c"] == 0


def test_chance_alone_moves_no_quota() -> None:
    """Positives are of no route in particular: whatever is chosen on some is worth nothing on others."""
    generator = np.random.default_rng(2)
    given_, held_out = [], []
    for _ in range(300):
        items = generator.permutation(60)[:30].reshape(3, 10).tolist()
        given_.append(dict(zip(ROUTES, items, strict=True)))
        held_out.append([int(generator.integers(60))])
    quota = best_quotas(*frames(given_, held_out), ROUTES, per_route=10, size=15)
    gain = quota_gain(judged(given_[::-1], held_out), ROUTES, quota, 15, np.arange(300))
    assert gain.low < 0 < gain.high


def test_a_sample_of_the_requests_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world(200, "b", np.random.default_rng(0))
    monkeypatch.setattr(value, "REQUESTS", 50)
    some = value._sample(*whole, ROUTES, seed=3)
    assert len(np.unique(some.owner)) == 50
    assert len(some.place) == 50 * 30
    assert best_quotas(*whole, ROUTES, per_route=10, size=10) == {"a": 0, "c": 0}


def test_nothing_recalled() -> None:
    nothing = judged([{"a": [1], "b": [], "c": []}], [[5]])
    assert best_quotas(*frames([{"a": [1]}], [[5]]), ROUTES, per_route=10, size=10) == {}
    table = route_values(nothing, ROUTES, {}, 10, np.array([1]), ["home"])
    assert table["difference"].to_list() == [0.0] * 12
