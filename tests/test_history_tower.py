"""The routes whose tower reads a history alone: training on packed histories, and being asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from route_tables import ask, engaged
from test_sampling import earlier_run

from pipeline import config
from pipeline.features import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.ranking.carry import WEIGHTS
from pipeline.recall import candidates, history_tower, multi_interest, sequential, youtube_dnn
from pipeline.recall.history_tower import Known, Windows
from pipeline.recall.route import Requests
from pipeline.recall.snapshot import Snapshot, take
from pipeline.sources import contract

ROUTES = {"youtube_dnn": youtube_dnn, "multi_interest": multi_interest, "sequential": sequential}
every = pytest.mark.parametrize("route", list(ROUTES.values()), ids=list(ROUTES))
REQUEST = {"request": pl.UInt32, "user": pl.Int32}
SETTINGS = {"width": 16, "length": 8, "batch_size": 32, "learning_rate": 0.02, "dropout": 0.0}


def rings(users: int = 120, events: int = 7) -> Snapshot:
    """Each user walks 1 → 2 → … in one of two rings of ten items, from anywhere: what comes next is certain."""
    steps = [(step, user) for step in range(events) for user in range(1, users + 1)]
    taken = [(user, 1 + 10 * (user % 2) + (user * 7 + step) % 10) for step, user in steps]
    return engaged(taken, list(range(1, 21)))


def learn(route: ModuleType, known: Snapshot, folder: Path, epochs: int = 12, **settings: object) -> dict[str, float]:
    folder.mkdir()
    quiet = {"positive": "", "seed": 0, "log": lambda *_: None}
    return route.train(known, folder, **quiet, epochs=epochs, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[ModuleType, Path]:
    """Each route's model and its folder after `fit`, on the rings."""
    place, folders = tmp_path_factory.mktemp("towers"), {}
    for name, route in ROUTES.items():
        learn(route, rings(), place / name)
        folders[route] = place / f"{name}_fitted"
        folders[route].mkdir()
        route.fit(rings(), folders[route], model=place / name)
    return folders


