from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from pipeline.evaluation.metrics import (
    auc,
    calibration_ratio,
    duration_metrics,
    gauc,
    hit_at,
    log_loss,
    ndcg_at,
    recall_at,
    reciprocal_rank,
    segment_auc,
    spearman,
    user_spearman,
)

ABSENT = np.inf

rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9])), min_size=1, max_size=60
)


def test_auc_counts_pairs_and_half_of_the_ties():
    assert auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75
    assert auc(np.array([0, 1]), np.array([0.5, 0.5])) == 0.5
    assert auc(np.array([1, 0]), np.array([0.1, 0.2])) == 0.0


@given(rows)
def test_auc_is_scikit_learns(rows):
    _, labels, scores = map(np.array, zip(*rows, strict=True))
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert math.isnan(auc(labels, scores))


def test_spearman_on_paper():
    """Differences of the ranks 1 and −1 on two of four: 1 − 6 · 2 / (4 · 15)."""
    assert spearman(np.array([3.0, 9.0, 27.0, 81.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert spearman(np.array([1.0, 2.0]), np.array([5.0, 0.0])) == pytest.approx(-1)
    assert math.isnan(spearman(np.array([1.0, 1.0]), np.array([0.0, 5.0])))


def test_the_metrics_of_a_duration_leave_out_what_is_unknown():
    told = duration_metrics("watch", np.array([2.0, np.nan, 4.0]), np.array([1.0, 100.0, 2.0]), np.array([7, 7, 7]))
    assert told == pytest.approx({"spearman_watch": 1, "user_spearman_watch": 1, "ratio_watch": 0.5})


@given(rows)
def test_user_spearman_is_the_loop_over_users_with_scipy(rows):
    users, seconds, scores = map(np.array, zip(*rows, strict=True))
    seconds = seconds * scores[::-1]
    total = weight = 0.0
    for user in set(users):
        mine = users == user
        if len(set(seconds[mine])) > 1 and len(set(scores[mine])) > 1:
            total += mine.sum() * spearmanr(seconds[mine], scores[mine]).statistic
            weight += mine.sum()
    expected = total / weight if weight else math.nan
    assert user_spearman(seconds, scores, users) == pytest.approx(expected, nan_ok=True)


@given(rows)
def test_gauc_is_the_loop_over_users(rows):
    users, labels, scores = map(np.array, zip(*rows, strict=True))
    total = weight = 0.0
    for user in set(users):
        mine = users == user
        if len(set(labels[mine])) == 2:
            total += mine.sum() * roc_auc_score(labels[mine], scores[mine])
            weight += mine.sum()
    expected = total / weight if weight else float("nan")
    assert gauc(labels, scores, users) == pytest.approx(expected, nan_ok=True)


def test_undefined_is_nan_and_never_a_half():
    nothing = np.array([])
    assert math.isnan(auc(nothing, nothing))
    assert math.isnan(auc(np.array([1, 1]), np.array([0.1, 0.9])))
    assert math.isnan(auc(np.array([0, 1]), np.array([0.1, np.nan])))
    assert math.isnan(gauc(np.array([1, 0]), np.array([0.1, 0.9]), np.array([1, 2])))
    assert math.isnan(log_loss(nothing, nothing))
    assert math.isnan(calibration_ratio(np.array([0, 0]), np.array([0.1, 0.2])))


def test_a_segment_without_rows_has_no_auc():
    values = segment_auc(np.array([0, 1]), np.array([0.1, 0.2]), np.array([2, 2]), 4)
    np.testing.assert_array_equal(values, [np.nan, np.nan, 1.0, np.nan])


def test_log_loss_is_scikit_learns_and_bounded():
    labels, p = np.array([0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.6])
    assert log_loss(labels, p) == pytest.approx(sklearn_log_loss(labels, p))
    assert log_loss(np.array([1]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_calibration_ratio_is_promise_over_fact():
    assert calibration_ratio(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.5, 1.0])) == 1.25


def test_list_metrics_on_paper():
    rank = np.array([1, 3, ABSENT, 2, ABSENT])
    request = np.array([0, 0, 0, 1, 2])
    np.testing.assert_allclose(recall_at(rank, request, 4, 2), [1 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(recall_at(rank, request, 4, 3), [2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(hit_at(rank, request, 4, 1), [1, 0, 0, np.nan])
    np.testing.assert_allclose(reciprocal_rank(rank, request, 4), [1, 1 / 2, 0, np.nan])
    first = (1 + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2)
    np.testing.assert_allclose(ndcg_at(rank, request, 4, 3), [first, 1 / math.log2(3), 0, np.nan])


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(1, 40))
def test_list_metrics_are_the_loop(labels, k):
    relevant = np.array(labels)
    if not relevant.any():
        return
    rank = np.flatnonzero(relevant) + 1.0
    request = np.zeros(len(rank), np.int64)
    assert recall_at(rank, request, 1, k)[0] == pytest.approx(sum(labels[:k]) / sum(labels))
    assert hit_at(rank, request, 1, k)[0] == any(labels[:k])
    assert reciprocal_rank(rank, request, 1)[0] == 1 / (labels.index(True) + 1)
    expected = ndcg_score([relevant.astype(int)], [-np.arange(len(labels))], k=k)
    assert ndcg_at(rank, request, 1, k)[0] == pytest.approx(expected)
