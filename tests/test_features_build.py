from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from day_files import read_log
from event_tables import CONTRACT, DOMAINS, FEATURES, TASKS, write_events

from models.schema import Schema
from pipeline import config
from pipeline.features import statistics
from pipeline.features.build import build
from pipeline.features.store import FeatureStore
from pipeline.lake import InputError

SETTINGS = replace(FEATURES, context=("hour", "device"))


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    return write_events(tmp_path_factory.mktemp("root") / "events")


@pytest.fixture(scope="module")
def built(events, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("features")
    return folder, run(events, folder)


def run(events: Path, out: Path, features: config.Features = SETTINGS, **split: float) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return build(events, out, features=features, contract=CONTRACT, split=config.Split(**split))


def copy(source: Path, target: Path, **tables: pl.DataFrame) -> Path:
    target.mkdir()
    for path in source.glob("*.parquet"):
        tables.get(path.stem, pl.read_parquet(path)).write_parquet(target / path.name)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_metrics(built, events):
    _, metrics = built
    shown = pl.read_parquet(events / "events.parquet").filter("shown").height
    assert metrics["rows_train"] + metrics["rows_validation"] + metrics["rows_test"] == shown
    assert metrics["users"] == 200
    assert metrics["vocabulary_category"] == 9
    assert metrics["collisions_item_id"] == 0
    assert 0.5 < metrics["leak_maximum_auc"] < 0.98
    assert all(isinstance(value, int | float) for value in metrics.values())


def test_schema(built):
    schema = Schema.from_json((built[0] / "schema.json").read_text())
    assert [(field.name, field.role) for field in schema.fields] == [
        ("user_id", "user"),
        ("segment", "user"),
        ("age", "user"),
        ("item_id", "item"),
        ("author_id", "item"),
        ("category", "item"),
        ("tag", "item"),
        ("width", "item"),
        ("domain", "context"),
        ("hour", "context"),
        ("position", "context"),
        ("device", "context"),
    ]
    assert schema.labels == TASKS
    assert schema.domains == DOMAINS
    assert [sequence.fields for sequence in schema.sequences] == [("item_id", "author_id", "category", "domain")] * 2
    roles = {number.name: number.role for number in schema.numbers}
    assert roles["income"] == roles["user_shows_1h"] == roles["segment_click_rate_all"] == "user"
    assert roles["price"] == roles["item_age"] == roles["author_id_shows_7d"] == "item"
    assert roles["domain_shows_all"] == "context"
    assert roles["user+category_shows_all"] == roles["item+domain_shows_1d"] == roles["clicked_tag_gap"] == "cross"


def test_the_log_carries_every_feature_and_codes_fit_their_tables(built):
    store = FeatureStore.open(built[0])
    log = store.log()
    order = np.lexsort((log.item, log.user, log.time))
    np.testing.assert_array_equal(order, np.arange(len(log)))
    tables = {"user": store.users, "item": store.items}
    context = [store.schema.fields[place].name for place in store.schema.positions("context")]
    for field in store.schema.fields:
        if field.role in tables:
            codes = tables[field.role][f"code_{field.name}"]
        else:
            codes = log.context[:, context.index(field.name)]
        assert codes.dtype == np.int32
        assert 0 <= codes.min() <= codes.max() < field.size
    train = store.log("train").numbers.astype(np.float64)
    np.testing.assert_allclose(
        [number.mean for number in store.schema.numbers], train.mean(axis=0), rtol=1e-4, atol=1e-6
    )
    spread = np.where(train.std(axis=0) > 1e-6, train.std(axis=0), 1)
    np.testing.assert_allclose([number.std for number in store.schema.numbers], spread, rtol=1e-3)
    assert np.isfinite(store.log().numbers).all()


def test_users_and_items_keep_everyone(built, events):
    users, items = (pl.read_parquet(built[0] / f"{name}.parquet") for name in ("users", "items"))
    assert users["user_id"][0] is items["item_id"][0] is None
    assert users["user_id"][1:].sort().to_list() == [*range(200)]
    assert items["item_id"][1:].sort().to_list() == pl.read_parquet(events / "items.parquet")["item_id"].to_list()
    norms = np.linalg.norm(items["content"].to_numpy(), axis=1)
    np.testing.assert_allclose(norms, [0, *np.ones(100)], rtol=1e-5)
    codes = items.select(pl.selectors.starts_with("code_"))
    assert all(value == 0 for value in codes.row(0))


def test_vocabularies_are_fitted_on_training_rows(built):
    slices = json.loads((built[0] / "slices.json").read_text())
    vocabulary = pl.read_parquet(built[0] / "vocabulary.parquet")
    assert vocabulary.columns == ["field", "value", "fid", "code", "count", "last_seen"]
    assert vocabulary["last_seen"].max() < slices["validation"]
    assert vocabulary["count"].min() >= SETTINGS.admit_after
    for part in vocabulary.partition_by("field", maintain_order=True):
        assert part["code"].to_list() == list(range(1, part.height + 1))


def test_behaviours_hold_prior_history_and_delayed_conversions(built):
    clicked, converted = (pl.read_parquet(built[0] / f"behaviour_{name}.parquet") for name in ("clicked", "converted"))
    assert (clicked["domain"] == -1).sum() == 600
    assert clicked.select("user", "time").equals(clicked.select("user", "time").sort("user", "time"))
    assert (converted["domain"] >= 0).all()
    delayed = read_log(built[0]).filter(pl.col("convert") == 1)["convert_time"].to_list()
    assert set(delayed) <= set(converted["time"])


def test_the_same_input_gives_the_same_bytes_in_any_order_of_rows(built, events, tmp_path):
    tables = {
        name: pl.read_parquet(events / f"{name}.parquet").sample(fraction=1, shuffle=True, seed=3)
        for name in ("events", "items", "users", "history")
    }
    run(copy(events, tmp_path / "shuffled", **tables), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(built[0])


def test_cutting_the_future_changes_no_earlier_feature(built, events, tmp_path):
    log = pl.read_parquet(events / "events.parquet")
    slices = json.loads((built[0] / "slices.json").read_text())
    kept = log.filter(pl.col("time").dt.epoch("us") < slices["test"])
    days = (slices["end"] - slices["test"]) / 86_400_000_000
    run(copy(events, tmp_path / "cut", events=kept), tmp_path / "out", validation_days=days / 2, test_days=days / 2)
    earlier = FeatureStore.open(tmp_path / "out").log("train")
    same = FeatureStore.open(built[0]).log("train").take(np.arange(len(earlier)))
    np.testing.assert_array_equal(earlier.lengths["clicked"], same.lengths["clicked"])
    shows = [place for place, one in enumerate(FeatureStore.open(built[0]).schema.numbers) if "_shows_" in one.name]
    np.testing.assert_array_equal(earlier.numbers[:, shows], same.numbers[:, shows])


def test_durations_are_carried_beside_the_labels(events, tmp_path):
    """In seconds as logged, NaN where unknown, for the same rows as the labels; and unknown for any other row."""
    log = pl.read_parquet(events / "events.parquet")
    seconds = pl.Series("watch", np.arange(log.height) / 4, pl.Float32).set(log["click"] == 0, None)
    contract = replace(CONTRACT, durations={"watch": "s"})
    (tmp_path / "out").mkdir()
    folder = copy(events, tmp_path / "watched", events=log.with_columns(seconds))
    build(folder, tmp_path / "out", features=SETTINGS, contract=contract, split=config.Split())
    store = FeatureStore.open(tmp_path / "out")
    rows = store.log()
    assert store.schema.durations == ("watch",)
    assert store.schema.labels == TASKS
    shown = log.with_columns(seconds).filter("shown")
    assert rows.durations.shape == (shown.height, 1)
    assert np.nansum(rows.durations) == shown["watch"].sum()
    np.testing.assert_array_equal(np.isnan(rows.durations[:, 0]), rows.labels[:, 0] == 0)
    other = store.rows(rows.user[:3], rows.item[:3], rows.domain[:3], rows.time[:3])
    assert np.isnan(other.durations).all()
    assert other.durations.shape == (3, 1)


def test_a_label_among_the_context_columns_is_a_leak(events, tmp_path):
    log = pl.read_parquet(events / "events.parquet").with_columns(watched=pl.col("click") * 7)
    leaking = replace(SETTINGS, context=("watched",))
    with pytest.raises(InputError, match="'code_watched' alone predicts 'click'"):
        run(copy(events, tmp_path / "leaking", events=log), tmp_path / "out", leaking)


def test_a_feature_that_knows_the_future_is_caught(events, tmp_path, monkeypatch):
    def total(counter, keys, times, windows):
        return honest(counter, keys, np.full_like(times, 1 << 60), windows)

    honest = statistics.as_of
    monkeypatch.setattr("pipeline.features.facts.as_of", total)
    with pytest.raises(InputError, match=r"'user_\w+' knows the future"):
        run(events, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": ("shoe",)}, r"users\.parquet: no column 'shoe', which features\.user names; it has age, income"),
        ({"item": ("shoe",)}, r"items\.parquet: no column 'shoe'"),
        ({"item": ("tags",)}, "holds lists"),
        ({"context": ("shoe",)}, r"events\.parquet: no column 'shoe', which features\.context names"),
        ({"numbers": {"shoe": "cdf"}}, r"'shoe' of features\.numbers .* neither table has it"),
        ({"numbers": {"age": "bucket"}}, "'age' is named twice"),
        ({"statistics": ("user+shoe",)}, r"features\.statistics: 'user\+shoe' has no column 'shoe'"),
        ({"windows": ("1w",)}, r"features\.windows: '1w' is not a window"),
        ({"rates": ("follow",)}, r"features\.rates: 'follow' is not a task"),
        ({"behaviours": {"followed": "follow"}}, r"features\.behaviours: 'follow' is not a task"),
        ({"lengths": {"liked": 9}}, r"features\.lengths: 'liked' is not a behaviour .* \(clicked, converted\)"),
        ({"crosses": config.Crosses(columns=("age", "shoe"))}, r"features\.crosses\.columns: no column 'shoe'"),
    ],
)
def test_a_wrong_setting_names_its_key(events, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(events, tmp_path / "out", replace(SETTINGS, **change))


def test_a_number_in_both_tables_must_be_renamed(events, tmp_path):
    users = pl.read_parquet(events / "users.parquet").with_columns(price=1.0)
    with pytest.raises(InputError, match="both tables have it"):
        run(copy(events, tmp_path / "both", users=users), tmp_path / "out")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (
            [[1.0, 0.0]] * 200,
            r"users\.parquet: vectors of column 'content' have 2 numbers and those of items\.parquet 4",
        ),
        ([[1.0], [1.0, 0.0]] * 100, r"users\.parquet: vectors of column 'content' have \[1, 2\] numbers"),
    ],
)
def test_vectors_of_another_length_are_named(events, tmp_path, vectors, message):
    users = pl.read_parquet(events / "users.parquet").with_columns(content=pl.Series(vectors))
    with pytest.raises(InputError, match=message):
        run(copy(events, tmp_path / "vectors", users=users), tmp_path / "out")