def requests(histories: list[list[int]]) -> Requests:
    """Asked by users who are not known to anybody."""
    lengths = [len(one) for one in histories]
    return Requests(
        user=np.zeros(len(lengths), np.int32),
        domain=np.zeros(len(lengths), np.int16),
        time=np.full(len(lengths), 10_000),
        items=np.array([item for one in histories for item in one], np.int32),
        times=np.arange(sum(lengths), dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def test_attention_finds_what_comes_next(trained: dict[ModuleType, Path]) -> None:
    route = sequential.load(trained[sequential], None)
    found = route.recall(requests([[3, 4, 5], [18, 19, 20], [10, 1]]), 1)
    assert found.items.ravel().tolist() == [6, 11, 2]


@every
def test_what_comes_next_is_among_the_first(route: ModuleType, trained: dict[ModuleType, Path]) -> None:
    found = route.load(trained[route], None).recall(requests([[3, 4, 5], [18, 19, 20], [10, 1]]), 3)
    assert all(wanted in items for wanted, items in zip((6, 11, 2), found.items.tolist(), strict=True))


@every
def test_scores_are_the_highest_products_and_what_was_taken_is_left_out(
    route: ModuleType, trained: dict[ModuleType, Path]
) -> None:
    histories = [[3, 4, 5, 3], [13], [2, 11, 12, 4, 5, 6, 7, 8, 9, 10, 14]]
    tower = route.load(trained[route], None)
    found = tower.recall(requests(histories), 20)
    for row, history in enumerate(histories):
        last = torch.tensor([history[-SETTINGS["length"] :]])
        minutes = torch.zeros(1, last.shape[1] + 1, dtype=torch.long)
        with torch.inference_mode():
            scores = (tower.model.item_vectors() @ tower.model(last, minutes)[0, -1].T).amax(dim=1).numpy()
        allowed = [item for item in range(1, 21) if item not in history]
        expected = sorted(allowed, key=lambda item: -scores[item])
        there = found.items[row] != -1
        assert found.items[row, there].tolist() == expected
        np.testing.assert_allclose(found.scores[row, there], scores[expected], rtol=1e-5, atol=1e-5)


@every
def test_a_request_gets_the_same_alone_and_one_without_history_nothing(
    route: ModuleType, trained: dict[ModuleType, Path]
) -> None:
    histories = [[3, 4, 5], [], [13, 14, 15, 16, 17, 18, 19, 20, 11], [7]]
    tower = route.load(trained[route], None)
    together = tower.recall(requests(histories), 4)
    assert together.items[1].tolist() == [-1] * 4
    for row, history in enumerate(histories):
        alone = tower.recall(requests([history]), 4)
        if history:
            assert alone.items[0].tolist() == together.items[row].tolist()
            np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5, atol=1e-6)
        else:
            assert alone.items.shape == (1, 0)
    assert tower.recall(requests([]), 4).items.shape[0] == 0


@every
def test_items_withdrawn_or_newer_than_the_model(
    route: ModuleType, trained: dict[ModuleType, Path], tmp_path: Path
) -> None:
    now = engaged([(1, 3), (1, 4), (2, 4), (2, 33)], [1, 2, 5, 6, 33])
    route.fit(now, tmp_path, model=trained[route])
    users = pl.DataFrame({"request": [0, 1], "user": [1, 2]}, schema=REQUEST)
    found = ask(route, tmp_path, now, users, 9)
    assert sorted(found.filter(request=0)["item"].to_list()) == [1, 2, 5, 6]
    assert sorted(found.filter(request=1)["item"].to_list()) == [1, 2, 5, 6]


@pytest.mark.parametrize("loss", ["listwise", "pointwise", "bpr", "hinge", "full"])
def test_each_loss_learns(loss: str, tmp_path: Path) -> None:
    learn(sequential, rings(), tmp_path / "model", loss=loss)
    sequential.fit(rings(), tmp_path, model=tmp_path / "model")
    found = sequential.load(tmp_path, None).recall(requests([[3, 4, 5], [18, 19, 20]]), 2)
    assert 6 in found.items[0]
    assert 11 in found.items[1]


def test_training_is_repeatable_and_told_by_epoch(tmp_path: Path) -> None:
    told: list[int] = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        given = {"positive": "", "seed": 3, "log": lambda _, epoch: told.append(epoch), "epochs": 2}
        metrics = multi_interest.train(rings(), tmp_path / name, **given, **SETTINGS)
    assert told == [1, 2, 1, 2]
    for name in (WEIGHTS, history_tower.SETTINGS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert metrics["positives"] == 120 * 5
    assert json.loads((tmp_path / "one" / history_tower.SETTINGS).read_text())["recall_50"] == metrics["recall_50"]


def test_the_last_event_of_users_is_held_out() -> None:
    known = Known.of_snapshot(engaged([(1, 3), (1, 4), (1, 5), (2, 6), (3, 7), (3, 8)], [3, 4, 5, 9]), 0)
    assert known.held_out.user.tolist() == [1, 3]
    assert known.target.tolist() == [5, 8]
    assert known.held_out.items.tolist() == [3, 4, 7]
    assert (known.user.tolist(), known.item.tolist()) == ([1, 1, 2, 3], [3, 4, 6, 7])
    assert known.size == 10


def test_items_begin_as_the_leading_eigenvectors_of_what_follows_what() -> None:
    generator = np.random.default_rng(0)
    taken = [(user, int(item)) for user in range(1, 30) for item in generator.permutation(np.arange(1, 9))[:5]]
    known = Known.of_snapshot(engaged(taken, list(range(1, 10))), 0)
    follow = np.zeros((10, 10))
    for one in range(len(known.user)):
        for other in range(one + 1, min(one + 21, len(known.user))):
            if known.user[one] == known.user[other]:
                follow[known.item[one], known.item[other]] += (other - one) ** -0.7
    both = follow + follow.T
    degree = both.sum(axis=1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(10), where=degree > 0)
    values, vectors = np.linalg.eigh(scale[:, None] * both * scale)
    expected = vectors[:, -3:] * np.sqrt(values[-3:].clip(min=0))
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = np.divide(expected, length, out=np.zeros((10, 3)), where=length > 1e-6)
    found = history_tower.spectral(known, 3)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=0.01)
    assert not found[[0, 9]].any()
    assert history_tower.spectral(known, 16).shape == (10, 16)


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 4))
def test_each_event_but_a_users_first_is_found_once_with_what_fits_before_it(counts: list[int], length: int) -> None:
    user = np.repeat(np.arange(len(counts)), counts)
    windows = Windows.of(user, length)
    targets = [event for pair in zip(windows.begin, windows.end, strict=True) for event in range(pair[0] + 1, pair[1])]
    first = {int(np.argmax(user == one)) for one in set(user.tolist())}
    assert sorted(targets) == [event for event in range(len(user)) if event not in first]
    for begin, end in zip(windows.begin, windows.end, strict=True):
        assert 2 <= end - begin <= length + 1
        assert user[begin] == user[end - 1]


