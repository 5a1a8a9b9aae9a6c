from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import cli
from pipeline.bench import splits
from pipeline.bench.splits import Parts, Split
from pipeline.recall import item_cf, markov
from pipeline.recall.route import Found
from pipeline.sources.lists import COLUMNS


def table(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def slow(lists: list[list[int]], wanted: list[set[int]], k: int) -> tuple[float, float]:
    recall = ndcg = 0.0
    for items, positives in zip(lists, wanted, strict=True):
        gains = [1 / math.log2(place + 2) for place, item in enumerate(items[:k]) if item in positives]
        recall += len(gains) / len(positives)
        ndcg += sum(gains) / sum(1 / math.log2(place + 2) for place in range(min(k, len(positives))))
    return recall / len(lists), ndcg / len(lists)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.permutations(range(1, 8)), st.integers(0, 7), st.sets(st.integers(1, 9), min_size=1)), min_size=1
    ),
    st.integers(1, 8),
)
def test_metrics_agree_with_loops(requests: list[tuple[list[int], int, set[int]]], k: int) -> None:
    lists = [items[:length] for items, length, _ in requests]
    wanted = [positives for *_, positives in requests]
    found = np.full((len(lists), 7), -1, np.int32)
    for row, items in enumerate(lists):
        found[row, : len(items)] = items
    asked = table([(10 * user, item, 0) for user, own in enumerate(wanted) for item in sorted(own)])
    judged = splits.judge(Found(found, np.zeros(found.shape, np.float32)), asked, k)
    np.testing.assert_allclose(judged, slow(lists, wanted, k))


def test_candidates_on_paper() -> None:
    one = Found(np.array([[5, 3], [3, -1]], np.int32), np.array([[4.0, 1.0], [2.0, 0.0]], np.float32))
    other = Found(np.array([[3, -1], [-1, -1]], np.int32), np.array([[0.5, 0.0], [0.0, 0.0]], np.float32))
    fitted = table([(1, 3, 0), (1, 5, 1), (2, 3, 0)])
    known = table([(1, 3, 0), (1, 5, 1), (2, 3, 0), (2, 4, 1), (2, 6, 2)])
    found = splits.candidates([one, other], Parts(fitted, known, table([(2, 5, 0), (1, 5, 0)])))
    assert found.request.tolist() == [0, 0, 1]
    assert found.item.tolist() == [3, 5, 3]
    log, log1p, nan = np.log, np.log1p, np.nan
    expected = [
        [1 / 4, log(1.0), -1, 1 / 2, 1, log(0.5), 0, 1, -1, 3 / 2, log1p(2), log1p(2)],
        [1, log(4.0), 1, 1, nan, nan, nan, nan, 1, 1, log1p(1), log1p(2)],
        [1, log(2.0), 0, 1, nan, nan, nan, nan, 0, 1, log1p(2), log1p(3)],
    ]
    np.testing.assert_allclose(found.features, expected, rtol=1e-6)


def world(users: int = 400) -> pl.DataFrame:
    """Each user walks 1 → 2 → … in one of two rings of items, from anywhere: what comes next is certain."""
    rows = []
    for user in range(1, users + 1):
        ring = 1 + 20 * (user % 2)
        rows += [(user, ring + (user * 7 + step) % 20, step) for step in range(6)]
    return table(rows)


def until(position: int) -> Parts:
    before = world().filter(pl.col("position") < position)
    return Parts(before, before, world().filter(pl.col("position") == position))


PLAN = Split(
    choose=lambda data: until(4),
    test=lambda data: Parts(until(4).fitted, until(5).known, until(5).wanted),
    cutoff=3,
    depth=10,
    routes={
        "item_cf": (item_cf, ({},)),
        "markov": (markov, ({"skips": 1, "popularity": 0.0}, {"skips": 1, "popularity": 5.0, "decay": 0.0})),
    },
)


def test_the_best_route_is_named_and_the_union_is_no_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(splits.SPLITS, "rings", PLAN)
    monkeypatch.setattr(splits, "RANKER", {**splits.RANKER, "min_data_in_leaf": 5, "num_threads": 1})
    figures = splits.bench("rings")
    metrics = ["single_recall@3", "single_ndcg@3", "union_recall@3", "union_ndcg@3"]
    assert list(figures) == [f"rings_{metric}" for metric in metrics]
    assert figures["rings_single_recall@3"] == 1.0
    assert figures["rings_union_ndcg@3"] >= 0.95
    assert "markov is the best single route" in capsys.readouterr().out


def test_a_fifth_of_each_user_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "gowalla").mkdir()
    lines = [" ".join(map(str, [user, *range(10 * (user + 1))])) for user in range(4)]
    (tmp_path / "gowalla" / "train.txt").write_text("\n".join(lines))
    (tmp_path / "gowalla" / "test.txt").write_text("0 99\n")
    parts = splits.part_of_gowalla(tmp_path)
    assert parts.wanted["user"].value_counts().sort("user").rows() == [(user + 1, 2 * (user + 1)) for user in range(4)]
    assert len(parts.known) + len(parts.wanted) == 100
    assert parts.known.join(parts.wanted, on=["user", "item"]).is_empty()
    assert splits.gowalla(tmp_path).wanted.rows() == [(1, 100, 0)]


def test_beauty_is_asked_with_one_event_more_than_is_fitted(tmp_path: Path) -> None:
    (tmp_path / "amazon-beauty").mkdir()
    (tmp_path / "amazon-beauty" / "Beauty.txt").write_text("1 5 6 7 8\n2 6 5 9\n")
    chosen, test = (read(tmp_path) for read in (splits.part_of_beauty, splits.beauty))
    assert chosen.fitted["item"].to_list() == [5]
    assert chosen.known["item"].to_list() == test.fitted["item"].to_list() == [5, 6, 6]
    assert chosen.wanted["item"].to_list() == [7, 5]
    assert test.known["item"].to_list() == [5, 6, 7, 6, 5]
    assert test.wanted["item"].to_list() == [8, 9]


@pytest.mark.parametrize("words", [["moon"], ["beauty", "users=3"], ["beauty", "--small"]])
def test_only_published_splits_are_taken_and_alone(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recfunnel", "bench", "recall", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "gowalla, beauty" in capsys.readouterr().err
