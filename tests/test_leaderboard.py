"""Rankers compared in pairs, from numbers on paper to the command."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from conftest import CONFIGS, TINY, latest, recfunnel

from pipeline.config import Fine
from pipeline.evaluation import leaderboard, plots

COSTS = {"parameters": 10, "rows_per_second": 1000.0, "ms_per_300": 2.0}


def results(**areas: list[float]) -> pl.DataFrame:
    """One row a model and seed."""
    rows = [
        {"model": model, "seed": seed, "auc_click": area, **COSTS}
        for model, values in areas.items()
        for seed, area in enumerate(values)
    ]
    return pl.DataFrame(rows)


def test_models_are_compared_with_equal_seeds() -> None:
    table = leaderboard.table(results(flat_dnn=[0.70, 0.75], star=[0.72, 0.74]), "auc_click").to_dicts()
    assert [row["model"] for row in table] == ["star", "flat_dnn"]
    assert table[0]["ahead"] == pytest.approx(0.005)
    assert (table[0]["wins"], table[0]["seeds"]) == (1, 2)
    assert table[1]["ahead"] == 0.0
    assert {name: table[0][name] for name in COSTS} == COSTS


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    """Differences .01, .02, .03: mean .02, standard error .01 / √3, and t(.975; 2) = 4.302653."""
    table = leaderboard.table(results(flat_dnn=[0.7, 0.8, 0.6], din=[0.71, 0.82, 0.63]), "auc_click")
    row = table.row(by_predicate=pl.col("model") == "din", named=True)
    half = 4.302653 * 0.01 / 3**0.5
    assert (row["low"], row["high"]) == (pytest.approx(0.02 - half, abs=1e-6), pytest.approx(0.02 + half, abs=1e-6))


def test_without_the_baseline_or_with_one_seed_there_is_no_interval() -> None:
    row = leaderboard.table(results(star=[0.7, 0.8]), "auc_click").to_dicts()[0]
    assert (row["ahead"], row["low"]) == (None, None)
    row = leaderboard.table(results(flat_dnn=[0.6], star=[0.7]), "auc_click").to_dicts()[0]
    assert (row["ahead"], row["low"], row["high"]) == (pytest.approx(0.1), None, None)


def test_the_picture_shows_every_model_and_bound(tmp_path: Path) -> None:
    summary = leaderboard.table(results(flat_dnn=[0.70, 0.75], star=[0.72, 0.74]), "auc_click")
    figure = leaderboard.picture(summary, {"oracle": 0.8}, "auc_click")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["star", "flat_dnn"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["oracle"]
    plots.save(figure, tmp_path / "leaderboard.png")


def test_a_contest_judges_every_task_and_domain(small_run: Path, tmp_path: Path) -> None:
    told = leaderboard.contest(
        latest(small_run)["features"],
        tmp_path,
        settings=Fine(model="lr", epochs=1),
        seed=0,
        log=lambda metrics, epoch: None,
    )
    assert {"auc_click", "gauc_click", "log_loss_like", "auc_click_home", "validation_auc_click"} <= set(told)
    assert 0.5 < told["auc_click"] < 1
    assert told["rows_per_second"] > 0
    assert told["ms_per_300"] > 0


def test_the_zoo_tunes_trains_and_goes_on_after_a_failure(server: str, tmp_path: Path) -> None:
    """MMoE without a hidden layer is no network; LR beside it is judged all the same, and kept when asked again."""
    arguments = ("zoo", CONFIGS / "small.toml", *TINY, "zoo.trials=1", "zoo.seeds=2")
    broken = ("fine.model=mmoe", "fine.options.hidden=[]", "--models", "mmoe,lr")
    runs = [recfunnel(*arguments, *broken, server=server, folder=tmp_path).communicate() for _ in range(2)]
    for out, errors in runs:
        assert "mmoe failed" in out, out + errors
        assert "IndexError" in errors
    again = runs[1][0].splitlines()
    assert sum("unchanged, kept" in line for line in again if line.startswith("zoo_lr_")) == 3
    root = tmp_path / "data/small"
    board = pl.read_csv(root / "leaderboard.csv")
    assert board.select("model", "seeds").rows() == [("lr", 2)]
    assert pl.read_csv(root / "results.csv")["seed"].to_list() == [1, 2]
    assert (root / "leaderboard.png").exists()
