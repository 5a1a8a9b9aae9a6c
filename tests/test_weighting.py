import numpy as np
import pytest

from pipeline.features.store import DAY, Rows
from pipeline.ranking.weighting import earlier_exposures, mean_shift, repeat_weights, sample_negatives

NAN = float("nan")


def rows_of(labels):
    count = len(labels)
    zeros = np.zeros(count, np.int32)
    return Rows(
        user=zeros,
        item=zeros,
        domain=zeros.astype(np.int16),
        time=np.arange(count),
        context=np.zeros((count, 0), np.int32),
        numbers=np.zeros((count, 0), np.float32),
        ends={},
        lengths={},
        labels=np.array(labels, np.float32).reshape(count, -1),
        durations=np.zeros((count, 0), np.float32),
    )


def test_earlier_exposures_on_paper():
    """Item 5 at hours 0, 1, 24 and 26: the last two no longer see what lies more than a day back."""
    hours = np.array([0, 1, 24, 26, 1]) * DAY // 24
    assert earlier_exposures(np.ones(5, int), np.array([5, 5, 5, 5, 6]), hours).tolist() == [0, 1, 2, 1, 0]
    assert earlier_exposures(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)).tolist() == []


def test_earlier_exposures_against_a_loop():
    random = np.random.default_rng(0)
    user, item, time = random.integers(5, size=300), random.integers(4, size=300), random.integers(500, size=300)
    expected = [
        sum(user[j] == user[i] and item[j] == item[i] and time[i] - 100 <= time[j] < time[i] for j in range(300))
        for i in range(300)
    ]
    assert earlier_exposures(user, item, time, window=100).tolist() == expected


def test_repeat_weights_on_paper():
    user, item, time = np.array([[1, 1, 1], [5, 5, 6], [0, 1, 2]])
    assert repeat_weights(user, item, time, 2.0).tolist() == pytest.approx([1, 1 + 2 * np.log(2), 1])


def test_sampled_negatives_are_so_many_of_each_task_and_every_positive_stays():
    random = np.random.default_rng(0)
    click = random.random(20_000) < 0.3
    like = click & (random.random(20_000) < 0.2)
    rows = rows_of(np.stack([click, like], axis=1))
    sampled, kept = sample_negatives(rows, 0.25, seed=1)
    assert np.array_equal(sampled.time, rows.time[kept])
    for task in range(2):
        labels = sampled.labels[:, task]
        assert (labels == 1).sum() == rows.labels[:, task].sum()
        assert (labels == 0).sum() / (rows.labels[:, task] == 0).sum() == pytest.approx(0.25, abs=0.01)
    of_clicked = rows.labels[kept][:, 0] == 1
    unliked = sampled.labels[of_clicked & (rows.labels[kept][:, 1] == 0), 1]
    assert (unliked == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert not np.isnan(sampled.labels).all(axis=1).any()


def test_negatives_are_sampled_part_by_part_as_at_once():
    rows = rows_of(np.random.default_rng(0).integers(0, 2, (90, 2)))
    whole, _ = sample_negatives(rows, 0.4, 7)
    random = np.random.default_rng(7)
    parts = [sample_negatives(rows.take(slice(begin, begin + 40)), 0.4, random)[0] for begin in (0, 40, 80)]
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    np.testing.assert_array_equal(np.concatenate([part.time for part in parts]), whole.time)


def test_sampling_follows_its_seed_and_a_rate_of_one_changes_nothing():
    rows = rows_of([[0, NAN], [1, 0], [NAN, NAN], [0, 0]] * 50)
    same, kept = sample_negatives(rows, 1.0, seed=0)
    assert kept.all()
    np.testing.assert_array_equal(same.labels, rows.labels)
    one, again, other = (sample_negatives(rows, 0.5, seed=seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_mean_shift_makes_the_sum_of_probabilities_the_sum_of_labels():
    """A quarter of logits 0 are positive: −ln 3. What is unknown does not count; without both labels there is none."""
    logits = np.zeros((8, 4), np.float32)
    labels = np.array([[1, NAN, 0, NAN], [0, 1, 0, NAN], [0, 0, 0, NAN], [0, 0, 0, NAN]] * 2, np.float32)
    assert mean_shift(logits, labels).tolist() == pytest.approx([-np.log(3), -np.log(2), 0, 0], rel=1e-6)
    random = np.random.default_rng(0)
    logits = random.normal(3, 5, size=(1_000, 1)).astype(np.float32)
    labels = (random.random((1_000, 1)) < 0.01).astype(np.float32)
    shifted = 1 / (1 + np.exp(-(logits + mean_shift(logits, labels))))
    assert shifted.sum() == pytest.approx(labels.sum(), rel=1e-4)
