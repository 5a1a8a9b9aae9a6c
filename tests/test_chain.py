import polars as pl
import pytest
from conftest import latest
from day_files import read_log


@pytest.fixture(scope="module")
def folders(small_run):
    return latest(small_run)


def test_every_merged_candidate_has_its_ranks(folders):
    ranked = pl.read_parquet(folders["ranked"] / "ranked.parquet")
    merged = pl.read_parquet(folders["recall"] / "merged.parquet")
    assert ranked.select("request", "item", "position").equals(merged.select("request", "item", "position"))
    for name in ("coarse_rank", "fine_rank"):
        full = ranked.select(pl.col(name).sort().over("request") == pl.int_range(1, pl.len() + 1).over("request"))
        assert full.to_series().all()


def test_the_chain_keeps_what_coarse_keeps_and_orders_it_by_the_fused_score(folders):
    ranked = pl.read_parquet(folders["ranked"] / "ranked.parquet")
    kept = ranked.filter(pl.col("coarse_rank") <= 60)
    assert kept["rank"].null_count() == 0
    assert ranked.filter(pl.col("coarse_rank") > 60)["rank"].null_count() == len(ranked) - len(kept)
    ordered = kept.sort("request", "rank")
    falls = ordered.select((pl.col("fused").diff() <= 1e-6).fill_null(True).over("request")).to_series()
    assert falls.all()
    assert ranked.select((pl.col("shown") == (pl.col("rank") <= 20).fill_null(False)).all()).item()


def test_predictions_are_the_test_impressions_in_order(folders):
    predictions = pl.read_parquet(folders["ranked"] / "predictions.parquet")
    log = read_log(folders["features"]).filter(pl.col("slice") == 2)
    shared = ["user", "item", "domain", "time", "click", "like"]
    assert predictions.select(shared).equals(log.select(shared))
    assert predictions["score_click"].is_between(0, 1).all()
