"""Rankers compared: the same rows, the same seeds, judged on the test slice's impressions, always in pairs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipeline.config import Fine
from pipeline.evaluation.impressions import task_table
from pipeline.features.store import FeatureStore
from pipeline.ranking import chain, fine
from pipeline.ranking.batches import Encoder
from pipeline.ranking.fit import Log

BASELINE = "flat_dnn"


def contest(features: Path, recall: Path, out: Path, *, settings: Fine, seed: int, log: Log) -> dict[str, float]:
    """Train one ranker with one seed into `out`, and judge it on the test slice.

    Returns `auc_<task>` and `gauc_<task>` of all impressions, `auc_<task>_<domain>` where it is defined, and the
    log loss and calibration of each task.
    """
    trained = fine.train(features, recall, out, settings=settings, seed=seed, log=log)
    store = FeatureStore.open(features)
    predictions = pl.DataFrame(pa.table(chain.predict(store, Encoder(store), fine.load(out))))
    names = pl.lit(pl.Series(store.schema.domains)).gather(pl.col("domain"))
    judged = task_table(predictions.with_columns(domain=names), store.schema.labels).filter(exposure="all")
    metrics = {"parameters": trained["parameters"], "best_epoch": trained["best_epoch"]}
    for row in judged.iter_rows(named=True):
        kinds = ("auc", "gauc", "log_loss", "ratio") if row["domain"] == "all" else ("auc",)
        suffix = "" if row["domain"] == "all" else f"_{row['domain']}"
        metrics |= {f"{kind}_{row['task']}{suffix}": row[kind] for kind in kinds if row[kind] is not None}
    return metrics


def table(results: pl.DataFrame, metric: str) -> pl.DataFrame:
    """A row a model: mean and spread of a metric over seeds, and its difference to the baseline with equal seeds.

    `results` has a row for each model and seed. Columns: model, seeds, mean, std, ahead (mean difference to
    `flat_dnn`; null without it), wins (seeds in which it is ahead). Best first.
    """
    base = results.filter(model=BASELINE).select("seed", base=metric)
    paired = results.join(base, on="seed", how="left").with_columns(difference=pl.col(metric) - pl.col("base"))
    return (
        paired.group_by("model", maintain_order=True)
        .agg(
            pl.len().alias("seeds"),
            pl.col(metric).mean().alias("mean"),
            pl.col(metric).std().alias("std"),
            pl.col("difference").mean().alias("ahead"),
            (pl.col("difference") > 0).sum().alias("wins"),
        )
        .sort("mean", descending=True)
    )
