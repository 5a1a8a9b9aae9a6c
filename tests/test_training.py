"""What the fine ranker trains on, on disk: what the rows in memory would be, whatever part of them is there at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import latest
from event_tables import CONTRACT, FEATURES, write_events

from pipeline import lake
from pipeline.config import Fine, Loss, Split
from pipeline.features.build import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking import training
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import Known
from pipeline.ranking.merged import Merged
from pipeline.ranking.weighting import earlier_exposures


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    events = write_events(root / "events", events=3_000, users=20, items=10, days=4)
    made = lake.stage(root, "features", "first")
    with made.writing() as folder:
        features = replace(FEATURES, statistics=("user",), windows=("all",))
        build(events, folder, features=features, contract=CONTRACT, split=Split(1, 1))
    return FeatureStore.open(made.path)


@pytest.fixture(scope="module")
def encoder(store):
    return Encoder(store)


def records(prepared):
    return np.concatenate(list(prepared.stored.parts(100)))


@pytest.mark.parametrize("chunk", [37, 1 << 18])
def test_all_impressions_are_recorded_in_order(store, encoder, monkeypatch, chunk):
    monkeypatch.setattr(training, "CHUNK", chunk)
    prepared = training.prepared(store, encoder, Fine(), seed=chunk)
    log = store.log("train")
    assert prepared.stored.path.read_bytes() == encoder.records(log).tobytes()
    assert prepared.told == {"training_impressions": len(log), "training_candidates": 0}
    prepared.remove()
    assert not prepared.stored.path.exists()


@pytest.mark.parametrize("chunk", [37, 1 << 18])
def test_repeats_are_counted_across_days_and_negatives_sampled_across_parts(store, encoder, monkeypatch, chunk):
    monkeypatch.setattr(training, "CHUNK", chunk)
    log = store.log("train")
    weight = 1 + 2 * np.log1p(earlier_exposures(log.user, log.item, log.time))
    loss = Loss(repeat_weight=2.0, negative_rate=0.4)
    prepared = training.prepared(store, encoder, Fine(loss=loss), seed=5)
    drawn = np.random.default_rng(5).random(len(log)) < 0.4
    kept = drawn | (log.labels == 1).any(axis=1)
    found = records(prepared)
    np.testing.assert_array_equal(found["time"], log.time[kept])
    np.testing.assert_allclose(found["weight"], weight[kept], rtol=1e-6)
    unknown = np.isnan(found["labels"])
    np.testing.assert_array_equal(unknown, ((log.labels == 0) & ~drawn[:, None])[kept])
    assert (weight > 1).mean() > 0.1
    assert unknown.any()
    prepared.remove()


def test_it_is_written_once_and_anew_when_something_it_depends_on_changes(store, encoder):
    first = training.prepared(store, encoder, Fine(), seed=0)
    written = first.stored.path.stat().st_mtime_ns
    same = training.prepared(store, encoder, Fine(model="lr", epochs=9, loss=Loss(ranking="user")), seed=1)
    assert same == first
    assert same.stored.path.stat().st_mtime_ns == written
    others = [Loss(negative_rate=0.5), Loss(repeat_weight=1.0), Loss(delay=("convert",))]
    paths = {training.prepared(store, encoder, Fine(loss=loss), seed=0).stored.path for loss in others}
    assert len(paths | {first.stored.path}) == 4
    sampled = [training.prepared(store, encoder, Fine(loss=others[0]), seed=seed).stored.path for seed in (0, 1)]
    assert sampled[0] != sampled[1]


def test_what_was_cut_off_while_it_was_written_is_not_found(store, encoder, monkeypatch):
    settings = Fine(loss=Loss(negative_rate=0.3))

    def broken(self, rows, beside=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "records", broken)
        with pytest.raises(KeyboardInterrupt):
            training.prepared(store, encoder, settings, seed=0)
    prepared = training.prepared(store, encoder, settings, seed=0)
    assert len(prepared.stored) == prepared.told["training_impressions"] > 0


def test_without_a_new_row_it_says_so(store, encoder):
    end = store.slices["end"]
    with pytest.raises(InputError, match="has nothing new"):
        training.prepared(store, encoder, Fine(), seed=0, before=Known(end, end, (), (), (), {}))


def test_candidates_follow_the_impressions(small_run):
    folders = latest(small_run)
    store, recall = FeatureStore.open(folders["features"]), folders["recall_validation"]
    encoder, settings = Encoder(store), Fine(candidates=7, candidate_requests=30, loss=Loss(delay=("convert",)))
    found = records(prepared := training.prepared(store, encoder, settings, seed=0, recall=recall))
    shown = np.isnan(found["labels"][:, -1])
    assert shown.sum() == prepared.told["training_impressions"] == len(store.log("train"))
    assert (~shown).sum() == prepared.told["training_candidates"]
    assert (np.diff(shown.astype(int)) <= 0).all()
    assert (found["known"][~shown] == 1).all()
    assert (found["known"][:, -1] == 1).all()
    merged = Merged.open(recall)
    distil = merged.only(merged.fold == "distil")
    sample = distil.only(np.arange(len(distil)) < 30).sample(7, 0)
    np.testing.assert_array_equal(found["item"][~shown], sample.item)
    np.testing.assert_array_equal(found["labels"][~shown][:, -1], sample.positive)
    np.testing.assert_array_equal(found["numbers"][~shown], sample.rows(store).numbers)
    prepared.remove()


def test_what_is_held_out_is_bounded_by_whole_users(store):
    log = store.log("validation")
    np.testing.assert_array_equal(training.held_out(store, "").time, log.time)
    some = training.held_out(store, "", most=len(log) // 2)
    assert len(log) // 3 < len(some) <= len(log) // 2
    np.testing.assert_array_equal(some.time, log.time[np.isin(log.user, some.user)])
    without = training.held_out(store, "", without=some.user)
    np.testing.assert_array_equal(without.time, log.time[~np.isin(log.user, some.user)])
