"""The simulated market: its labels follow its stated probabilities, and its structure is the one promised."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from pipeline import config
from pipeline.lake import InputError
from pipeline.sources import contract, simulator

TABLES = ("events", "items", "users", "history", "truth")
SETTINGS = config.Simulator(users=3_000, items=1_500, impressions=60_000)


def make(folder: Path, settings: config.Simulator) -> Path:
    folder.mkdir()
    contract.write_events(settings, config.Contract(), folder)
    return folder


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("market") / "events", SETTINGS)


def labelled(folder: Path) -> pl.DataFrame:
    truth = pl.read_parquet(folder / "truth.parquet").rename(lambda task: f"true_{task}")
    return pl.read_parquet(folder / "events.parquet").hstack(truth)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    small = config.Simulator(users=200, items=150, impressions=2_000)
    one, two = make(tmp_path / "one", small), make(tmp_path / "two", small)
    other = make(tmp_path / "other", config.Simulator(users=200, items=150, impressions=2_000, seed=1))
    names = [f"{table}.parquet" for table in TABLES] + ["world.npz"]
    assert filecmp.cmpfiles(one, two, names, shallow=False)[0] == names
    assert filecmp.cmpfiles(one, other, names, shallow=False)[1] == names


def test_tables_have_the_promised_form(market: Path) -> None:
    events = pl.read_parquet(market / "events.parquet")
    assert events.height == SETTINGS.impressions
    assert events["time"].dtype == pl.Datetime("us", "UTC")
    assert events.equals(events.sort("time", "user_id", "item_id"))
    items = pl.read_parquet(market / "items.parquet")
    assert items["content"].dtype == pl.Array(pl.Float32, 16)
    np.testing.assert_allclose(np.linalg.norm(items["content"].to_numpy(), axis=1), 1, atol=1e-6)
    tags = items["tags"].list
    assert tags.len().is_between(1, 4).all()
    assert (tags.n_unique() == tags.len()).all()
    assert (tags.first() == items["tag"]).all()
    history = pl.read_parquet(market / "history.parquet")
    assert history["time"].max() < events["time"].min()
    clicks = history.filter(pl.col("behaviour") == "click")
    assert clicks.group_by("user_id").len()["len"].is_between(5, 30).all()
    assert clicks.select(pl.col("time").is_sorted().over("user_id")).to_series().all()


def test_oracle_is_hard_but_not_hopeless(market: Path) -> None:
    rows = labelled(market)
    oracle = roc_auc_score(rows["click"], rows["true_click"])
    shows = pl.int_range(pl.len()).over("item_id")
    clicks = pl.col("click").cast(pl.Int64).cum_sum().over("item_id") - pl.col("click")
    popularity = rows.select((clicks + 4) / (shows + 20)).to_series()
    assert 0.75 <= oracle <= 0.82
    assert roc_auc_score(rows["click"], popularity) <= oracle - 0.10
    assert 0.15 <= rows["click"].mean() <= 0.25


@pytest.mark.parametrize("task", ["click", "long_view", "like"])
def test_labels_follow_the_truth(market: Path, task: str) -> None:
    rows = labelled(market).select(label=pl.col(task).cast(pl.Float64), p=pl.col(f"true_{task}").cast(pl.Float64))
    rows = rows.with_columns(tenth=pl.col("p").rank("ordinal") * 10 // (rows.height + 1))
    for part in [rows, *rows.partition_by("tenth")]:
        error = (part["p"] * (1 - part["p"])).sum() ** 0.5
        assert abs(part["label"].sum() - part["p"].sum()) <= 4 * error + 1


def test_follow_ups_need_a_click_and_conversions_come_late(market: Path) -> None:
    rows = labelled(market)
    assert rows.filter(pl.col("click") == 0).select("long_view", "like", "convert").sum().row(0) == (0, 0, 0)
    sold = rows.filter(pl.col("convert") == 1)
    assert sold["convert_time"].null_count() == 0
    assert (sold["convert_time"] > sold["time"]).all()
    assert rows.filter(pl.col("convert") == 0)["convert_time"].null_count() == rows.height - sold.height
    hours = (sold["convert_time"] - sold["time"]).dt.total_seconds().mean() / 3600
    assert hours == pytest.approx(SETTINGS.market.conversion_hours, rel=0.2)
    end = simulator.START + SETTINGS.days * simulator.DAY
    assert sold["convert_time"].to_physical().max() < end
    last_hours = rows.filter(pl.col("time").to_physical() > end - simulator.DAY // 8)
    assert last_hours["convert"].sum() < last_hours["true_convert"].sum()


def test_true_probability_is_the_truth_of_the_log(market: Path) -> None:
    rows = labelled(market).sample(2_000, seed=0)
    answer = simulator.true_probability(
        market,
        rows["user_id"].to_numpy(),
        rows["item_id"].to_numpy(),
        rows["domain"].to_numpy(),
        rows["time"].to_physical().to_numpy(),
        rows["position"].to_numpy(),
    )
    for task, probability in answer.items():
        np.testing.assert_allclose(probability, rows[f"true_{task}"], atol=1e-6)


def test_paired_domains_have_opposite_tastes(market: Path) -> None:
    world = simulator.World.load(market)
    assert len(world.domain_names) == 5
    for a, b in ((0, 1), (2, 3)):
        assert np.corrcoef(world.affinity[a].ravel(), world.affinity[b].ravel())[0, 1] < -0.9
        assert np.corrcoef(world.bias[a], world.bias[b])[0, 1] < -0.9
    assert (np.sign(world.domain_weights).min(axis=0) == -1).all()


def test_nothing_is_shown_before_its_birth(market: Path) -> None:
    events = pl.read_parquet(market / "events.parquet")
    items = pl.read_parquet(market / "items.parquet")
    shown = events.join(items, on="item_id")
    assert (shown["time"] >= shown["published"]).all()
    history = pl.read_parquet(market / "history.parquet").join(items, on="item_id")
    assert (history["time"] >= history["published"]).all()


def test_a_session_holds_distinct_items_in_positions_from_one() -> None:
    chosen = np.array([[5, 5, 7, 5, 8, 9], [1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, 3]])
    kept = simulator._first_distinct(chosen, np.array([3, 2, 4]))
    expected = [[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(kept, np.array(expected, dtype=bool))


def test_random_sessions_show_old_items_alike(market: Path) -> None:
    events = pl.read_parquet(market / "events.parquet")
    assert events["random"].mean() == pytest.approx(SETTINGS.market.random_sessions, rel=0.25)
    items = pl.read_parquet(market / "items.parquet")
    old = items.filter(pl.col("published").to_physical() < simulator.START)
    counts = events.filter("random").join(old, on="item_id")["item_id"].value_counts()["count"].to_numpy()
    expected = counts.sum() / old.height
    chi_square = ((counts - expected) ** 2).sum() / expected + (old.height - len(counts)) * expected
    assert abs(chi_square - old.height) < 4 * np.sqrt(2 * old.height)
    quality = simulator.World.load(market).quality
    chosen = events.filter(~pl.col("random"))["item_id"].to_numpy() - 1
    assert quality[chosen].mean() > quality.mean() + 0.2


def test_a_third_of_the_users_drift(market: Path) -> None:
    world = simulator.World.load(market)
    drifting = world.drift_time < world.end
    assert drifting.mean() == pytest.approx(SETTINGS.market.drifting, abs=0.04)
    user = np.flatnonzero(drifting)[:50]
    before = simulator._current_interests(world, user, world.drift_time[user] - 1)
    after = simulator._current_interests(world, user, world.drift_time[user])
    assert (before[:, 0] != after[:, 0]).all()
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])


def test_blocks_follow_one_another_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "BLOCK", 1_000)
    settings = config.Simulator(users=300, items=200, impressions=4_500)
    pieces = list(simulator.simulate(settings, tmp_path).events)
    assert len(pieces) == 5
    for earlier, later in pairwise(pieces):
        assert earlier["time"].max() < later["time"].min()
    assert sum(piece.height for piece in pieces) == 4_500
    assert pl.read_parquet(tmp_path / "truth.parquet").height == 4_500


def test_one_domain_is_no_market(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source\.domains"):
        simulator.simulate(config.Simulator(domains=1), tmp_path)


@pytest.mark.parametrize(("users", "items"), [(1, 50), (40, 3)])
def test_the_smallest_markets(tmp_path: Path, users: int, items: int) -> None:
    folder = make(tmp_path / "tiny", config.Simulator(users=users, items=items, impressions=1_500))
    events = pl.read_parquet(folder / "events.parquet")
    assert events["position"].max() <= min(items, simulator.LONGEST_SESSION)
    assert pl.read_parquet(folder / "truth.parquet").height == events.height


def test_many_domains_have_names_of_their_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "wide", config.Simulator(users=100, items=80, impressions=3_000, domains=8))
    assert len(set(simulator.World.load(folder).domain_names)) == 8


def test_tasks_have_affinities_of_their_own(tmp_path: Path) -> None:
    """The click's logit goes by the first of them in every domain, a like's, given the click, by the third."""
    quiet = dict.fromkeys(("interest", "affinity", "bias", "taste", "quality", "freshness", "place", "user_bias"), 0.0)
    settings = replace(SETTINGS, impressions=20_000, market=config.Market(task_affinity=2.0, rank=4, **quiet))
    folder = make(tmp_path / "events", settings)
    world = simulator.World.load(folder)
    rows = labelled(folder)
    own = world.task_affinity[:, world.segment[rows["user_id"] - 1], world.category[rows["item_id"] - 1]]
    click, like = (rows[f"true_{task}"].cast(pl.Float64).to_numpy() for task in ("click", "like"))
    logits = [np.log(p / (1 - p)) for p in (click, like / click)]
    clicks, likes = (np.corrcoef(own, logit)[-1, :-1] for logit in logits)
    assert clicks[0] > 0.9
    assert likes[2] > 0.9
    assert np.abs([clicks[1:], likes[[0, 1, 3]]]).max() < 0.5
