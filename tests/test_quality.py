from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from event_tables import CONTRACT, FEATURES, write_events

from models.schema import Number
from pipeline import config
from pipeline.diagnostics import columns, quality
from pipeline.diagnostics.columns import Category, Feature, Quantity
from pipeline.diagnostics.daily import Frame, Measured, measure
from pipeline.features.build import build
from pipeline.features.store import DAY, FeatureStore, Rows
from pipeline.lake import InputError

FIRST = date(1970, 1, 1)
PAIRS = ("segment*age", "segment*category", "age*domain")
SETTINGS = replace(FEATURES, context=("hour", "device"), crosses=config.Crosses(pairs=PAIRS))
WATCH, SILENT = date(2023, 11, 23), date(2023, 11, 24)


# A world by hand: users with an attribute, one number of the row and one of the user, a category and a label.


def text(codes: list[int]) -> list[str]:
    return [f"v{code}" for code in codes]


def of_user(values: np.ndarray, rows: Rows) -> np.ndarray:
    return values[rows.user]


def rows_of(day: int, user: np.ndarray, category: np.ndarray, number: np.ndarray, label: np.ndarray) -> Rows:
    size = len(user)
    return Rows(
        user=user.astype(np.int32),
        item=np.zeros(size, np.int32),
        domain=np.zeros(size, np.int16),
        time=day * DAY + np.arange(size, dtype=np.int64) * (DAY // max(1, size)),
        context=category.astype(np.int32)[:, None],
        numbers=number.astype(np.float32)[:, None],
        ends={},
        lengths={},
        durations=np.empty((size, 0), np.float32),
        labels=label.astype(np.float32)[:, None],
    )


def features(of_users: np.ndarray | None = None) -> list[Feature]:
    codes = partial(columns._context_codes, 0)
    own = [] if of_users is None else [Quantity("of_user", "user", "number", partial(of_user, of_users), False)]
    return [
        Category("category", "user", codes, codes, 8, 8, text, text),
        Quantity("number", "user", "number", partial(columns._plain_number, 0), False),
        Quantity("click", "user", "label", partial(columns._label, 0), False),
        *own,
    ]


def look(days: list[Rows], trained: int, of_users: np.ndarray | None = None) -> Measured:
    """Measure days of which the first `trained` are the training slice."""
    frame = Frame(
        bounds={"begin": 0, "validation": trained * DAY, "test": (len(days) - 1) * DAY, "end": len(days) * DAY},
        keys=lambda entity, rows: rows.user,
        domains=("home",),
        labels=("click",),
        positive="click",
        warm_up=0,
    )
    return measure(features(of_users), lambda: enumerate(days), frame)


def by_day(measured: Measured, feature: str, column: str) -> list:
    return measured.table.filter(pl.col("feature") == feature)[column].to_list()


def test_figures_on_paper():
    days = [
        rows_of(0, np.arange(4), np.array([1, 1, 2, 0]), np.array([0, 1, 2, 5]), np.array([1, 0, 0, 0])),
        rows_of(1, np.arange(4), np.array([1, 3, 3, 4]), np.array([0, np.nan, 3, 0]), np.array([1, 1, 0, 1])),
        rows_of(2, np.array([0, 0]), np.array([2, 5]), np.array([np.nan, np.nan]), np.array([0, 0])),
    ]
    measured = look(days, trained=2)
    assert by_day(measured, "category", "unknown") == [0.25, 0, 0]
    assert by_day(measured, "category", "values") == [2, 3, 2]
    assert by_day(measured, "category", "new") == [0, 2, 1]
    assert by_day(measured, "category", "new_share") == [0, 0.75, 0.5]
    assert by_day(measured, "category", "new_values") == [[], ["v3", "v4"], ["v5"]]
    assert by_day(measured, "number", "unknown") == [0, 0.25, 1]
    assert by_day(measured, "number", "zero") == [0.25, pytest.approx(2 / 3), None]
    assert by_day(measured, "number", "minimum") == [0, 0, None]
    assert by_day(measured, "number", "median") == [1, 0, None]
    assert by_day(measured, "number", "maximum") == [5, 3, None]
    assert by_day(measured, "number", "mean") == [2, 1, None]
    assert by_day(measured, "number", "correlation")[0] == pytest.approx(
        np.corrcoef([0, 1, 2, 5], [1, 0, 0, 0])[0, 1], rel=1e-6
    )
    assert by_day(measured, "click", "mean") == [0.25, 0.75, 0]
    assert by_day(measured, "click", "draws") == [4, 4, 1]
    assert by_day(measured, "click", "slice") == ["train", "train", "test"]
    assert measured.days.filter(pl.col("domain") == "all")["rate_click"].to_list() == [0.25, 0.75, 0]
    assert measured.days["users"].to_list() == [4, 4, 4, 4, 1, 1]
    assert measured.histograms["category"].train.tolist() == [1, 3, 2, 1, 1, 0]


def drifting(day: int, seed: int, users: int = 2_000) -> Rows:
    random = np.random.default_rng(seed + day)
    return rows_of(
        day,
        np.arange(users),
        random.integers(1, 5, users),
        random.normal(size=users),
        random.random(users) < 0.3,
    )


def test_a_planted_shift_is_found_and_nothing_else():
    days = [drifting(day, seed=0) for day in range(8)]
    moved = rows_of(6, days[6].user, days[6].context[:, 0], days[6].numbers[:, 0] + 1, days[6].labels[:, 0])
    found = look([*days[:6], moved, days[7]], trained=5)
    warnings = quality.exceeding(found.table, config.Quality(), "warn")
    assert warnings.select("feature", "figure", "day", "days").rows() == [
        ("number", "psi", FIRST + timedelta(days=6), 1)
    ]
    before = by_day(found, "number", "psi_before")
    assert before[0] is None
    assert max(before[1:6]) < 0.05
    assert min(before[6:]) > 0.5
    assert quality.exceeding(look(days, trained=5).table, config.Quality(), "warn").is_empty()


def test_unknown_vanished_and_rate_warn_each_by_its_own_threshold():
    days = [drifting(day, seed=0) for day in range(6)]
    category, number, label = (days[5].context[:, 0].copy(), days[5].numbers[:, 0].copy(), days[5].labels[:, 0])
    category[category == 4] = 3
    number[:500] = np.nan
    days[5] = rows_of(5, days[5].user, category, number, label * (np.arange(len(label)) < 200))
    loose = config.Quality(warn_psi=9, warn_unknown=0.2, warn_vanished=0.2, warn_rate=0.5)
    warnings = quality.exceeding(look(days, trained=4).table, loose, "warn")
    assert sorted(warnings.select("feature", "figure").rows()) == [
        ("category", "vanished"),
        ("click", "rate"),
        ("number", "unknown"),
    ]
    assert by_day(look(days, trained=4), "category", "vanished_values")[5] == ["v4"]
    tight = config.Quality(warn_psi=9, warn_unknown=0.3, warn_vanished=0.3, warn_rate=0.9)
    assert quality.exceeding(look(days, trained=4).table, tight, "warn").is_empty()


@pytest.mark.parametrize("seed", range(4))
def test_sampling_noise_alone_raises_no_warning(seed: int):
    random = np.random.default_rng(seed)
    of_users = random.normal(size=3_000).astype(np.float32)
    days = []
    for day, users in enumerate([300, 200, 400, 250, 300, 1, 2, 5, 10, 20, 40, 80, 160, 320]):
        user = np.repeat(random.integers(0, 3_000, users), random.geometric(0.2, users))
        days.append(
            rows_of(
                day,
                user,
                random.choice(8, len(user), p=[0.02, 0.4, 0.3, 0.2, 0.05, 0.02, 0.009, 0.001]),
                random.lognormal(size=len(user)),
                random.random(len(user)) < 0.05,
            )
        )
    table = look(days, trained=5, of_users=of_users).table
    assert table["psi"].max() > config.Quality().warn_psi
    for column in ("drift", "unknown_rise", "vanished_share"):
        assert table[column].max() == 0
    assert table["rate_change"].max() == 0


def test_a_log_of_one_day_of_which_little_is_training():
    frame = Frame({"begin": 0, "validation": DAY // 10, "test": DAY // 2, "end": DAY}, lambda entity, rows: rows.user,
                  ("home",), ("click",), "click", 0)  # fmt: skip
    measured = measure(features(), lambda: [(0, drifting(0, seed=0))], frame)
    assert by_day(measured, "number", "slice") == ["test"]
    assert by_day(measured, "number", "drift") == [0]
    assert by_day(measured, "number", "psi_before") == [None]
    assert measured.histograms["number"].train.sum() == 200
    assert measured.histograms["number"].daily.sum() == 2_000


def test_constant_and_duplicated_features():
    user, one = np.arange(3), np.ones(3)
    days = [rows_of(day, user, np.array([1, 2, 1]), one * 7, one * [1, 0, day]) for day in range(3)]
    twice = [*features(), replace(features()[2], name="again", kind="number")]
    frame = Frame({"begin": 0, "validation": DAY, "test": 2 * DAY, "end": 3 * DAY}, lambda entity, rows: rows.user,
                  ("home",), ("click",), "click", 0)  # fmt: skip
    measured = measure(twice, lambda: enumerate(days), frame)
    assert measured.constant == ["number"]
    assert measured.duplicated == [["click", "again"]]


# A whole log: from 23 November a device is renamed, on the 24th hardly anybody clicks.


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_events(tmp_path_factory.mktemp("root") / "events", events=4_000, users=400)
    log = pl.read_parquet(folder / "events.parquet")
    late = pl.col("time").dt.date() >= WATCH
    silent = (pl.col("time").dt.date() == SILENT) & (pl.col("user_id") > 10)
    log.with_columns(
        device=pl.when(late & (pl.col("device") != "tv")).then(pl.lit("watch")).otherwise("device"),
        click=pl.when(silent).then(0).otherwise("click").cast(pl.Int8),
    ).write_parquet(folder / "events.parquet")
    return folder


@pytest.fixture(scope="module")
def built(events: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    build(events, folder, features=SETTINGS, contract=CONTRACT, split=config.Split())
    return folder


@pytest.fixture(scope="module")
def checked(events: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("quality")
    return folder, quality.check(events, built, folder, settings=config.Quality(), contract=CONTRACT)


def test_every_feature_has_a_row_a_day(checked: tuple[Path, dict[str, float]], built: Path):
    table = pl.read_parquet(checked[0] / "quality.parquet")
    schema = FeatureStore.open(built).schema
    names = [
        *(one.name for one in (*schema.fields, *schema.numbers)),
        *(f"{one.name}_length" for one in schema.sequences),
        *schema.labels,
    ]
    assert table["feature"].unique(maintain_order=True).to_list() == names
    assert table.group_by("feature").len()["len"].unique().to_list() == [11]
    assert not table.select("feature", "day").is_duplicated().any()


def test_what_was_planted_in_the_log_is_found(checked: tuple[Path, dict[str, float]]):
    folder, metrics = checked
    table = pl.read_parquet(folder / "quality.parquet")
    device = table.filter(pl.col("feature") == "device")
    assert device.filter(pl.col("day") == WATCH)["unknown"][0] > 0.5
    assert device.filter(pl.col("day") == WATCH)["vanished_values"].to_list() == [["phone", "web"]]
    warnings = pl.read_parquet(folder / "warnings.parquet")
    found = warnings.select("feature", "figure").rows()
    assert {("device", "psi"), ("device", "unknown"), ("device", "vanished")} <= set(found)
    silent = quality.exceeding(table, config.Quality(warn_rate=0.2), "warn").filter(pl.col("figure") == "rate")
    assert ("click", SILENT) in silent.select("feature", "day").rows()
    assert metrics["quality_warnings"] == warnings.height
    assert metrics["psi_max"] == table.filter("judged")["drift"].max()
    assert metrics["days"] == 11
    assert not table.filter(pl.col("feature") == "hour")["judged"][-1]


def test_missing_and_new_are_counted_on_raw_values(checked: tuple[Path, dict[str, float]], events: Path):
    table = pl.read_parquet(checked[0] / "quality.parquet").filter(pl.col("day") == SILENT)
    log = pl.read_parquet(events / "events.parquet").filter("shown")
    items = pl.read_parquet(events / "items.parquet")
    of_day = log.filter(pl.col("time").dt.date() == SILENT).join(items, on="item_id", how="left")
    earlier = log.filter(pl.col("time").dt.date() < SILENT).join(items, on="item_id", how="left")
    figures = {row["feature"]: row for row in table.iter_rows(named=True)}
    assert figures["item_age"]["unknown"] == pytest.approx(of_day["published"].is_null().mean())
    assert figures["price"]["unknown"] == 0
    for name in ("author_id", "item_id", "user_id"):
        new = (
            of_day[name]
            .drop_nulls()
            .unique()
            .filter(~of_day[name].drop_nulls().unique().is_in(earlier[name].implode()))
        )
        assert figures[name]["new"] == len(new)
        assert set(figures[name]["new_values"]) <= set(new.cast(pl.String))
        assert figures[name]["values"] == of_day[name].drop_nulls().n_unique()


def test_a_missing_number_is_unknown_though_it_was_encoded(built: Path, tmp_path: Path, events: Path):
    items = pl.read_parquet(events / "items.parquet")
    raw = tmp_path / "events"
    raw.mkdir()
    items.with_columns(price=pl.when(pl.col("item_id") < "i5").then("price")).write_parquet(raw / "items.parquet")
    (raw / "users.parquet").write_bytes((events / "users.parquet").read_bytes())
    store = FeatureStore.open(built)
    rows = store.log()
    (price,) = (one for one in columns.features_of(store, raw) if one.name == "price")
    assert isinstance(price, Quantity)
    ids = pl.read_parquet(built / "items.parquet", columns=["item_id"])["item_id"]
    expected = (ids.gather(rows.item) >= "i5").to_numpy()
    np.testing.assert_array_equal(np.isnan(price.values(rows)), expected)


def test_a_cross_is_a_category_of_its_row(built: Path, events: Path):
    store = FeatureStore.open(built)
    log, features = store.log(), {one.name: one for one in columns.features_of(store, events)}
    vocabulary = pl.read_parquet(built / "vocabulary.parquet").filter(field="age*domain")
    cross = features["age*domain"]
    assert isinstance(cross, Category)
    assert cross.size == vocabulary.height + 1
    codes = cross.codes(log)
    np.testing.assert_array_equal(cross.raw(log), codes)
    known = np.flatnonzero(codes)[::50]
    ages, domains = (features[name].code_names(features[name].codes(log)[known].tolist()) for name in ("age", "domain"))
    assert cross.code_names(codes[known].tolist()) == [f"{a} * {d}" for a, d in zip(ages, domains, strict=True)]


def test_likeness_is_missing_where_a_vector_is(built: Path, events: Path):
    store = FeatureStore.open(built)
    vectors = np.ones((len(store.users["code_user_id"]), 4), np.float32) / 2
    vectors[::3] = 0
    schema = replace(store.schema, numbers=(*store.schema.numbers, Number("content_similarity", "cross")))
    store = replace(store, schema=schema, users={**store.users, "content": vectors})
    log, likeness = store.log(), columns.features_of(store, events)[len(schema.fields) + len(schema.numbers) - 1]
    assert isinstance(likeness, Quantity)
    assert (likeness.name, likeness.looks_back) == ("content_similarity", False)
    values = likeness.values(log)
    np.testing.assert_array_equal(np.isnan(values), log.user % 3 == 0)
    expected = (store.items["content"][log.item] / 2).sum(axis=1)
    np.testing.assert_allclose(values[log.user % 3 > 0], expected[log.user % 3 > 0], atol=1e-6)


def test_nothing_is_raised_or_printed_without_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    days = [drifting(day, seed=0) for day in range(3)]
    table = look(days, trained=2).table
    table.write_parquet(tmp_path / "quality.parquet")
    quality.exceeding(table, config.Quality(), "warn").write_parquet(tmp_path / "warnings.parquet")
    quality.tell(tmp_path, config.Quality(stop_psi=0.3))
    assert capsys.readouterr().out == ""


def test_the_worst_ten_warnings_are_printed(checked: tuple[Path, dict[str, float]], capsys: pytest.CaptureFixture[str]):
    quality.tell(checked[0], config.Quality())
    lines = capsys.readouterr().out.splitlines()
    warnings = pl.read_parquet(checked[0] / "warnings.parquet")
    assert max(len(line.rstrip()) for line in lines[:-2]) <= 100
    assert "device" in "\n".join(lines)
    assert sum(bool(re.search(r"2023-11-\d\d", line)) for line in lines) == min(10, warnings.height)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stop_psi": 0.5}, r"'device' on 2023-11-2\d: PSI .* quality\.stop_psi is 0\.5; mend"),
        ({"stop_unknown": 0.2}, r"'device' on 2023-11-2\d: rise of the unknown .* quality\.stop_unknown is 0\.2"),
        ({"stop_vanished": 0.3}, r"'device' on 2023-11-2\d: .*vanished.* quality\.stop_vanished is 0\.3"),
        ({"stop_rate": 0.2}, r"'\w+' on 2023-11-24: .*rate.* quality\.stop_rate is 0\.2"),
    ],
)
def test_a_stop_names_feature_day_figure_and_setting(
    checked: tuple[Path, dict[str, float]], settings: dict[str, float], told: str
):
    with pytest.raises(InputError, match=told):
        quality.tell(checked[0], config.Quality(**settings))


def test_a_cross_that_stops_is_not_called_a_column(checked: tuple[Path, dict[str, float]], tmp_path: Path):
    for name in ("quality", "warnings"):
        table = pl.read_parquet(checked[0] / f"{name}.parquet").filter(feature="device")
        table.with_columns(feature=pl.lit("age*device")).write_parquet(tmp_path / f"{name}.parquet")
    told = r"'age\*device' on .*; mend that day's log, take the pair out of features\.crosses\.pairs, or one of"
    with pytest.raises(InputError, match=told):
        quality.tell(tmp_path, config.Quality(stop_psi=0.5))


def test_the_page_holds_every_feature_and_needs_no_network(checked: tuple[Path, dict[str, float]]):
    page = (checked[0] / "quality.html").read_text()
    table = pl.read_parquet(checked[0] / "quality.parquet")
    names = table["feature"].unique()
    assert set(re.findall(r'data-name="([^"]*)"', page)) == set(names)
    assert page.count('aria-label="Histogram of') == page.count('aria-label="PSI of') == len(names)
    assert re.search(r"2 on 2023-11-2\d \(\d+\.\d%\): phone, web<", page)
    assert not re.search(r"(?:src|srcset)=|url\(|https?://|@import", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert page.count("<script") == 1
    for path in re.findall(r' d="([^"]*)"', page):
        assert re.fullmatch(r"[MLHVhvz\d. -]+", path)


def test_the_same_input_gives_the_same_bytes(
    checked: tuple[Path, dict[str, float]], events: Path, built: Path, tmp_path
):
    quality.check(events, built, tmp_path, settings=config.Quality(), contract=CONTRACT)
    for path in sorted(checked[0].iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert json.loads(json.dumps(checked[1])) == checked[1]


def test_features_that_look_back_are_not_judged_while_the_log_is_young(checked: tuple[Path, dict[str, float]]):
    table = pl.read_parquet(checked[0] / "quality.parquet")
    young = table.filter(pl.col("day") < date(2023, 11, 21))
    assert not young.filter(pl.col("feature").is_in(["user_shows_7d", "clicked_length"]))["judged"].any()
    assert young.filter(pl.col("feature").is_in(["price", "device", "click"]))["judged"].all()
    late = table.filter(pl.col("day") >= WATCH)
    assert late.filter(pl.col("feature") != "hour")["judged"].all()