def test_a_missing_task(events, tmp_path):
    log = pl.read_parquet(events / "events.parquet").drop("like")
    with pytest.raises(InputError, match=r"no column 'like', which contract\.tasks names"):
        run(copy(events, tmp_path / "without", events=log), tmp_path / "out")


def test_an_empty_slice(events, tmp_path):
    with pytest.raises(InputError, match="the train slice"):
        run(events, tmp_path / "out", validation_days=100)


def test_only_the_wanted_matches(events, tmp_path):
    run(events, tmp_path / "out", replace(SETTINGS, matches=("category",)))
    store = FeatureStore.open(tmp_path / "out")
    matches = [one.name for one in store.schema.numbers if one.role == "cross" and one.name.startswith("clicked_")]
    assert matches == ["clicked_same_category", "clicked_category_gap"]


def test_a_log_without_history_content_or_publication(events, tmp_path):
    items = pl.read_parquet(events / "items.parquet").drop("content", "published")
    bare = copy(events, tmp_path / "bare", items=items)
    (bare / "history.parquet").unlink()
    run(bare, tmp_path / "out")
    store = FeatureStore.open(tmp_path / "out")
    assert "content" not in store.items
    assert not any("content" in one.name or one.name == "item_age" for one in store.schema.numbers)
    assert (store.behaviours["clicked"]["domain"] >= 0).all()
