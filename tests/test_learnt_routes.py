"""What every route must do that is trained on histories, in a planted world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from day_files import change_log
from neural_worlds import groups, planted
from route_tables import ask

from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.recall import deep_retrieval, generative, policy
from pipeline.recall.route import Requests
from pipeline.recall.snapshot import Snapshot, take

SMALL: dict[ModuleType, dict[str, Any]] = {
    policy: {"width": 16, "epochs": 2, "negatives": 64},
    deep_retrieval: {"width": 16, "nodes": 8, "epochs": 2, "negatives": 32},
    generative: {"levels": 2, "codes": 8, "width": 16, "layers": 1, "heads": 2, "epochs": 5},
}
COMMON = {"positive": "click", "seed": 0, "log": lambda *_: None, "batch_size": 128, "learning_rate": 0.01}
REQUESTS = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16}


@dataclass(frozen=True)
class Trained:
    route: ModuleType
    features: Path
    model: Path
    folder: Path
    snapshot: Snapshot


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=SMALL, ids=lambda route: route.__name__.rpartition(".")[2])
def trained(request: pytest.FixtureRequest, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    route = request.param
    model, folder = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("route")
    route.train(features, model, **COMMON, **SMALL[route])
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    route.fit(snapshot, folder, model=model)
    return Trained(route, features, model, folder, snapshot)


def requests(users: list[int], domains: list[int] | None = None) -> pl.DataFrame:
    told = {"request": range(len(users)), "user": users, "domain": domains or [0] * len(users)}
    return pl.DataFrame(told, schema=REQUESTS)


def test_finds_what_the_users_group_takes(trained: Trained) -> None:
    users = list(range(1, 161))
    found = ask(trained.route, trained.folder, trained.snapshot, requests(users), 10)
    assert len(found) == 1600
    of_items, of_users = groups(trained.features, "items"), groups(trained.features, "users")
    right = of_items[found["item"].to_numpy()] == of_users[1:][found["request"].to_numpy()]
    assert right.mean() > 0.95


def test_a_request_is_answered_alike_alone_and_in_company(trained: Trained) -> None:
    users, domains = [5, 0, 9, 9, 700], [0, 1, 0, 1, -1]
    together = ask(trained.route, trained.folder, trained.snapshot, requests(users, domains), 12)
    for number, (user, domain) in enumerate(zip(users, domains, strict=True)):
        alone = ask(trained.route, trained.folder, trained.snapshot, requests([user], [domain]), 12)
        own = together.filter(request=number)
        assert own["item"].to_list() == alone["item"].to_list()
        np.testing.assert_allclose(own["score"], alone["score"], atol=1e-4)


def test_ranks_and_scores_go_down_and_no_item_comes_twice(trained: Trained) -> None:
    found = ask(trained.route, trained.folder, trained.snapshot, requests([3, 4]), 15)
    for _, own in found.group_by("request"):
        assert own["rank"].to_list() == list(range(1, 16))
        assert own["score"].is_sorted(descending=True)
        assert own["item"].n_unique() == 15


def test_who_is_unknown_or_did_nothing_yet_is_answered(trained: Trained) -> None:
    nothing = replace(trained.snapshot, history=trained.snapshot.history.clear())
    route = trained.route.load(trained.folder, trained.snapshot.store)
    found = route.recall(Requests.of(nothing, requests([0, 7, 9_999], [0, -1, 1])), 5)
    assert (found.items > 0).all()
    assert np.isfinite(found.scores).all()
    assert route.recall(Requests.of(nothing, requests([])), 5).items.shape[0] == 0


def test_what_is_not_available_is_not_recalled(trained: Trained, tmp_path: Path) -> None:
    kept = trained.snapshot.items.filter(pl.col("item") % 3 == 0)
    few = replace(trained.snapshot, items=kept)
    trained.route.fit(few, tmp_path, model=trained.model)
    found = ask(trained.route, tmp_path, few, requests([1, 2, 0]), 300)
    assert set(found["item"]) <= set(kept["item"])
    nothing = replace(trained.snapshot, items=kept.clear())
    empty = tmp_path / "empty"
    empty.mkdir()
    trained.route.fit(nothing, empty, model=trained.model)
    assert ask(trained.route, empty, nothing, requests([1, 2]), 5).is_empty()


def test_fitting_twice_writes_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    trained.route.fit(trained.snapshot, tmp_path, model=trained.model)
    names, again = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (trained.folder, tmp_path)
    )
    assert names == again
    for name in names:
        assert (tmp_path / name).read_bytes() == (trained.folder / name).read_bytes()


def test_training_twice_writes_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    trained.route.train(trained.features, tmp_path, **COMMON, **SMALL[trained.route])
    for path in trained.model.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_training_knows_nothing_of_the_test_slice(trained: Trained, tmp_path: Path) -> None:
    """Rows of the test slice that say the opposite change no weight."""

    bound = trained.snapshot.time
    later = pl.col("time") >= bound
    change_log(
        trained.features,
        tmp_path / "changed",
        lambda day: day.with_columns(click=pl.when(later).then(1 - pl.col("click")).otherwise("click")),
    )
    out = tmp_path / "model"
    out.mkdir()
    trained.route.train(tmp_path / "changed", out, **COMMON, **SMALL[trained.route])
    weights = "model.safetensors"
    assert (out / weights).read_bytes() == (trained.model / weights).read_bytes()


def test_a_request_online_reads_its_own_history(trained: Trained) -> None:
    """An unknown user whose events come with the request, all of one group, gets items of that group."""
    of_items = groups(trained.features, "items")
    route = trained.route.load(trained.folder, trained.snapshot.store)
    for group in range(4):
        items = np.flatnonzero(of_items == group)[:8].astype(np.int32)
        times = np.arange(8, dtype=np.int64)
        one = [np.array([0], np.int32), np.array([-1], np.int16), np.array([9])]
        found = route.recall(Requests(*one, items, times, np.array([0, 8])), 10)
        assert (of_items[found.items[0]] == group).mean() >= 0.8


@pytest.mark.parametrize("route", SMALL, ids=lambda route: route.__name__.rpartition(".")[2])
def test_a_task_without_a_positive_is_named(route: ModuleType, features: Path, tmp_path: Path) -> None:
    change_log(features, tmp_path / "changed", lambda day: day.with_columns(click=pl.lit(0, pl.Int8)))
    with pytest.raises(InputError, match="click = 1"):
        route.train(tmp_path / "changed", tmp_path, **COMMON, **SMALL[route])


def test_more_paths_than_can_be_counted_are_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nodes or depth"):
        deep_retrieval.train(features, tmp_path, **COMMON, nodes=10_000, depth=5)
