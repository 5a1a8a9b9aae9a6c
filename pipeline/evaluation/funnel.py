"""The evaluation of a run: what every stage, domain and route is worth on a later slice of the log, and what it costs.

Recall and order are judged on the test requests, whose held-out positives nothing upstream has seen; probabilities on
the test slice's impressions.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.config import Contract, Evaluation
from pipeline.evaluation import plots, truth
from pipeline.evaluation.consistency import consistency_curve, order_agreement
from pipeline.evaluation.gates import cascade_loss, gate_table
from pipeline.evaluation.impressions import (
    field_table,
    popularity_auc,
    read_predictions,
    reliability_table,
    task_table,
)
from pipeline.evaluation.losses import loss_table, lost_at
from pipeline.evaluation.replay import Replay, route_table, stage_table
from pipeline.lake import write_json

Metrics = dict[str, float]


def evaluate(
    events: Path,
    features: Path,
    recall: Path,
    ranked: Path,
    out: Path,
    *,
    settings: Evaluation,
    contract: Contract,
    keep: int,
) -> Metrics:
    """Evaluate the whole chain; `recall` holds the test slice's requests, `keep` is what coarse keeps of the merge.

    Writes to `out` the tables stages, domains, routes, losses, lost (positive by positive), gates, tasks, reliability,
    fields, consistency and, for a simulated log, values; `metrics.json`; and the plots. Returns flat metrics, the
    undefined ones left out.
    """
    replay = Replay.open(features, recall, ranked, keep=keep)
    predictions = read_predictions(features, ranked)
    positive = contract.positive

    by_stage = stage_table(replay, settings.cutoffs)
    lost = lost_at(replay, features, recall)
    tables = {
        "stages": by_stage.filter(pl.col("domain") == "all").drop("domain"),
        "domains": by_stage.filter(pl.col("domain") != "all").drop("size"),
        "routes": route_table(replay, settings.cutoffs),
        "lost": lost,
        "losses": loss_table(lost),
        "gates": gate_table(replay, resamples=settings.resamples),
        "tasks": task_table(predictions, contract.tasks),
        "reliability": reliability_table(predictions, contract.tasks),
        "fields": field_table(predictions, features, contract.tasks),
        "consistency": consistency_curve(replay, predictions.filter(pl.col(positive) == 1).select("user", "item")),
    }
    single = {
        "test_requests": len(replay),
        "test_positives": len(replay.positives),
        "coarse_fine_tau": order_agreement(replay),
        "cascade_loss": cascade_loss(replay),
        f"auc_{positive}_popularity": popularity_auc(predictions, positive),
    }
    if truth.is_known(events):
        begin = json.loads((features / "slices.json").read_text())["test"]
        single[f"auc_{positive}_oracle"] = truth.oracle_auc(events, begin, positive)
        tables["values"] = truth.list_values(replay, events, features, positive)

    metrics = {name: value for name, value in (single | flat_metrics(tables, keep)).items() if not math.isnan(value)}
    for name, table in tables.items():
        table.write_parquet(out / f"{name}.parquet", compression="zstd", statistics=False)
    settled = {"keep": replay.keep, "final": replay.final, "positive": positive, "cutoffs": settings.cutoffs}
    nested = {name: table.to_dicts() for name, table in tables.items() if name != "lost"}
    write_json(out / "metrics.json", {**settled, "metrics": metrics, **nested})
    for name, figure in plots.draw(read_tables(out), plots.LIGHT).items():
        plots.save(figure, out / f"{name}.png")
    return metrics


def read_tables(folder: Path) -> dict[str, Any]:
    """The tables of an evaluation folder by name, and under "settled" what `metrics.json` says besides."""
    tables: dict[str, Any] = {path.stem: pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}
    told = json.loads((folder / "metrics.json").read_text())
    return {**tables, "settled": {key: told[key] for key in ("keep", "final", "positive", "cutoffs", "metrics")}}


def flat_metrics(tables: dict[str, pl.DataFrame], keep: int) -> Metrics:
    """The tables' chief numbers under names such as `final_recall_50`, `auc_click_home` and `gate_fine_recall_low`."""
    metrics: dict[str, float | None] = {}
    for row in tables["stages"].iter_rows(named=True):
        stage = row.pop("stage")
        kept = {name: value for name, value in row.items() if name not in ("requests", "positives")}
        metrics |= {f"{stage}_{name}": value for name, value in kept.items()}
    for row in tables["domains"].filter(pl.col("stage") == "final").iter_rows(named=True):
        names = [name for name in row if name.startswith(("recall_", "ndcg_"))]
        metrics |= {f"final_{name}_{row['domain']}": row[name] for name in names}
    for row in tables["losses"].filter(pl.col("domain") == "all", pl.col("route") == "all").iter_rows(named=True):
        metrics[f"lost_{row['lost']}" if row["lost"] != "shown" else "shown"] = row["share"]
    for row in tables["gates"].iter_rows(named=True):
        name = f"gate_{row['gate']}_{row['metric']}"
        metrics |= {name: row["difference"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    for row in tables["tasks"].iter_rows(named=True):
        exposure = "" if row["exposure"] == "all" else "_random"
        domain = "" if row["domain"] == "all" else f"_{row['domain']}"
        measured = ("auc",) if domain else ("auc", "gauc", "log_loss", "ece", "ratio")
        if not (exposure and domain):
            metrics |= {f"{name}_{row['task']}{exposure}{domain}": row[name] for name in measured}
    at_keep = tables["consistency"].filter(pl.col("k") <= keep)[-1].row(0, named=True)
    metrics |= {f"coarse_keeps_{name}": at_keep[name] for name in ("fine_20", "fine_50", "ish", "ash")}
    for row in tables["values"].iter_rows(named=True) if "values" in tables else ():
        metrics[f"value_{row['order']}"] = row["value"]
    return {_metric_name(name): float(value) for name, value in metrics.items() if value is not None}


def _metric_name(name: str) -> str:
    """The name in letters, digits, `_` and `-`, which every tracker takes."""
    return re.sub(r"[^\w-]+", "_", name.replace("→ ", ""), flags=re.ASCII)
