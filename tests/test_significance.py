from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation.significance import Interval, paired_bootstrap


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        sample = random.normal(0.3, 1.0, 80)
        interval = paired_bootstrap(sample, np.arange(80), resamples=300, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


def test_it_agrees_with_the_normal_interval_of_a_large_sample():
    sample = np.random.default_rng(1).normal(1.0, 2.0, 4000)
    interval = paired_bootstrap(sample, np.arange(4000), resamples=1000)
    half = 1.96 * sample.std() / math.sqrt(4000)
    assert interval.mean == pytest.approx(sample.mean())
    assert interval.low == pytest.approx(sample.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(sample.mean() + half, abs=0.15 * half)


def test_a_users_requests_stay_together():
    """Ten copies of each user's value hold no more than the value: the interval must not shrink."""
    value = np.random.default_rng(2).normal(0, 1, 50)
    alone = paired_bootstrap(value, np.arange(50), resamples=400)
    copies = paired_bootstrap(np.repeat(value, 10), np.repeat(np.arange(50), 10), resamples=400)
    naive = paired_bootstrap(np.repeat(value, 10), np.arange(500), resamples=400)
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_it_is_the_plain_loop():
    difference, unit = np.array([1.0, 3.0, -2.0, 0.5]), np.array([7, 7, 8, 9])
    interval = paired_bootstrap(difference, unit, resamples=50, seed=3)
    weights = np.random.default_rng(3).multinomial(3, [1 / 3] * 3, size=50)
    means = []
    for weight in weights:
        drawn = [d for d, u in zip(difference, unit, strict=True) for _ in range(weight[u - 7])]
        means.append(sum(drawn) / len(drawn))
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_same_seed_same_interval():
    sample = np.random.default_rng(4).normal(size=30)
    first, again, other = (paired_bootstrap(sample, np.arange(30), resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_verdicts():
    assert Interval(0.2, 0.1, 0.3).verdict == "beats"
    assert Interval(-0.2, -0.3, -0.1).verdict == "does not beat"
    assert Interval(0.0, -0.1, 0.1).verdict == "undecided"
    assert Interval(0.0, 0.0, 0.0).verdict == "undecided"


def test_nothing_compared_is_undecided():
    interval = paired_bootstrap(np.array([]), np.array([]), resamples=10)
    assert math.isnan(interval.mean)
    assert interval.verdict == "undecided"
