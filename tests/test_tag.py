from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from route_tables import alone_as_in_company, described, recalled, same_bytes

from pipeline.recall import tag
from pipeline.recall.attributes import demand

TAGS = [["a", "b"], ["a"], ["b"], ["c"], [], None]


def test_on_paper(tmp_path: Path) -> None:
    """User 1 took item 1 (tags a, b); item 2 has a, item 3 b: two of six items each, so equally rare."""
    taken = described(tmp_path, {"name": ["x"]}, {"tags": TAGS}, taken=[(1, 1)])
    (found,) = recalled(tag, taken, tmp_path / "tag", [1])
    wanted = demand(taken)
    rare = math.log(1 + 6 / 2)
    assert found == [(item, pytest.approx(rare**2 / math.sqrt(2) * wanted[item], rel=1e-5)) for item in (2, 3)]


def test_later_events_count_more_and_rare_tags_too(tmp_path: Path) -> None:
    taken = described(tmp_path, {"name": ["x"]}, {"tags": [["a"], ["b"], ["a"], ["b"], ["b"]]}, taken=[(1, 1), (1, 2)])
    (found,) = recalled(tag, taken, tmp_path / "tag", [1])
    weights = {"a": math.log(1 + 5 / 2) ** 2 / math.sqrt(2), "b": math.log(1 + 5 / 3) ** 2}
    wanted = demand(taken)
    assert dict(found) == pytest.approx(
        {3: weights["a"] * wanted[3], 4: weights["b"] * wanted[4], 5: weights["b"] * wanted[5]}
    )


def test_the_profile_speaks_for_whom_nothing_is_known_of(tmp_path: Path) -> None:
    users = {"tags": [["c"], ["c"], None, ["never"]]}
    taken = described(tmp_path, users, {"tags": TAGS}, taken=[(2, 1), (2, 3)])
    found = recalled(tag, taken, tmp_path / "tag", [1, 2, 3, 4, 0, 99])
    assert [[item for item, _ in one] for one in found] == [[4], [4, 2], [], [], [], []]


def test_only_available_items_and_the_best_of_each_tag(tmp_path: Path) -> None:
    taken = described(tmp_path, {"tags": [["a"]]}, {"tags": [["a"]] * 5}, taken=[(9, 3), (9, 3), (9, 4)])
    some = replace(taken, items=taken.items.filter(pl.col("item") > 1))
    (found,) = recalled(tag, some, tmp_path / "tag", [1], most=3)
    assert [item for item, _ in found] == [3, 4, 2]


def test_items_without_tags_recall_nothing_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = described(tmp_path, {"name": ["x"]}, {"category": ["a", "b"]}, taken=[(1, 1)])
    assert recalled(tag, taken, tmp_path / "tag", [1]) == [[]]
    assert "items have no tags" in caplog.text


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=3, unique=True), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 8)), max_size=15),
)
def test_agrees_with_loops(
    tmp_path_factory: pytest.TempPathFactory, tags: list[list[str]], pairs: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("tag")
    pairs = [(user, item) for user, item in pairs if item <= len(tags)]
    texts = pl.Series(tags, dtype=pl.List(pl.String))
    taken = described(folder, {"name": ["x", "y", "z"]}, {"tags": texts}, taken=pairs)
    found = recalled(tag, taken, folder / "tag", [1, 2, 3], k=20)
    wanted = demand(taken)
    rare = {one: math.log(1 + len(tags) / sum(one in some for some in tags)) for one in set().union(*tags)}
    for user in (1, 2, 3):
        own = [item for other, item in pairs if other == user][::-1]
        liked: dict[str, float] = {}
        for item in set(own):
            for one in tags[item - 1]:
                liked[one] = liked.get(one, 0) + rare[one] / math.sqrt((own.index(item) + 1) * len(tags[item - 1]))
        scores = {
            item: wanted[item] * sum(liked.get(one, 0) * rare[one] for one in some) / math.sqrt(len(some))
            for item, some in enumerate(tags, 1)
            if item not in own and liked.keys() & set(some)
        }
        assert dict(found[user - 1]) == pytest.approx(scores, rel=1e-4)
        assert np.all(np.diff([score for _, score in found[user - 1]]) <= 0)


def test_alone_as_in_company_and_the_same_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tags = [[f"t{number}" for number in random.choice(9, 3, replace=False)] for _ in range(60)]
    pairs = [
        (int(user), int(item))
        for user, item in zip(random.integers(1, 20, 200), random.integers(1, 61, 200), strict=True)
    ]
    taken = described(tmp_path, {"tags": [["t1"]] * 20}, {"tags": tags}, taken=pairs)
    for name in ("one", "other"):
        recalled(tag, taken, tmp_path / name, [1])
    same_bytes(tmp_path / "one", tmp_path / "other")
    alone_as_in_company(tag, taken, tmp_path / "one", [*range(21), 77])


def test_nothing_of_what_is_published_later_is_known(tmp_path: Path) -> None:
    """Tags that later items have are as rare as the available items make them."""
    items = {"tags": [["a"], ["a", "b"], ["b"]]}
    before = described(tmp_path, {"name": ["x"]}, dict(items), taken=[(1, 1)])
    (tmp_path / "later").mkdir()
    more = {"tags": [*items["tags"], ["a"], ["a", "c"]]}
    after = described(tmp_path / "later", {"name": ["x"]}, more, taken=[(1, 1)])
    after = replace(after, items=after.items.filter(pl.col("item") <= 3))
    expected = recalled(tag, before, tmp_path / "tag", [1])
    assert len(expected[0]) == 1
    assert recalled(tag, after, tmp_path / "later" / "tag", [1]) == expected
