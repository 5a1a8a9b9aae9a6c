"""Labels that arrive late: the delay curve on paper and against the truth, the likelihood, the gate, and a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import latest
from event_tables import CONTRACT, FEATURES, write_events

from pipeline import config, lake
from pipeline.config import Fine, Loss, Split
from pipeline.evaluation.impressions import as_known
from pipeline.features.build import build
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import InputError
from pipeline.ranking import chain, delay, fine, training
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import Known
from pipeline.ranking.delay import HOUR, DelayCurve
from pipeline.ranking.losses import as_known_by_now, masked_bce


def hours(*values):
    return np.array(values) * HOUR


def test_the_curve_on_paper():
    """Delays 1, 2, 3 of rows 2, 3 and 3 hours old. At 3 only the last two could be seen: F(2) = 1 − 1/2 of them; at 2
    the first two have at most that delay, and all are old enough: F(1) = F(2) (1 − 1/2)."""
    curve = DelayCurve.of(hours(1, 2, 3), hours(2, 3, 3))
    assert curve.shares.tolist() == pytest.approx([0.25, 0.5, 1.0])
    assert curve.known(hours(0, 1, 1.5, 2, 9)).tolist() == pytest.approx([0, 0.25, 0.25, 0.5, 1])


def test_without_truncation_it_is_the_empirical_distribution():
    delays = np.random.default_rng(0).integers(1, 50, 300) * HOUR
    curve = DelayCurve.of(delays, np.full(300, 100 * HOUR))
    np.testing.assert_allclose(curve.known(delays), [(delays <= one).mean() for one in delays], rtol=1e-5)


def test_of_a_truncated_sample_it_finds_the_truth():
    """Exponential delays of 20 hours in mean, of rows up to 100 hours old: of the positives 4 in 5 are seen at all."""
    random = np.random.default_rng(0)
    age, waited = random.random(40_000) * 100 * HOUR, random.exponential(20 * HOUR, 40_000)
    seen = waited <= age
    curve = DelayCurve.of(waited[seen].astype(np.int64), age[seen].astype(np.int64))
    asked = hours(2, 10, 20, 40, 80)
    truth = (1 - np.exp(-asked / (20 * HOUR))) / (1 - np.exp(-5))
    np.testing.assert_allclose(curve.known(asked), truth, atol=0.01)
    naive = [(waited[seen] <= one).mean() for one in asked]
    assert np.abs(naive - truth).max() > 0.05


def test_the_gate_waits_until_the_variance_is_low_enough():
    """(1 − F) / F at F = .25, .5, 1 is 3, 1, 0."""
    curve = DelayCurve.of(hours(1, 2, 3), hours(2, 3, 3))
    assert [curve.wait(variance) / HOUR for variance in (3.0, 2.9, 1.0, 0.9)] == [1, 2, 2, 3]


def test_it_is_read_as_it_was_written():
    curve = DelayCurve.of(hours(1, 2, 3), hours(2, 3, 3))
    read = DelayCurve.from_json(curve.to_json())
    assert read.delays.tolist() == curve.delays.tolist()
    assert read.shares.tolist() == curve.shares.tolist()


def test_the_loss_on_paper():
    """p = σ(1), of which .4 are known now and .1 were before: (.4 − .1) p / (1 − .1 p)."""
    p = torch.tensor(1.0).sigmoid()
    batch = {
        "labels": torch.tensor([[1.0], [0.0]]),
        "known": torch.full((2, 1), 0.4),
        "gained": torch.full((2, 1), 0.3),
    }
    now = 0.3 * p / (1 - 0.1 * p)
    expected = -(now.log() + (1 - now).log()) / 2
    found = as_known_by_now(masked_bce)(torch.ones(2, 1), batch)
    assert found.tolist() == pytest.approx([expected.item()])
    whole = {**batch, "known": torch.ones(2, 1), "gained": torch.ones(2, 1)}
    torch.testing.assert_close(
        as_known_by_now(masked_bce)(torch.ones(2, 1), whole), masked_bce(torch.ones(2, 1), batch)
    )


def test_asked_twice_is_asked_once_at_the_end():
    """Not known at .3, then known at .8 or still not: the two likelihoods make that of one question at .8, whose
    positives have the further factor of when they came."""
    logits = torch.tensor([[0.7], [0.7], [-30.0], [30.0]], requires_grad=True)

    def loss(labels, known, gained):
        columns = {"labels": labels, "known": known, "gained": gained}
        batch = {name: torch.tensor(values)[:, None] for name, values in columns.items()}
        return as_known_by_now(masked_bce)(logits, batch).sum()

    first = loss([0.0] * 4, [0.3] * 4, [0.3] * 4)
    second = loss([1.0, 0.0, 0.0, 0.0], [0.8] * 4, [0.5] * 4)
    once = loss([1.0, 0.0, 0.0, 0.0], [0.8] * 4, [0.8] * 4)
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (first + second, once)]
    torch.testing.assert_close(*gradients)
    assert torch.isfinite(gradients[0]).all()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Conversions up to 10 hours late, in a log whose last four hours are validation and test."""
    folder = tmp_path_factory.mktemp("delay")
    write_events(folder / "events", events=6_000)
    features = replace(FEATURES, statistics=("user",), windows=("all",))
    split = Split(validation_days=1 / 12, test_days=1 / 12)
    made = lake.stage(folder, "features", "late")
    with made.writing() as out:
        build(folder / "events", out, features=features, contract=CONTRACT, split=split)
    return FeatureStore.open(made.path)


