from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.diagnostics.drift import (
    Categories,
    Intervals,
    effective_size,
    grouped,
    psi,
    psi_by_chance,
    share_by_chance,
)

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 4), st.just(6)), elements=st.integers(0, 1000))


def twin(counts, reference) -> float:
    used = [(a + 0.5, b + 0.5) for a, b in zip(counts, reference, strict=True) if a or b]
    n, m = sum(a for a, _ in used), sum(b for _, b in used)
    return sum((a / n - b / m) * math.log((a / n) / (b / m)) for a, b in used)


def test_psi_on_paper():
    p, q = 0.5, 25.5 / 101
    expected = (p - q) * math.log(p / q) + (q - p) * math.log((1 - p) / (1 - q))
    assert psi([50, 50], [25, 75]) == pytest.approx(expected)
    assert expected == pytest.approx(0.2687, abs=1e-4)


def test_an_empty_bin_counts_half_a_row_and_one_that_is_empty_twice_not_at_all():
    p, q = (10.5 / 11, 0.5 / 11), (0.5 / 11, 10.5 / 11)
    assert psi([10, 0], [0, 10]) == pytest.approx(2 * (p[0] - q[0]) * math.log(p[0] / q[0]))
    assert psi([10, 0, 5], [3, 0, 8]) == pytest.approx(float(psi([10, 5], [3, 8])))
    assert psi([0, 0], [0, 0]) == 0


@given(COUNTS, arrays(np.int64, 6, elements=st.integers(0, 1000)))
def test_psi_is_its_slow_twin_symmetric_and_not_negative(counts, reference):
    found = psi(counts, reference)
    np.testing.assert_allclose(found, [twin(row, reference) for row in counts], atol=1e-12)
    np.testing.assert_allclose(found, psi(reference, counts), atol=1e-12)
    assert (found >= -1e-12).all()
    np.testing.assert_allclose(psi(counts, counts), 0)


@pytest.mark.parametrize(("n", "m"), [(200, 5_000), (2_000, 2_000)])
def test_without_drift_psi_is_what_the_docstring_says(n, m):
    random = np.random.default_rng(0)
    shares = np.full(10, 0.1)
    days, reference = random.multinomial(n, shares, 3_000), random.multinomial(m, shares, 3_000)
    found = psi(days, reference)
    assert found.mean() == pytest.approx(9 * (1 / n + 1 / m), rel=0.05)
    limit = psi_by_chance(days, reference, n, m)
    assert (found < limit).all()
    assert found.max() > limit[0] / 3


def test_a_sample_is_worth_its_keys():
    assert effective_size(np.arange(7)) == 7
    assert effective_size(np.repeat(np.arange(5), 20)) == 5
    assert effective_size(np.array([4, 4, 4, 9])) == pytest.approx(16 / 10)
    assert effective_size(np.empty(0, np.int32)) == 0


def test_shares_by_chance_on_paper():
    common = (10 + 30 + 1) / (100 + 100 + 2)
    expected = 4.753424 * math.sqrt(common * (1 - common) * 2 / 100)
    assert share_by_chance(0.1, 0.3, 100, 100) == pytest.approx(expected, rel=1e-5)


def test_common_codes_have_a_bin_each_and_the_rest_shares_one():
    bins = Categories.fit(np.array([5, 2, 60, 1, 132]))
    assert bins.common.tolist() == [4, 2, 1]
    assert bins.bin.tolist() == [0, 3, 2, 4, 1]
    assert bins.count(np.array([0, 3, 3, 4, 2, 2, 2])).tolist() == [1, 1, 3, 0, 2]


def test_a_value_that_many_rows_have_has_a_bin_for_itself():
    values = np.r_[np.zeros(600), np.linspace(1, 2, 400)].astype(np.float32)
    bins = Intervals.fit(values)
    assert bins.count(np.float32([-1, 0, 0, 0.5])).sum() == 4
    counts = grouped(bins.count(np.float32([-1, 0, 0, 0.5]))[None], bins.groups)[0]
    assert counts[:2].tolist() == [1, 2]


def test_a_constant_is_told_from_what_lies_above_and_below():
    bins = Intervals.fit(np.full(50, 3, np.float32))
    counts = grouped(bins.count(np.float32([2, 3, 3, 3, 4, 4, np.nan]))[None], bins.groups)[0]
    assert counts.tolist() == [1, 3, 2, 1]


def test_a_number_that_is_always_missing_has_bins():
    bins = Intervals.fit(np.full(4, np.nan, np.float32))
    assert bins.count(np.float32([1, np.nan, np.nan])).tolist() == [1, 2]
    assert bins.unknown == 1


def test_deciles_have_a_tenth_each():
    values = np.random.default_rng(0).permutation(1000).astype(np.float32)
    bins = Intervals.fit(values)
    counts = grouped(bins.count(np.sort(values))[None], bins.groups)[0]
    assert counts.tolist() == [100] * 10 + [0]


@given(
    st.lists(st.floats(-3, 3, width=32) | st.just(math.nan) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60),
    st.lists(st.floats(-4, 4, width=32) | st.just(math.nan), max_size=30),
)
def test_intervals_count_like_a_loop(fitted, asked):
    bins = Intervals.fit(np.array(fitted, np.float32))
    values = np.sort(np.array(asked, np.float32))
    counts = bins.count(values)
    naive = [0] * bins.size
    for value in values:
        naive[-1 if np.isnan(value) else int((bins.edges < value).sum())] += 1
    assert counts.tolist() == naive
    for cuts, groups in ((bins.deciles, bins.groups), (bins.bars, bins.pictured)):
        summed = grouped(counts[None], groups)[0]
        expected = [0] * (len(cuts) + 2)
        for value in values:
            expected[-1 if np.isnan(value) else int((cuts < value).sum())] += 1
        assert summed.tolist() == expected
