from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.config import Split
from pipeline.features import split
from pipeline.lake import InputError

DAY = split.DAY


def test_slices_are_counted_from_the_end():
    times = np.array([0, 1, 8, 9, 10]) * DAY
    bounds = split.slices(times, Split(validation_days=1.5, test_days=1))
    end = 10 * DAY + 1
    assert bounds == {"begin": 0, "validation": end - 2.5 * DAY, "test": end - DAY, "end": end}
    assert split.slice_of(times, bounds).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("days", "setting", "named"),
    [
        ([0, 1, 9, 10], Split(validation_days=0.5, test_days=1.5), "validation"),
        ([9.5, 9.8, 10], Split(validation_days=1, test_days=0.1), "train"),
        ([9.5, 9.8, 10], Split(validation_days=1, test_days=2), "train"),
    ],
)
def test_an_empty_slice_is_named_with_its_dates(days, setting, named):
    with pytest.raises(InputError, match=rf"the {named} slice, 1970-01-\d\d \d\d:\d\d to 1970.*change split\."):
        split.slices((np.array(days) * DAY).astype(np.int64), setting)


def test_a_log_without_impressions():
    with pytest.raises(InputError, match="no shown impressions"):
        split.slices(np.empty(0, np.int64), Split())


def test_auc_agrees_with_sklearn():
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 20, 500), random.integers(0, 2, 500)
    assert split.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(split.auc(scores, np.ones(500)))


def test_a_feature_that_is_the_label_fails_whichever_way_it_points():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 400)
    honest = {"noise": random.random(400)}
    areas = split.single_feature_aucs(honest, {"click": label, "rare": (np.arange(400) < 3).astype(np.int64)})
    assert list(areas) == [("noise", "click")]
    for sign in (1, -1):
        with pytest.raises(InputError, match="'watched' alone predicts 'click' with AUC 1"):
            split.single_feature_aucs({**honest, "watched": sign * (label + random.random(400) / 9)}, {"click": label})


def test_the_future_sample_covers_moments_with_all_their_rows():
    times = np.repeat(np.arange(1_000), 3)
    sample = split.future_sample(times)
    assert len(sample) == split.CUTS
    assert sample[-1][0] == 999
    for moment, rows in sample:
        assert len(rows) <= split.ROWS_A_CUT
        assert set(np.flatnonzero(times == moment)) <= set(rows)
        assert (times[rows] <= moment).all()
    assert [rows.tolist() for _, rows in split.future_sample(np.array([5]))] == [[0]]


def test_a_feature_that_changes_when_the_future_is_cut_is_named():
    stored = np.array([[1, 2], [3, 4]], np.float32)
    split.check_future(["a", "b"], stored, stored.copy(), 0)
    with pytest.raises(InputError, match="'b' knows the future: 1 of 2 rows change when the log is cut at 1970-01-01"):
        split.check_future(["a", "b"], stored, np.array([[1, 2], [3, 5]], np.float32), 0)
