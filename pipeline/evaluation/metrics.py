"""Metrics of probabilities and of ranked lists, in numpy.

A value that is not defined (the AUC of one class, the recall of no positives) is NaN, never a stand-in such as 0.5.

Lists are judged by the ranks of their held-out positives alone: `rank` (P,) holds for each positive its place in the
list from 1, or infinity where the list lacks it; `request` (P,) holds whose positive it is, in 0 … `count`-1.
"""

from __future__ import annotations

import numpy as np

EPSILON = 1e-7


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive outscores a negative, ties counted half; NaN without both classes."""
    return float(segment_auc(labels, scores, np.zeros(len(labels), np.int64), 1)[0])


def segment_auc(labels: np.ndarray, scores: np.ndarray, segment: np.ndarray, count: int) -> np.ndarray:
    """AUC (count,) within each segment of (N,) rows, from mid-ranks; NaN without both classes or with a NaN score."""
    label, rank = np.asarray(labels) > 0, _mid_ranks(scores, segment)
    positives = np.bincount(segment[label], minlength=count).astype(np.float64)
    negatives = np.bincount(segment[~label], minlength=count).astype(np.float64)
    above = np.bincount(segment[label], rank[label], minlength=count) - positives * (positives + 1) / 2
    defined = (positives > 0) & (negatives > 0) & (np.bincount(segment, np.isnan(scores), minlength=count) == 0)
    return _divide(above, positives * negatives, defined)


def gauc(labels: np.ndarray, scores: np.ndarray, user: np.ndarray) -> float:
    """Mean AUC within users, weighted by their impressions, over users with both classes (Zhu et al. 2017)."""
    users, segment, impressions = np.unique(user, return_inverse=True, return_counts=True)
    values = segment_auc(labels, scores, segment, len(users))
    defined = ~np.isnan(values)
    return float(np.average(values[defined], weights=impressions[defined])) if defined.any() else float("nan")


def spearman(values: np.ndarray, scores: np.ndarray) -> float:
    """Correlation of the ranks, ties at their middle; NaN where one of them is constant."""
    return float(_segment_spearman(values, scores, np.zeros(len(values), np.int64), 1)[0])


def user_spearman(values: np.ndarray, scores: np.ndarray, user: np.ndarray) -> float:
    """Mean rank correlation within users, weighted by their impressions, over users for whom it is defined."""
    users, segment, impressions = np.unique(user, return_inverse=True, return_counts=True)
    correlations = _segment_spearman(values, scores, segment, len(users))
    defined = ~np.isnan(correlations)
    return float(np.average(correlations[defined], weights=impressions[defined])) if defined.any() else float("nan")


def duration_metrics(name: str, seconds: np.ndarray, expected: np.ndarray, user: np.ndarray) -> dict[str, float]:
    """How well expected seconds (N,) order the seconds watched, over all rows and within users, and Σ expected / Σ
    watched; by the duration's name, over the rows whose seconds are known."""
    known = ~np.isnan(seconds)
    seconds, expected, user = seconds[known], expected[known], user[known]
    return {
        f"spearman_{name}": spearman(seconds, expected),
        f"user_spearman_{name}": user_spearman(seconds, expected, user),
        f"ratio_{name}": calibration_ratio(seconds, expected),
    }


def _segment_spearman(values: np.ndarray, scores: np.ndarray, segment: np.ndarray, count: int) -> np.ndarray:
    """Pearson correlation (count,) of the centred mid-ranks within each segment of (N,) rows."""
    sizes = np.bincount(segment, minlength=count)
    one, other = (_mid_ranks(column, segment) - (sizes[segment] + 1) / 2 for column in (values, scores))
    squares = np.bincount(segment, one**2, count) * np.bincount(segment, other**2, count)
    return _divide(np.bincount(segment, one * other, count), np.sqrt(squares), squares > 0)


def _mid_ranks(values: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Each row's rank from 1 among those of its segment (N,), ties at their middle."""
    order = np.lexsort((values, segment))
    of, sorted_values = segment[order], np.asarray(values)[order]
    first = np.flatnonzero(np.r_[True, (of[1:] != of[:-1]) | (sorted_values[1:] != sorted_values[:-1])][: len(of)])
    end = np.r_[first[1:], len(of)][: len(first)]
    ranks = np.empty(len(of))
    ranks[order] = np.repeat((first + 1 + end) / 2, end - first) - np.searchsorted(of, of)
    return ranks


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood of 0/1 labels; NaN of no rows."""
    if len(labels) == 0:
        return float("nan")
    p = np.clip(np.asarray(probabilities, np.float64), EPSILON, 1 - EPSILON)
    return float(-np.where(np.asarray(labels) > 0, np.log(p), np.log1p(-p)).mean())


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Σp / Σy: above one the model promises too much; NaN without positives."""
    positives = float(np.sum(labels, dtype=np.float64))
    return float(np.sum(probabilities, dtype=np.float64)) / positives if positives else float("nan")


def recall_at(rank: np.ndarray, request: np.ndarray, count: int, k: float) -> np.ndarray:
    """Share (count,) of each request's positives among the first k of its list."""
    return _share(np.bincount(request[rank <= k], minlength=count), np.bincount(request, minlength=count))


def hit_at(rank: np.ndarray, request: np.ndarray, count: int, k: float) -> np.ndarray:
    """1 where any positive of the request is among the first k, else 0: (count,)."""
    return _share(np.bincount(request[rank <= k], minlength=count) > 0, np.bincount(request, minlength=count) > 0)


def ndcg_at(rank: np.ndarray, request: np.ndarray, count: int, k: int) -> np.ndarray:
    """Binary NDCG@k (count,): the ideal list begins with all the request's positives (Järvelin & Kekäläinen 2002)."""
    found = rank <= k
    gained = np.bincount(request[found], 1 / np.log2(1 + rank[found]), minlength=count)
    ideal = np.r_[0.0, np.cumsum(1 / np.log2(2 + np.arange(k)))]
    return _share(gained, ideal[np.minimum(np.bincount(request, minlength=count), k)])


def reciprocal_rank(rank: np.ndarray, request: np.ndarray, count: int) -> np.ndarray:
    """1 / rank (count,) of each request's first positive, 0 where the list has none; its mean is the MRR."""
    best = np.zeros(count)
    np.maximum.at(best, request, 1 / rank)
    return _share(best, np.bincount(request, minlength=count) > 0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return _divide(part, whole, whole > 0)


def _divide(numerator: np.ndarray, denominator: np.ndarray, defined: np.ndarray) -> np.ndarray:
    result = np.full(len(defined), np.nan)
    np.divide(numerator, denominator, out=result, where=defined)
    return result
