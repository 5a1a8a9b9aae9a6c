from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_worlds import asked

from pipeline.recall import neighbours
from pipeline.recall.neighbours import SimilarItems, Table
from pipeline.recall.route import NOTHING, Found

SIMILAR = sp.csr_array(np.array([[0, 0, 0, 0], [0, 0, 4, 1], [0, 2, 0, 8], [0, 0, 0, 0]], np.float32))


@pytest.fixture
def table(tmp_path: Path) -> SimilarItems:
    neighbours.save(SIMILAR, tmp_path)
    return SimilarItems(neighbours.load(tmp_path))


def listed(found: Found) -> list[list[tuple[int, float]]]:
    return [
        [(item, score) for item, score in zip(items, scores, strict=True) if item != NOTHING]
        for items, scores in zip(found.items.tolist(), found.scores.tolist(), strict=True)
    ]


def test_neighbours_of_the_latest_count_most(table: SimilarItems) -> None:
    found = listed(table.recall(asked([1, 2], [2, 1], [2], [3], [], [1, 99]), 5))
    half = 0.5**0.5
    assert found[0] == [(3, pytest.approx(8 + half))]
    assert found[1] == [(3, pytest.approx(8 * half + 1))]
    assert found[2] == [(3, 8), (1, 2)]
    assert found[3] == found[4] == []
    assert found[5] == [(2, pytest.approx(4 * half)), (3, pytest.approx(half))]


def test_what_was_taken_again_counts_once_and_by_its_newest_time(table: SimilarItems) -> None:
    assert listed(table.recall(asked([1, 2, 2]), 5)) == [[(3, pytest.approx(8 + 3**-0.5))]]


def test_only_the_last_fifty_count_but_all_that_was_taken_is_left_out(table: SimilarItems) -> None:
    assert listed(table.recall(asked([1] + [3] * 49), 5)) == [[(2, pytest.approx(4 * 50**-0.5))]]
    assert listed(table.recall(asked([1] + [3] * 50), 5)) == [[]]
    assert listed(table.recall(asked([3] + [2] * 50), 5)) == [[(1, 2)]]


def slow_recall(similar: np.ndarray, history: list[int], k: int) -> list[tuple[int, float]]:
    scores: dict[int, float] = {}
    seen: set[int] = set()
    for back, item in enumerate(history[::-1][:50], 1):
        for other in np.flatnonzero(similar[item]) if item not in seen else ():
            scores[other] = scores.get(other, 0.0) + float(similar[item, other]) / back**0.5
        seen.add(item)
    ranked = sorted((-np.float32(score), item) for item, score in scores.items() if item not in history)
    return [(item, -float(score)) for score, item in ranked[:k]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 19), max_size=8), min_size=1, max_size=4), st.integers(0, 9))
def test_agrees_with_loops_and_a_request_alone_is_answered_alike(histories: list[list[int]], seed: int) -> None:
    generator = np.random.default_rng(seed)
    similar = np.where(generator.random((20, 20)) < 0.3, generator.random((20, 20)), 0).astype(np.float32)
    sparse = sp.csr_array(similar)
    table = SimilarItems(Table(sparse.data, sparse.indices, sparse.indptr))
    together = table.recall(asked(*histories), 6)
    for number, history in enumerate(histories):
        alone = table.recall(asked(history), 6)
        assert listed(alone)[0] == listed(together)[number] == slow_recall(similar, history, 6)