def test_batches_hold_each_window_once_and_like_lengths_together() -> None:
    windows = Windows.of(np.repeat(np.arange(400), np.arange(400) % 9), 50)
    found = windows.batches(8, np.random.default_rng(0))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(windows)))
    length = windows.end - windows.begin
    assert np.mean([np.ptp(length[one]) for one in found]) < 1.5
    assert [one.tolist() for one in found] != [one.tolist() for one in windows.batches(8, np.random.default_rng(1))]


def test_nothing_to_learn_from_and_an_unknown_loss_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sequential: no user has two events"):
        learn(sequential, engaged([(1, 3), (2, 4)], [3, 4]), tmp_path / "one")
    with pytest.raises(InputError, match=r"recall.options.youtube_dnn.loss: 'log' is unknown"):
        learn(youtube_dnn, rings(), tmp_path / "other", loss="log")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, out = tmp_path_factory.mktemp("events"), tmp_path_factory.mktemp("features")
    settings = config.Config(source=config.Simulator(users=200, items=150, impressions=4_000, domains=3))
    contract.write_events(settings.source, settings.contract, events)
    build.build(events, out, features=settings.features, contract=settings.contract, split=settings.split)
    return out


def test_from_a_features_folder_it_knows_what_was_before_the_validation_slice(features: Path) -> None:
    store = FeatureStore.open(features)
    moment = store.slices["validation"]
    known = Known.of_store(store, "click", 0)
    before = take(store, moment, "click")
    assert known.item.tolist() == before.history["item"].to_list()
    assert (known.time < moment).all()
    assert set(known.held_out.time.tolist()) == {moment}
    log = pl.DataFrame(store.columns(["user", "item", "click"], "validation")).filter(click=1)
    first = dict(reversed(log.select("user", "item").rows()))
    assert dict(zip(known.held_out.user.tolist(), known.target.tolist(), strict=True)) == first


@every
def test_the_route_in_the_funnel(route: ModuleType, features: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = {"positive": "click", "seed": 0, "log": lambda *_: None, "epochs": 1}
    metrics = route.train(features, tmp_path / "model", **given, **SETTINGS)
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    route.fit(snapshot, tmp_path, model=tmp_path / "model")
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}
    users = pl.DataFrame({"request": [0, 1, 2], "user": [0, 5, 6], "domain": [0, 1, 2]}, schema=schema)
    found = ask(route, tmp_path, snapshot, users, 7)
    assert metrics["positives"] > 100
    assert found["request"].to_list() == [1] * 7 + [2] * 7
    taken = snapshot.history.filter(pl.col("user") == 5)["item"].to_list()
    assert not set(taken) & set(found.filter(request=1)["item"].to_list())
    later = replace(snapshot, history=snapshot.history.filter(pl.col("user") != 5))
    assert ask(route, tmp_path, later, users, 7)["request"].to_list() == [2] * 7


def test_hard_negatives_are_learnt_from(features: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(features)
    latest = earlier_run(tmp_path / "run", features, 5, [1, 2, 3, 4], [False] * 4, store.slices["validation"])
    given = {"positive": "click", "seed": 0, "log": lambda *_: None, "epochs": 1, "loss": "listwise", **SETTINGS}
    for name, earlier in (("easy", ""), ("hard", str(latest))):
        (tmp_path / name).mkdir()
        sequential.train(features, tmp_path / name, **given, earlier=earlier)
    easy, hard = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("easy", "hard"))
    assert easy != hard


def test_the_recall_stage_asks_it_beside_others(features: Path, tmp_path: Path) -> None:
    for name in ("model", "out"):
        (tmp_path / name).mkdir()
    youtube_dnn.train(features, tmp_path / "model", positive="click", seed=0, log=lambda *_: None, epochs=1, **SETTINGS)
    options = {"youtube_dnn": {"index": "hnsw", "epochs": 1}}
    settings = config.Recall(routes=("youtube_dnn", "hot"), per_route=20, merged=30, options=options)
    candidates.check(settings)
    assert candidates.trained(settings) == ["youtube_dnn"]
    metrics = candidates.recall(
        features,
        {"youtube_dnn": tmp_path / "model"},
        out=tmp_path / "out",
        moment="test",
        settings=settings,
        positive="click",
        tasks=config.Contract().tasks,
        requests=100,
    )
    assert metrics["recall_union"] >= metrics["recall_youtube_dnn"] > 0
