from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import calibration_curve

from pipeline.diagnostics.calibration import by_field, expected_calibration_error, field_error, reliability


def test_bins_on_paper():
    table = reliability(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8]), bins=2)
    assert table["rows"].to_list() == [2, 2]
    assert table["predicted"].to_list() == pytest.approx([0.2, 0.7])
    assert table["observed"].to_list() == [0.0, 1.0]
    assert expected_calibration_error(table) == pytest.approx((0.2 + 0.3) / 2)


def test_bins_are_scikit_learns():
    random = np.random.default_rng(0)
    p = random.random(1000)
    y = (random.random(1000) < p**2).astype(int)
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    table = reliability(y, p)
    np.testing.assert_allclose(table["observed"], observed)
    np.testing.assert_allclose(table["predicted"], predicted)


def test_an_honest_forecast_lies_inside_its_intervals():
    random = np.random.default_rng(1)
    p = random.random(20_000)
    table = reliability((random.random(20_000) < p).astype(int), p)
    inside = (table["low"] <= table["predicted"]) & (table["predicted"] <= table["high"])
    assert inside.sum() >= 8
    assert expected_calibration_error(table) < 0.02


def test_wilsons_interval_of_a_bin_without_positives_does_not_collapse():
    table = reliability(np.zeros(10), np.full(10, 0.1))
    assert table.height == 1
    assert table["low"][0] == 0
    assert table["high"][0] == pytest.approx(1.96**2 / (10 + 1.96**2))


def test_no_rows():
    table = reliability(np.array([]), np.array([]))
    assert table.is_empty()
    assert math.isnan(expected_calibration_error(table))


def test_by_field_on_paper():
    labels = np.array([1, 0, 1, 1, 0], np.int8)
    p = np.array([0.5, 0.5, 0.9, 0.7, 0.4], np.float64)
    table = by_field(labels, p, np.array([2, 2, 1, 1, 3]))
    assert table["code"].to_list() == [1, 2, 3]
    assert table["rows"].to_list() == [2, 2, 1]
    assert table["ratio"].to_list() == pytest.approx([0.8, 1.0, None])
    assert field_error(table) == pytest.approx((2 * 0.2 + 2 * 0.0) / 4)
    assert math.isnan(field_error(table.filter(pl.col("code") == 3)))
