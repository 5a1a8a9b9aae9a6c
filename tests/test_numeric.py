from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import numeric


def test_log1p_keeps_the_sign_and_replaces_what_is_not_finite():
    encoded = numeric.log1p([0, np.e - 1, 1 - np.e, np.nan, np.inf])
    np.testing.assert_allclose(encoded, [0, 1, -1, 0, 0], atol=1e-7)


def test_buckets_hold_equal_shares():
    quantiles = numeric.fit_quantiles([1, 2, 3, 4, 5, 6, 7, 8, np.nan], 4)
    assert quantiles.tolist() == [2, 4, 6]
    assert numeric.bucket([0, 2, 2.5, 4, 7, 100, np.nan, -np.inf], quantiles).tolist() == [1, 1, 2, 2, 4, 4, 0, 0]


def test_buckets_of_a_constant_or_empty_column():
    assert numeric.bucket([5, 6, np.nan], numeric.fit_quantiles([5, 5, 5], 8)).tolist() == [1, 2, 0]
    assert numeric.bucket([5, np.nan], numeric.fit_quantiles([np.nan], 8)).tolist() == [1, 0]


NUMBERS = st.lists(
    st.integers(-5, 5).map(float) | st.sampled_from([np.nan, np.inf, -np.inf, 0.1]), min_size=1, max_size=60
)


@given(NUMBERS, st.integers(2, 9), st.sampled_from([np.float32, np.float64]))
def test_quantiles_are_the_least_values_with_their_share_below_or_at_them(values, parts, dtype):
    array = np.array(values, dtype)
    finite = [float(value) for value in array if np.isfinite(value)]
    expected = {
        min(cut for cut in finite if parts * sum(value <= cut for value in finite) >= part * len(finite))
        for part in range(1, parts)
        if finite
    }
    assert numeric.fit_quantiles(array, parts).tolist() == sorted(expected)


@given(NUMBERS, st.lists(st.integers(-5, 5), unique=True, max_size=11).map(sorted), st.sampled_from([0, 5, 99]))
def test_a_bucket_counts_the_cuts_below(values, cuts, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numeric, "FEW_CUTS", few)
        patch.setattr(numeric, "BLOCK", 7)
        codes = numeric.bucket(values, np.array(cuts, np.float64))
    assert codes.dtype == np.int32
    assert codes.tolist() == [1 + sum(cut < value for cut in cuts) if np.isfinite(value) else 0 for value in values]


def test_cdf_is_the_share_at_or_below():
    support, shares = numeric.fit_cdf([10, 20, 20, 40])
    np.testing.assert_allclose(
        numeric.cdf([0, 10, 15, 20, 40, 99, np.nan], support, shares), [0, 0.25, 0.5, 0.75, 1, 1, 0.5]
    )
    assert numeric.cdf([1, 2], *numeric.fit_cdf([])).tolist() == [0.5, 0.5]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_cdf_is_monotone_and_exact_at_the_fitted_values(values):
    support, shares = numeric.fit_cdf(values)
    encoded = numeric.cdf(np.sort(values), support, shares)
    assert (np.diff(encoded) >= 0).all()
    expected = [np.mean(np.asarray(values) <= value) for value in np.sort(values)]
    np.testing.assert_allclose(encoded, expected, rtol=1e-6)


def test_a_shrunk_rate_on_paper():
    rates = numeric.shrink(np.array([0.0, 3.0]), np.array([0.0, 6.0]), 1.0, 4.0)
    np.testing.assert_allclose(rates, [0.25, 0.4])


def test_fit_rate_finds_the_strength_of_a_beta_binomial():
    random = np.random.default_rng(0)
    shows = random.integers(1, 20, 200_000)
    positives = random.binomial(shows, random.beta(2, 8, len(shows)))
    a, b = numeric.fit_rate(positives, shows)
    assert a / b == pytest.approx(0.2, abs=0.005)
    assert b == pytest.approx(10, rel=0.1)


def test_fit_rate_trusts_the_mean_when_keys_do_not_differ():
    shows = np.full(1_000, 50)
    a, b = numeric.fit_rate(np.full(1_000, 5), shows)
    assert (a, b) == (100.0, 1_000.0)


@pytest.mark.parametrize(("positives", "shows"), [([], []), ([0, 0], [3, 0]), ([2, 3], [2, 3]), ([0, 0], [0, 0])])
def test_fit_rate_without_evidence_is_a_rate_between_0_and_1(positives, shows):
    a, b = numeric.fit_rate(positives, shows)
    assert 0 < a < b == 1


def test_fit_rate_of_single_impressions_trusts_the_mean():
    assert numeric.fit_rate([1, 0, 0, 0], [1, 1, 1, 1]) == (250.0, 1_000.0)


def test_keys_shown_once_at_another_rate_do_not_hide_the_differences_of_the_others():
    random = np.random.default_rng(0)
    shows = np.repeat([1, 4], 100_000)
    rates = np.where(shows == 1, 0.05, random.beta(2, 4, len(shows)))
    _, b = numeric.fit_rate(random.binomial(shows, rates), shows)
    assert b == pytest.approx(6, rel=0.1)


def test_a_rate_of_pairs_that_many_keys_share():
    positives, shows, keys = np.array([0, 1, 3, 2]), np.array([4, 5, 6, 2]), np.array([7, 1, 3, 2])
    repeated = numeric.fit_rate(np.repeat(positives, keys), np.repeat(shows, keys))
    np.testing.assert_allclose(numeric.fit_rate(positives, shows, keys), repeated, rtol=1e-12)
    assert repeated[1] < numeric.MAXIMUM_STRENGTH
