from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from day_files import change_log, read_log

from pipeline import config
from pipeline.features import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError
from pipeline.recall import candidates, cold_start, exposure, hot, trained, two_tower
from pipeline.recall.merge import snake_merge
from pipeline.recall.route import Found
from pipeline.recall.snapshot import Snapshot, take
from pipeline.sources import contract

SETTINGS = config.Recall(per_route=20, merged=30, options={"item_cf": {"neighbours": 20}})
TASKS = config.Contract().tasks
TABLES = ("requests", "positives", "candidates", "exposed", "merged")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, out = tmp_path_factory.mktemp("events"), tmp_path_factory.mktemp("features")
    settings = config.Config(source=config.Simulator(users=300, items=150, impressions=6_000, domains=3))
    contract.write_events(settings.source, settings.contract, events)
    build.build(events, out, features=settings.features, contract=settings.contract, split=settings.split)
    return out


@pytest.fixture(scope="module")
def model(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_tower")
    options = {"width": 8, "epochs": 1, "batch_size": 256, "negatives": 64}
    two_tower.train(features, out, positive="click", seed=0, log=lambda *_: None, **options)
    return out


def run(
    features: Path,
    model: Path,
    out: Path,
    moment: str = "test",
    settings: config.Recall = SETTINGS,
    requests: int = 500,
    validation: Path | None = None,
) -> tuple[dict[str, float], dict[str, pl.DataFrame]]:
    out.mkdir(exist_ok=True)
    metrics = candidates.recall(
        features,
        {"two_tower": model},
        validation,
        out=out,
        moment=moment,
        settings=settings,
        positive="click",
        tasks=TASKS,
        requests=requests,
    )
    return metrics, {name: pl.read_parquet(out / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module")
def tested(features: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("recall")
    return out, run(features, model, out)[0]


def read(tested: tuple[Path, dict[str, float]], name: str) -> pl.DataFrame:
    return pl.read_parquet(tested[0] / f"{name}.parquet")


def test_requests_and_positives_are_what_the_slice_holds(features: Path, tested: tuple[Path, dict[str, float]]) -> None:
    requests, positives = read(tested, "requests"), read(tested, "positives")
    store = FeatureStore.open(features)
    log = read_log(features).filter((pl.col("slice") == 2) & (pl.col("click") == 1))
    pairs = {(user, domain) for user, domain in log.select("user", "domain").iter_rows()}
    assert set(requests.select("user", "domain").iter_rows()) == pairs
    assert requests["request"].to_list() == list(range(len(pairs)))
    assert requests["time"].unique().to_list() == [store.slices["test"]]
    assert requests["fold"].unique().to_list() == ["test"]
    schema = {"request": pl.UInt32, "user": pl.Int32, "domain": pl.Int16, "time": pl.Int64, "fold": pl.String}
    assert requests.schema == schema
    told = positives.join(requests, on="request").select("user", "domain", "item", "like")
    slow = {}
    for user, domain, item, like in log.select("user", "domain", "item", "like").iter_rows():
        slow[user, domain, item] = max(like, slow.get((user, domain, item), 0))
    assert {row[:3]: row[3] for row in told.iter_rows()} == slow
    assert positives["click"].min() == 1


def test_validation_users_fall_into_two_folds(features: Path, model: Path, tmp_path: Path) -> None:
    _, tables = run(features, model, tmp_path, "validation", replace(SETTINGS, routes=("hot",)))
    requests = tables["requests"]
    shares = requests["fold"].value_counts(normalize=True)
    assert set(shares["fold"]) == {"distil", "tune"}
    assert shares["proportion"].min() > 0.3
    assert requests.group_by("user").agg(pl.col("fold").n_unique())["fold"].max() == 1


def test_a_limit_takes_a_stable_part_of_the_requests(features: Path, tested: tuple[Path, dict[str, float]]) -> None:
    store, whole = FeatureStore.open(features), read(tested, "requests")
    some, positives = candidates.requests_of(store, "test", "click", TASKS, 10)
    fewer, _ = candidates.requests_of(store, "test", "click", TASKS, 5)
    keys = ["user", "domain"]
    assert some["request"].to_list() == list(range(10))
    assert set(fewer.select(keys).rows()) < set(some.select(keys).rows()) < set(whole.select(keys).rows())
    assert set(positives["request"]) == set(range(10))


def test_candidates_keep_the_contract(features: Path, tested: tuple[Path, dict[str, float]]) -> None:
    found = read(tested, "candidates")
    schema = {"request": pl.UInt32, "item": pl.Int32, "route": pl.String, "rank": pl.Int32, "score": pl.Float32}
    assert found.schema == schema
    assert found["item"].min() > 0
    assert found.equals(found.sort("request", "rank", maintain_order=True))
    for (_, route), one in found.group_by(["request", "route"]):
        assert route in SETTINGS.routes
        assert one["rank"].to_list() == list(range(1, len(one) + 1))
        assert len(one) <= SETTINGS.per_route
        assert one["item"].is_unique().all()
    published = FeatureStore.open(features).items["published"]
    assert (published[found["item"].to_numpy()] <= read(tested, "requests")["time"][0]).all()
    assert read(tested, "merged").equals(snake_merge(found, SETTINGS.routes, size=30))


def test_what_was_shown_lately_is_not_recalled_and_the_routes_fill_up(
    features: Path, tested: tuple[Path, dict[str, float]]
) -> None:
    store, found, requests = FeatureStore.open(features), read(tested, "candidates"), read(tested, "requests")
    shown = exposure.load(tested[0] / "exposure")
    snapshot = take(store, store.slices["test"], "click")
    lately = snapshot.interactions.filter((pl.col("time") >= shown.since) & (pl.col("user") > 0))
    pairs = set(lately.select("user", "item").iter_rows())
    given = set(found.join(requests, on="request").select("user", "item").iter_rows())
    assert pairs
    assert not pairs & given
    taken = set(read(tested, "exposed").join(requests, on="request").select("user", "item").iter_rows())
    positives = read(tested, "positives").join(requests, on="request").select("user", "item")
    assert taken & pairs
    assert {pair for pair in positives.iter_rows() if pair in pairs} <= taken
    few = requests.join(lately.group_by("user").len().filter(pl.col("len") > 20), on="user", how="anti")["request"]
    assert len(few) > 10
    for route in ("two_tower", "hot"):
        filled = found.filter((pl.col("route") == route) & (pl.col("rank") == 20))["request"]
        assert set(few) <= set(filled)


def test_metrics_are_counted_right(tested: tuple[Path, dict[str, float]]) -> None:
    out, metrics = tested
    positives = read(tested, "positives")
    for name, table in {
        "recall_union": read(tested, "candidates"),
        "recall_merged": read(tested, "merged"),
        "recall_hot": read(tested, "candidates").filter(pl.col("route") == "hot"),
    }.items():
        pairs = set(table.select("request", "item").iter_rows())
        shares = [
            np.mean([(request, item) in pairs for item in one["item"]])
            for (request,), one in positives.group_by("request", maintain_order=True)
        ]
        assert metrics[name] == pytest.approx(np.mean(shares))
    assert metrics["recall_union"] >= metrics["recall_merged"] > 0
    assert metrics["exposure_false_positive_rate"] < 10 * SETTINGS.exposure_error
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["recall_union"] == metrics["recall_union"]
    for count in funnel["routes"].values():
        assert count["recalled"] - count["exposed"] >= count["kept"] >= count["merged"] > 0


def test_the_same_input_makes_the_same_bytes(
    features: Path, model: Path, tested: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    run(features, model, tmp_path)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(file) for file in files if (tmp_path / file).read_bytes() != (tested[0] / file).read_bytes()] == []


def test_removing_later_rows_changes_nothing(
    features: Path, model: Path, tested: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Candidates as of the test slice, from a features folder whose test slice holds other events."""
    moment = FeatureStore.open(features).slices["test"]
    later = pl.when(pl.col("time") >= moment).then(pl.lit(1, pl.Int32)).otherwise("item").alias("item")
    change_log(features, tmp_path, lambda day: day.with_columns(later))
    _, tables = run(tmp_path, model, tmp_path / "out")
    assert tables["candidates"].equals(read(tested, "candidates"))


def test_an_empty_route_is_said_and_the_others_fill_its_place(
    features: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = Found(np.empty((500, 0), np.int32), np.empty((500, 0), np.float32))
    monkeypatch.setattr(two_tower.Vectors, "recall", lambda *_: nothing)
    metrics, tables = run(features, model, tmp_path)
    assert metrics["empty_two_tower"] == metrics["requests"]
    assert metrics["recall_two_tower"] == 0
    assert "two_tower recalled nothing" in caplog.text
    assert tables["merged"].group_by("request").len()["len"].median() == 30


def test_a_route_whose_index_is_of_another_model_is_empty_counted_and_said(
    features: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fit = two_tower.fit

    def older_index(snapshot: object, folder: Path, *, model: Path) -> None:
        fit(snapshot, folder, model=model)
        header = json.loads((folder / trained.INDEX / "index.json").read_text())
        (folder / trained.INDEX / "index.json").write_text(json.dumps({**header, "model": "older"}))

    monkeypatch.setattr(two_tower, "fit", older_index)
    metrics, tables = run(features, model, tmp_path / "out")
    assert "the route two_tower is empty" in caplog.text
    assert "holds the vectors of model older" in caplog.text
    assert metrics["empty_two_tower"] == metrics["requests"]
    assert tables["merged"].group_by("request").len()["len"].to_list() == [30] * int(metrics["requests"])


def test_an_unknown_route_and_an_empty_slice_are_named(features: Path, model: Path, tmp_path: Path) -> None:
    for key, value in (("routes", ("hot", "magic")), ("quota", {"magic": 3}), ("options", {"magic": {}})):
        with pytest.raises(InputError, match=rf"recall\.{key}: 'magic' is unknown; there are hot, "):
            candidates.check(replace(SETTINGS, **{key: value}))
    with pytest.raises(
        InputError, match=r"recall\.options\.two_tower: there is no 'with'; it has width, epochs, .*, index"
    ):
        candidates.check(replace(SETTINGS, options={"two_tower": {"with": 3}}))
    for option, told in (("loss", "'nowhere' is unknown; it is one of listwise"), ("earlier", "nowhere: no such file")):
        with pytest.raises(InputError, match=rf"recall\.options\.two_tower\.{option}: {told}"):
            candidates.check(replace(SETTINGS, options={"two_tower": {option: "nowhere"}}))
    with pytest.raises(InputError, match=r"index 'hsnw' is unknown; it is auto, flat, ivf"):
        candidates.check(replace(SETTINGS, options={"two_tower": {"index": "hsnw"}}))
    store = FeatureStore.open(features)
    change_log(features, tmp_path, lambda day: day.with_columns(click=pl.lit(0, pl.Int8)))
    with pytest.raises(InputError, match=r"no row of the test slice has click = 1; lengthen split.test_days"):
        candidates.requests_of(replace(store, folder=tmp_path), "test", "click", TASKS, 10)


def test_the_run_that_a_route_learns_from_is_read(tmp_path: Path) -> None:
    latest = tmp_path / "latest.json"
    latest.write_text("{}")
    settings = replace(SETTINGS, options={"two_tower": {"earlier": str(latest)}, "item_cf": {"neighbours": 20}})
    candidates.check(settings)
    assert {route: candidates.reads(settings, route) for route in ("two_tower", "item_cf", "hot")} == {
        "two_tower": [latest],
        "item_cf": [],
        "hot": [],
    }


def test_automatic_quotas_are_chosen_on_the_validation_slice(features: Path, model: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, quota="auto")
    candidates.check(settings)
    run(features, model, tmp_path / "validation", "validation", settings)
    chosen = json.loads((tmp_path / "validation" / "quota.json").read_text())
    assert set(chosen) <= set(SETTINGS.routes)
    (tmp_path / "validation" / "quota.json").write_text(json.dumps({"hot": 0, "item_cf": 2}))
    _, tables = run(features, model, tmp_path / "test", "test", settings, validation=tmp_path / "validation")
    expected = snake_merge(tables["candidates"], SETTINGS.routes, size=30, quota={"hot": 0, "item_cf": 2})
    assert tables["merged"].equals(expected)


def test_the_worth_of_a_route_is_what_is_lost_without_it(tested: tuple[Path, dict[str, float]]) -> None:
    _, metrics = tested
    values, found, positives = read(tested, "value"), read(tested, "candidates"), read(tested, "positives")
    for route in SETTINGS.routes:
        others = found.filter(pl.col("route") != route)
        lost = metrics["recall_union"] - candidates.recall_of(positives, others)
        assert metrics[f"worth_union_{route}"] == pytest.approx(lost)
        left = snake_merge(found, [name for name in SETTINGS.routes if name != route], size=30)
        short = metrics["recall_merged"] - candidates.recall_of(positives, left)
        assert metrics[f"worth_merge_{route}"] == pytest.approx(short, abs=0.02)
    by_domain = values.filter(pl.col("domain") != "all", of="union", route="hot")
    mean = (by_domain["difference"] * by_domain["requests"]).sum() / by_domain["requests"].sum()
    assert mean == pytest.approx(metrics["worth_union_hot"])
    assert metrics["quota_gain_20"] == metrics["quota_gain_30"] == 0


def test_a_log_with_unknown_users(features: Path, model: Path, tmp_path: Path) -> None:
    change_log(features, tmp_path, lambda day: day.with_columns(user=pl.lit(0, pl.Int32)))
    metrics, tables = run(tmp_path, model, tmp_path / "out")
    assert tables["requests"]["user"].unique().to_list() == [0]
    assert metrics["exposed_positives"] == 0
    assert metrics["empty_item_cf"] == metrics["requests"]
    assert tables["merged"].group_by("request").len()["len"].min() == 30


def test_an_item_withdrawn_since_a_route_was_built(
    features: Path, tested: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A route whose lists were made before the best item of them was taken out of the catalogue."""
    found = read(tested, "candidates").filter(route="hot")
    gone = found["item"].mode().sort()[0]
    before = candidates.take
    some = {"per_route": 20, "routes": ("hot",)}

    def fewer(*arguments: Any) -> Snapshot:
        snapshot = before(*arguments)
        return replace(snapshot, items=snapshot.items.filter(pl.col("item") != gone))

    monkeypatch.setattr(candidates, "take", fewer)
    monkeypatch.setattr(hot, "fit", lambda _, folder: shutil.copy(tested[0] / "hot/hot.parquet", folder) and None)
    metrics, tables = run(features, tmp_path, tmp_path / "out", settings=replace(SETTINGS, **some))
    assert metrics["withdrawn_hot"] > 0
    assert gone not in tables["candidates"]["item"]
    assert tables["candidates"].group_by("request").len()["len"].max() == 20


def test_routes_of_attributes_and_recall_for_new_users_and_items(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small a market has few newcomers: here all with fewer than ten events are."""
    monkeypatch.setattr(cold_start, "FEW", 10)
    routes = ("tag", "place", "follow", "similar_author", "content", "fresh_taste", "segment_hot", "cache")
    metrics, tables = run(features, tmp_path, tmp_path / "out", settings=replace(SETTINGS, routes=routes))
    assert set(tables["candidates"]["route"]) == set(routes) - {"cache"}
    assert metrics["without_content_content"] == 0
    for group in ("new_users", "new_items"):
        assert metrics[f"positives_{group}"] > 0
        assert metrics[f"recall_{group}"] >= max(metrics[f"recall_{group}_{route}"] for route in routes)
    assert metrics["recall_new_items_fresh_taste"] > metrics["recall_fresh_taste"]
    store = FeatureStore.open(features)
    snapshot = take(store, store.slices["test"], "click")
    fewer = snapshot.history.group_by("user").len().filter(pl.col("len") >= 10)
    new = tables["requests"].join(fewer, on="user", how="anti")
    positives = tables["positives"].join(new, on="request", how="semi")
    assert metrics["positives_new_users"] == len(positives)
    assert metrics["recall_new_users"] == candidates.recall_of(positives, tables["candidates"])
