"""Rankers compared: the same rows, the same seeds, judged on the test slice's impressions, always in pairs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from scipy.stats import t as student
from torch import nn

from models.layers import parameters
from pipeline.config import Fine
from pipeline.diagnostics import collapse
from pipeline.evaluation.impressions import as_known, task_table
from pipeline.evaluation.plots import DPI, LIGHT, WIDTH
from pipeline.features.store import Rows
from pipeline.ranking import chain, fine, training
from pipeline.ranking.batches import Encoder
from pipeline.ranking.fit import Log

BASELINE = "flat_dnn"
CANDIDATES = 300
REPEATS = 15


def contest(
    features: Path,
    out: Path,  # noqa: ARG001
    *,
    settings: Fine,
    seed: int,
    log: Log,
    checkpoints: Path | None = None,
) -> dict[str, float]:
    """Train one ranker with one seed on the training slice's impressions and judge it on the test slice's.

    Returns `auc_<task>`, `gauc_<task>`, `log_loss_<task>` and `ratio_<task>` (calibration) of all impressions and, with
    `_<domain>` behind it, of each domain where they are defined; `validation_auc_<task>`; parameters; training rows a
    second; the milliseconds that 300 candidates of one request take, features looked up, on this machine; and the
    mean information abundance of the ids' and other fields' embeddings.
    """
    store, encoder, held_out = fine.opened(features, settings.loss.watch_time)
    prepared = training.prepared(store, encoder, settings, seed)
    schema = fine.outputs(store.schema, settings)
    model, fitted = fine.learn(
        encoder, schema, prepared, held_out, settings=settings, seed=seed, log=log, checkpoints=checkpoints
    )
    predictions = pl.DataFrame(pa.table(chain.predict(store, encoder, model, schema, prepared.delays)))
    names = pl.lit(pl.Series(store.schema.domains)).gather(pl.col("domain"))
    judged = task_table(as_known(predictions.with_columns(domain=names)), store.schema.labels).filter(exposure="all")
    metrics = {
        **{f"validation_{name}": value for name, value in fitted.metrics.items()},
        **chain.watch_metrics(predictions.to_arrow(), schema),
        "best_epoch": fitted.epoch,
        "parameters": parameters(model),
        "rows_per_second": fitted.epochs * len(prepared.stored) / fitted.seconds,
        "ms_per_300": latency(model, encoder, held_out.take(slice(0, CANDIDATES))),
    }
    if abundance := collapse.by_field(model, store.schema):
        metrics["information_abundance"] = float(np.nanmean(list(abundance.values())))
    for row in judged.iter_rows(named=True):
        suffix = "" if row["domain"] == "all" else f"_{row['domain']}"
        kinds = ("auc", "gauc", "log_loss", "ratio")
        metrics |= {f"{kind}_{row['task']}{suffix}": row[kind] for kind in kinds if row[kind] is not None}
    return metrics


@torch.inference_mode()
def latency(model: nn.Module, encoder: Encoder, rows: Rows) -> float:
    """Median milliseconds to make one batch of the rows and score it."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        model(encoder(rows))
        seconds.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(seconds))


def table(results: pl.DataFrame, metric: str, level: float = 0.95) -> pl.DataFrame:
    """A row a model: mean and spread of a metric over seeds, and its difference to the baseline with equal seeds.

    `results` has a row for each model and seed. Columns: model, seeds, mean, std, ahead (mean difference to
    `flat_dnn`; null without it), low and high (its interval by the paired t-test; null for one seed), wins (seeds in
    which it is ahead), and the medians of parameters, rows_per_second and ms_per_300. Best first.
    """
    base = results.filter(model=BASELINE).select("seed", base=metric)
    paired = results.join(base, on="seed", how="left").with_columns(difference=pl.col(metric) - pl.col("base"))
    summary = paired.group_by("model", maintain_order=True).agg(
        pl.len().alias("seeds"),
        pl.col(metric).mean().alias("mean"),
        pl.col(metric).std().alias("std"),
        pl.col("difference").mean().alias("ahead"),
        (pl.col("difference").std() / pl.len().sqrt()).alias("error"),
        (pl.col("difference") > 0).sum().alias("wins"),
        pl.col("parameters", "rows_per_second", "ms_per_300").median(),
    )
    quantiles = [float(student.ppf((1 + level) / 2, seeds - 1)) if seeds > 1 else None for seeds in summary["seeds"]]
    half = pl.col("error") * pl.Series(quantiles, dtype=pl.Float64)
    return (
        summary.with_columns(low=pl.col("ahead") - half, high=pl.col("ahead") + half)
        .drop("error")
        .sort("mean", descending=True)
    )


def picture(summary: pl.DataFrame, bounds: dict[str, float], metric: str) -> Figure:
    """The models from best to worst: mean and spread of the metric, and what bounds it as vertical lines."""
    figure = Figure(figsize=(WIDTH, 0.7 + 0.17 * len(summary)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(summary))
    baseline = np.array([model == BASELINE for model in summary["model"]])
    spread = summary["std"].fill_null(0.0).to_numpy()
    for chosen, color in ((~baseline, LIGHT.series[0]), (baseline, LIGHT.bad)):
        mean = summary["mean"].to_numpy()[chosen]
        axes.errorbar(mean, place[chosen], xerr=spread[chosen], fmt="o", markersize=3, linewidth=1, color=color)
    for number, (name, value) in enumerate(sorted(bounds.items(), key=lambda one: one[1])):
        axes.axvline(value, color=LIGHT.muted, linewidth=0.8, linestyle=("--", ":")[number % 2])
        axes.annotate(name, (value, -0.9), fontsize=6, color=LIGHT.muted, ha="center", annotation_clip=False)
    axes.set_yticks(place, summary["model"].to_list(), fontsize=6)
    axes.set_ylim(len(summary) - 0.5, -0.6)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlabel(f"{metric}, test slice: mean and standard deviation over seeds", fontsize=6, color=LIGHT.muted)
    axes.grid(axis="x", color=LIGHT.line, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