LATE = Loss(delay=("convert",), delay_variance=0.5)
CONVERT, CLICK = 2, 0


def asked(store, before=None):
    """What is asked of all rows of the train slice, and the curve."""
    delays = delay.curves(store, LATE.delay)
    parts = list(training.weighed(store, LATE, delays, seed=0, before=before))
    beside = {name: np.concatenate([part.beside[name] for part in parts]) for name in parts[0].beside}
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("waiting", "late")}
    return Rows.concatenate([part.rows for part in parts]), beside, counts, delays["convert"]


def arrivals(store):
    return store.columns(["convert_time"], "train")["convert_time"]


def test_a_row_is_asked_by_what_is_known_when_the_log_ends(store):
    log, end = store.log("train"), store.slices["end"]
    rows, beside, counts, curve = asked(store)
    age = end - log.time
    labels = rows.labels[:, CONVERT]
    assert np.array_equal(np.isnan(labels), age < curve.wait(0.5))
    assert counts["waiting"] == np.isnan(labels).sum() > 0
    arrival = arrivals(store)
    expected = (arrival > 0) & (arrival < end)
    assert np.array_equal(labels[~np.isnan(labels)] == 1, expected[~np.isnan(labels)])
    np.testing.assert_array_equal(beside["known"][:, CONVERT], curve.known(age))
    np.testing.assert_array_equal(beside["gained"], beside["known"])
    assert (beside["known"][:, CLICK] == 1).all()
    np.testing.assert_array_equal(rows.labels[:, CLICK], log.labels[:, CLICK])
    assert set(beside) == {"known", "gained"}


def test_what_was_asked_before_is_asked_for_what_came_since(store):
    log, end = store.log("train"), store.slices["end"]
    until, then = end - 16 * HOUR, end - 12 * HOUR
    rows, beside, counts, curve = asked(store, Known(until, then, (), (), (), {}))
    old = rows.time < until
    assert np.isnan(rows.labels[old][:, CLICK]).all()
    assert not np.isnan(rows.labels[~old][:, CLICK]).any()
    assert not np.isnan(rows.labels[old][:, CONVERT]).any()
    known_then = then - rows.time >= curve.wait(0.5)
    share = np.where(old & known_then, curve.known(then - rows.time), 0)
    np.testing.assert_allclose(beside["gained"][:, CONVERT], curve.known(end - rows.time) - share, atol=1e-6)
    arrival = arrivals(store)
    late = (log.time < until) & (arrival >= then) & (arrival < end)
    asked_then = late & (then - log.time >= curve.wait(0.5))
    assert counts["late"] == asked_then.sum() > 0
    assert rows.labels[old][:, CONVERT].sum() >= asked_then.sum()


def test_the_fit_is_right_on_average_though_labels_are_missing():
    """One rate for all, rows of up to two mean delays of age: of the conversions two in five are still to come."""
    random = np.random.default_rng(0)
    rate, count = 0.3, 20_000
    converts, waited, age = random.random(count) < rate, random.exponential(1.0, count), random.random(count) * 2
    label = torch.tensor(converts & (waited <= age), dtype=torch.float32)[:, None]
    share = torch.tensor(1 - np.exp(-age), dtype=torch.float32)[:, None]
    logit = torch.zeros((), requires_grad=True)
    batch = {"labels": label, "known": share, "gained": share}
    optimiser = torch.optim.LBFGS([logit], max_iter=50)

    def loss():
        optimiser.zero_grad()
        value = as_known_by_now(masked_bce)(logit.expand(count, 1), batch).sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert logit.detach().sigmoid().item() == pytest.approx(rate, abs=0.015)
    assert label.mean() < 0.2


def test_predictions_tell_what_can_be_known_of_the_test_slice(store):
    settings = Fine(model="lr", epochs=1, loss=LATE)
    encoder = Encoder(store)
    prepared = training.prepared(store, encoder, settings, seed=0)
    model, _ = fine.learn(
        encoder, store.schema, prepared, store.log("validation"), settings=settings, seed=0, log=lambda *_: None
    )
    told = pl.DataFrame(chain.predict(store, encoder, model, store.schema, prepared.delays))
    share = prepared.delays["convert"].known(store.slices["end"] - told["time"].to_numpy())
    np.testing.assert_array_equal(told["known_convert"], share)
    seen = as_known(told)
    np.testing.assert_allclose(seen["score_convert"], told["score_convert"] * told["known_convert"])
    assert seen["score_click"].equals(told["score_click"])


def test_what_cannot_be_is_named(store):
    with pytest.raises(InputError, match="no column 'click_time'"):
        delay.curves(store, ("click",))
    with pytest.raises(InputError, match="'buy' is no task"):
        config.load(None, ["fine.loss.delay=['buy']"])
    with pytest.raises(InputError, match="leave repeat_weight at 0"):
        config.load(None, ["fine.loss.delay=['convert']", "fine.loss.repeat_weight=1.0"])


def test_a_ranker_keeps_its_delays(small_run, tmp_path):
    folders = latest(small_run)
    fine.train(
        folders["features"],
        folders["recall_validation"],
        tmp_path,
        settings=Fine(model="lr", epochs=1, candidates=5, trials=1, loss=Loss(delay=("convert",))),
        seed=0,
        log=lambda *_: None,
    )
    curve = fine.load(tmp_path).delays["convert"]
    assert curve.shares[-1] == 1
    assert 3 < curve.wait(1.0) / HOUR < 6  # the median of exponential delays of 6 hours is 4.2
