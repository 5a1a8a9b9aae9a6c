from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ranking.diversity import RERANKERS, dpp, mmr

RIGHT, LEFT, UP, NEAR_RIGHT, NOTHING = [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.0, 0.0]


def reranked(name: str, scores: list[float], vectors: list[list[float]], k: int, weight: float) -> list[int]:
    return RERANKERS[name](np.array(scores), np.array(vectors), k, weight=weight).tolist()


def world(seed: int, items: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((items, width)).astype(np.float32)
    return generator.random(items).astype(np.float32), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scaled(scores: np.ndarray) -> list[float]:
    least, greatest = float(scores.min()), float(scores.max())
    return [(float(score) - least) / (greatest - least) for score in scores]


def slow_mmr(scores: np.ndarray, vectors: np.ndarray, k: int, weight: float) -> list[int]:
    worth, exact = scaled(scores), vectors.astype(float)
    chosen: list[int] = []
    while len(chosen) < k:
        gains = {
            item: (1 - weight) * worth[item]
            - weight * max((sum(exact[item] * exact[other]) for other in chosen), default=0.0)
            for item in range(len(scores))
            if item not in chosen
        }
        chosen.append(max(gains, key=gains.__getitem__))
    return chosen


def slow_dpp(scores: np.ndarray, vectors: np.ndarray, k: int, weight: float) -> list[int]:
    """By the determinants of L = diag(q) S diag(q) themselves; of independent items, since others have log det −∞."""
    quality = np.exp((1 - weight) / (2 * weight) * np.array(scaled(scores)))
    similar = (1 + vectors.astype(float) @ vectors.astype(float).T) / 2
    kernel = quality[:, None] * similar * quality
    chosen: list[int] = []
    while len(chosen) < k:
        rest = [item for item in range(len(scores)) if item not in chosen]
        chosen.append(max(rest, key=lambda item: np.linalg.slogdet(kernel[np.ix_(both := [*chosen, item], both)])[1]))
    return chosen


def test_mmr_on_paper() -> None:
    """After the best item, the second is worth .9 (1 − w) − .8 w and the third 0: they meet at w = 9/17."""
    scores, vectors = [3.0, 2.8, 1.0], [RIGHT, NEAR_RIGHT, UP]
    assert reranked("mmr", scores, vectors, 3, 0.52) == [0, 1, 2]
    assert reranked("mmr", scores, vectors, 3, 0.54) == [0, 2, 1]
    assert reranked("mmr", scores, vectors, 2, 0.54) == [0, 2]


def test_mmr_prefers_the_opposite_to_the_unrelated() -> None:
    assert reranked("mmr", [3, 1, 1], [RIGHT, UP, LEFT], 3, 0.1) == [0, 2, 1]


def test_dpp_on_paper() -> None:
    """S of the first two is .9, so the second adds .9 (1 − w) + w ln(1 − .81), the third w ln(1 − 0) = 0."""
    scores, vectors = [3.0, 2.8, 1.0], [RIGHT, NEAR_RIGHT, LEFT]
    meet = 0.9 / (0.9 - math.log(0.19))
    assert reranked("dpp", scores, vectors, 3, meet - 0.01) == [0, 1, 2]
    assert reranked("dpp", scores, vectors, 3, meet + 0.01) == [0, 2, 1]


def test_dpp_minds_all_items_above_and_mmr_only_the_nearest() -> None:
    """The third is .70 from both items above, the fourth .72 from one alone.

    With S of the two .5, a third whose S with them are a and b has d² = 1 − 4/3 (a² + b² − ab): .04 and .25.
    """
    vectors = [[1, 0, 0], [0, 1, 0], [0.7, 0.7, math.sqrt(0.02)], [0.72, 0, math.sqrt(1 - 0.72**2)]]
    assert reranked("mmr", [1, 1, 0, 0], vectors, 4, 0.9) == [0, 1, 2, 3]
    assert reranked("dpp", [1, 1, 0, 0], vectors, 4, 0.9) == [0, 1, 3, 2]


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mmr_agrees_with_loops(seed: int, weight: float) -> None:
    scores, vectors = world(seed, items=40, width=5)
    assert mmr(scores, vectors, 25, weight=weight).tolist() == slow_mmr(scores, vectors, 25, weight)


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dpp_agrees_with_determinants(seed: int, weight: float) -> None:
    scores, vectors = world(seed, items=40, width=16)
    assert dpp(scores, vectors, 12, weight=weight).tolist() == slow_dpp(scores, vectors, 12, weight)


def test_dpp_agrees_with_determinants_of_items_nearly_alike() -> None:
    scores, vectors = world(5, items=40, width=16)
    vectors = vectors[:1] + 0.05 * vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert dpp(scores, vectors, 12, weight=0.4).tolist() == slow_dpp(scores, vectors, 12, 0.4)


def test_once_the_rank_is_used_up_dpp_goes_on_by_score() -> None:
    scores, vectors = world(3, items=30, width=4)
    order = dpp(scores, vectors, 30, weight=0.9)
    assert (np.diff(scores[order[5:]]) < 0).all()
    assert (np.diff(scores[order[:5]]) > 0).any()


@pytest.mark.parametrize("name", RERANKERS)
def test_what_has_the_content_of_an_item_above_waits(name: str) -> None:
    vectors = [RIGHT, RIGHT, RIGHT, UP, LEFT]
    order = reranked(name, [5, 4, 3, 2, 1], vectors, 5, 0.6)
    assert set(order[:3]) == {0, 3, 4}
    assert order[3:] == [1, 2]


def test_items_of_one_content_cost_dpp_no_more_than_a_variance_of_1e_6() -> None:
    meet = 1 / (1 - math.log(1e-6))
    scores, vectors = [2.0, 2.0, 1.0], [RIGHT, RIGHT, LEFT]
    assert reranked("dpp", scores, vectors, 3, meet - 0.001) == [0, 1, 2]
    assert reranked("dpp", scores, vectors, 3, meet + 0.001) == [0, 2, 1]


def test_an_item_without_content_is_at_a_right_angle_to_all() -> None:
    """To the process it is half like each, and half like another without content: both add ln(1 − ¼) beside one."""
    assert reranked("mmr", [3, 1, 1], [RIGHT, NOTHING, UP], 3, 0.5) == [0, 1, 2]
    assert reranked("mmr", [3, 1, 1], [RIGHT, NEAR_RIGHT, NOTHING], 3, 0.5) == [0, 2, 1]
    assert reranked("dpp", [3, 1, 1], [NOTHING, NOTHING, LEFT], 3, 0.5) == [0, 1, 2]
    assert reranked("dpp", [3, 1, 1], [NOTHING, LEFT, NOTHING], 3, 0.5) == [0, 1, 2]
    assert reranked("dpp", [3, 1, 1], [RIGHT, NEAR_RIGHT, NOTHING], 3, 0.5) == [0, 2, 1]


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_lists_shorter_than_k_and_empty_ones(name: str, weight: float) -> None:
    assert sorted(reranked(name, [1, 2, 3], [RIGHT, UP, LEFT], 10, weight)) == [0, 1, 2]
    assert reranked(name, [1, 2], [RIGHT, UP], 0, weight) == []
    nothing = RERANKERS[name](np.empty(0, np.float32), np.empty((0, 4), np.float32), 3, weight=weight)
    assert nothing.shape == (0,)
    assert nothing.dtype == np.int64


@pytest.mark.parametrize("rerank", RERANKERS.values())
def test_only_the_order_and_the_gaps_of_scores_matter(rerank: Callable[..., np.ndarray]) -> None:
    scores, vectors = world(4, items=30, width=8)
    expected = rerank(scores, vectors, 30, weight=0.4)
    assert np.array_equal(rerank(scores * 1024 + 4096, vectors, 30, weight=0.4), expected)


lists = st.lists(st.tuples(st.floats(-1e6, 1e6), st.sampled_from([RIGHT, LEFT, UP, NEAR_RIGHT, NOTHING])), max_size=12)


@pytest.mark.parametrize("name", RERANKERS)
@given(one=lists, k=st.integers(0, 15))
def test_no_weight_is_the_order_of_the_scores(name: str, one: list[tuple[float, list[float]]], k: int) -> None:
    scores = [score for score, _ in one]
    vectors = np.array([vector for _, vector in one]).reshape(-1, 2)
    expected = sorted(range(len(one)), key=lambda place: -scores[place])[:k]
    assert RERANKERS[name](np.array(scores), vectors, k, weight=0.0).tolist() == expected


@pytest.mark.parametrize("name", RERANKERS)
@given(one=lists, k=st.integers(0, 15), weight=st.floats(0, 1))
def test_places_are_distinct_and_the_best_item_stays_first(
    name: str, one: list[tuple[float, list[float]]], k: int, weight: float
) -> None:
    vectors = np.array([vector for _, vector in one]).reshape(-1, 2)
    order = RERANKERS[name](np.array([score for score, _ in one]), vectors, k, weight=weight).tolist()
    assert len(set(order)) == len(order) == min(k, len(one))
    if order and weight < 0.99:
        assert one[order[0]][0] == max(score for score, _ in one)
