from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from day_files import change_log
from route_tables import ask
from test_sampling import earlier_run

from pipeline import config
from pipeline.features import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.batches import Encoder
from pipeline.ranking.carry import WEIGHTS
from pipeline.recall import two_tower
from pipeline.recall.snapshot import take
from pipeline.recall.trained import save
from pipeline.sources import contract

SETTINGS = {"width": 8, "epochs": 2, "batch_size": 128, "negatives": 64}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, out = tmp_path_factory.mktemp("events"), tmp_path_factory.mktemp("features")
    settings = config.Config(source=config.Simulator(users=200, items=150, impressions=4_000, domains=3))
    contract.write_events(settings.source, settings.contract, events)
    build.build(events, out, features=settings.features, contract=settings.contract, split=settings.split)
    return out


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_tower")
    two_tower.train(features, out, positive="click", seed=0, log=lambda *_: None, **SETTINGS)
    return out


def test_hit_rate_on_paper() -> None:
    users, items = np.eye(3), np.array([[9.0, 9.0, 9.0], [1.0, 0, 0], [2.0, 1.0, 0], [0, 0, 1.0]])
    target, known = np.array([1, 2, 3]), np.array([1, 2, 3])
    assert two_tower.hit_rate(users, items, target, known, 1) == pytest.approx(2 / 3)
    assert two_tower.hit_rate(users, items, target, known, 2) == 1.0
    assert two_tower.hit_rate(users[:0], items, target[:0], known, 2) == 0.0


def test_training_is_repeatable_and_told_by_epoch(features: Path, trained: Path, tmp_path: Path) -> None:
    told = []
    metrics = two_tower.train(
        features, tmp_path, positive="click", seed=0, log=lambda _, epoch: told.append(epoch), **SETTINGS
    )
    assert told == [1, 2]
    assert metrics["positives"] > 100
    for name in (WEIGHTS, two_tower.SETTINGS):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert json.loads((trained / two_tower.SETTINGS).read_text())["recall_50"] == metrics["recall_50"]


@pytest.mark.parametrize("loss", ["pointwise", "bpr", "hinge", "full"])
def test_every_loss_trains_it_to_more_than_chance(features: Path, tmp_path: Path, loss: str) -> None:
    found = []
    for seed in range(3):
        losses: list[float] = []
        settings = {**SETTINGS, "negatives": None, "epochs": 8, "loss": loss}
        out = tmp_path / str(seed)
        out.mkdir()
        metrics = two_tower.train(
            features,
            out,
            positive="click",
            seed=seed,
            log=lambda told, _, losses=losses: losses.append(told["loss"]),
            **settings,
        )
        assert losses[-1] < losses[0]
        found.append(metrics["recall_50"])
    assert np.mean(found) > 0.4 > two_tower.CUTOFF / 150


def test_what_an_earlier_run_cut_is_learnt_from(features: Path, trained: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    latest = earlier_run(tmp_path / "run", features, 5, [1, 2, 3, 4], [False] * 4, store.slices["validation"])
    told = {"positive": "click", "seed": 0, "log": lambda *_: None, **SETTINGS}
    two_tower.train(features, tmp_path, earlier=str(latest), **told)
    assert (tmp_path / WEIGHTS).read_bytes() != (trained / WEIGHTS).read_bytes()


def test_the_route_finds_the_nearest_items(features: Path, trained: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    two_tower.fit(snapshot, tmp_path, model=trained, index="flat")
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}
    requests = pl.DataFrame({"request": [0, 1, 2], "user": [0, 5, 5], "domain": [0, 1, 2]}, schema=schema)
    found = ask(two_tower, tmp_path, snapshot, requests, 7)
    assert found["request"].to_list() == [0] * 7 + [1] * 7 + [2] * 7
    assert found["rank"].to_list() == [*range(1, 8)] * 3

    model, encoder = two_tower.load_model(trained, store.schema), Encoder(store)
    items = two_tower.item_vectors(model, two_tower.every_item(store, encoder))
    asking = np.array([5]), np.array([1]), np.array([snapshot.time])
    scores = two_tower.user_vectors(model, encoder, store, *asking)[0] @ items.T
    known = snapshot.items["item"].to_numpy()
    best = known[np.argsort(-scores[known])][:7]
    assert found.filter(pl.col("request") == 1)["item"].to_list() == best.tolist()
    alone = ask(two_tower, tmp_path, snapshot, requests[1:2], 7)
    assert alone["item"].to_list() == best.tolist()
    everything = ask(two_tower, tmp_path, snapshot, requests[:1], len(known) + 50)
    assert sorted(everything["item"].to_list()) == known.tolist()


def asked(users: list[int], domains: list[int]) -> pl.DataFrame:
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}
    return pl.DataFrame({"request": range(len(users)), "user": users, "domain": domains}, schema=schema)


def test_an_unknown_domain_gets_nothing_and_users_are_what_full_rows_say(
    features: Path, trained: Path, tmp_path: Path
) -> None:
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    two_tower.fit(snapshot, tmp_path, model=trained)
    found = ask(two_tower, tmp_path, snapshot, asked([3, 4, 5], [1, -1, 2]), 7)
    assert found["request"].to_list() == [0] * 7 + [2] * 7
    assert ask(two_tower, tmp_path, snapshot, asked([4], [-1]), 7).is_empty()

    model, encoder = two_tower.load_model(trained, store.schema), Encoder(store)
    user, domain, time = np.array([0, 3, 5]), np.array([0, 1, 2]), np.full(3, snapshot.time)
    rows = store.rows(user, np.array([1, 2, 3]), domain, time)
    with torch.inference_mode():
        full = model.user(encoder(rows)).numpy()
    np.testing.assert_array_equal(two_tower.user_vectors(model, encoder, store, user, domain, time), full)


def test_an_item_without_a_vector_is_left_out(
    features: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    vectors, broken = two_tower.item_vectors, int(snapshot.items["item"][4])

    def some_broken(*given: object) -> np.ndarray:
        found = vectors(*given)
        found[broken] = np.nan
        return found

    monkeypatch.setattr(two_tower, "item_vectors", some_broken)
    two_tower.fit(snapshot, tmp_path, model=trained)
    found = ask(two_tower, tmp_path, snapshot, asked([5], [1]), 500)
    assert sorted(found["item"].to_list()) == [item for item in snapshot.items["item"].to_list() if item != broken]


def test_an_index_of_another_model_is_refused(features: Path, trained: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    two_tower.fit(take(store, store.slices["test"], "click"), tmp_path, model=trained)
    torch.manual_seed(1)
    settings = json.loads((tmp_path / two_tower.SETTINGS).read_text())
    another = two_tower.make(store.schema, settings["width"], settings["content"])
    save(another, tmp_path, two_tower.SETTINGS, settings)
    with pytest.raises(InputError, match="holds the vectors of model"):
        two_tower.load(tmp_path, store)


def test_a_task_without_a_positive_is_named(features: Path, tmp_path: Path) -> None:
    change_log(features, tmp_path, lambda day: day.with_columns(convert=pl.lit(0, pl.Int8)))
    with pytest.raises(InputError, match="convert = 1"):
        two_tower.train(tmp_path, tmp_path, positive="convert", seed=0, log=lambda *_: None, **SETTINGS)
