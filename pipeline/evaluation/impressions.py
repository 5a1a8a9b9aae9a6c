"""The fine ranker's probabilities on the test slice's impressions: order, loss and calibration, by task and domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from models.schema import Schema
from pipeline.diagnostics.calibration import by_field, expected_calibration_error, field_error, reliability
from pipeline.evaluation.metrics import auc, calibration_ratio, gauc, log_loss


def read_predictions(features: Path, ranked: Path) -> pl.DataFrame:
    """`predictions.parquet` with the domain's name instead of its number."""
    domains = Schema.from_json((features / "schema.json").read_text()).domains
    name = pl.lit(pl.Series(domains)).gather(pl.col("domain"))
    return as_known(pl.read_parquet(ranked / "predictions.parquet").with_columns(name.alias("domain")))


def as_known(predictions: pl.DataFrame) -> pl.DataFrame:
    """The predictions with every `score_<task>` as the probability that a positive is known when the log ends: times
    `known_<task>`, of tasks whose positives come late. That is what labels, some yet to come, can be held against."""
    late = [name.removeprefix("known_") for name in predictions.columns if name.startswith("known_")]
    return predictions.with_columns(pl.col(f"score_{task}") * pl.col(f"known_{task}") for task in late)


def task_table(predictions: pl.DataFrame, tasks: tuple[str, ...]) -> pl.DataFrame:
    """AUC, GAUC, log loss and calibration of each task.

    Columns: exposure ("all" impressions, or the "random" ones, whose labels no policy has chosen), domain ("all"
    first), task, rows, positives, observed, predicted, ratio, auc, gauc, log_loss, ece. Undefined values are null.
    """
    exposures = {"all": predictions, "random": predictions.filter("random")}
    rows = []
    for exposure, frame in exposures.items():
        domains = {
            "all": frame,
            **{
                str(key[0]): part
                for key, part in frame.sort("domain").partition_by("domain", as_dict=True, maintain_order=True).items()
            },
        }
        for domain, part in domains.items():
            user = part["user"].to_numpy()
            for task in tasks:
                label, score = part[task].to_numpy(), part[f"score_{task}"].to_numpy()
                rows.append(
                    {
                        "exposure": exposure,
                        "domain": domain,
                        "task": task,
                        "rows": len(part),
                        "positives": int(label.sum()),
                        "observed": float(label.mean()) if len(part) else None,
                        "predicted": float(score.mean()) if len(part) else None,
                        "ratio": calibration_ratio(label, score),
                        "auc": auc(label, score),
                        "gauc": gauc(label, score, user),
                        "log_loss": log_loss(label, score),
                        "ece": expected_calibration_error(reliability(label, score)),
                    }
                )
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.selectors.float().fill_nan(None))


def reliability_table(predictions: pl.DataFrame, tasks: tuple[str, ...]) -> pl.DataFrame:
    """`calibration.reliability` of every task over all impressions, with a column `task`."""
    tables = [
        reliability(predictions[task].to_numpy(), predictions[f"score_{task}"].to_numpy()).select(
            pl.lit(task).alias("task"), pl.all()
        )
        for task in tasks
    ]
    return pl.concat(tables)


def field_table(predictions: pl.DataFrame, features: Path, tasks: tuple[str, ...]) -> pl.DataFrame:
    """Field-wise calibration: task, field, values (with impressions), error (Field-RCE; null if undefined).

    The fields are the schema's categorical columns of users and items, ids aside, and the domain.
    """
    schema = Schema.from_json((features / "schema.json").read_text())
    codes = {"domain": predictions["domain"].rank("dense").to_numpy()}
    for side in ("user", "item"):
        names = [field.name for field in schema.fields if field.role == side and field.name != f"{side}_id"]
        table = pl.read_parquet(features / f"{side}s.parquet", columns=[f"code_{name}" for name in names])
        number = predictions[side].to_numpy()
        codes |= {name: table[f"code_{name}"].to_numpy()[number] for name in names}
    rows = []
    for task in tasks:
        label, score = predictions[task].to_numpy(), predictions[f"score_{task}"].to_numpy()
        for field, code in codes.items():
            error = field_error(by_field(label, score, code))
            rows.append({"task": task, "field": field, "values": len(np.unique(code)), "error": error})
    return pl.DataFrame(rows).with_columns(pl.col("error").fill_nan(None))


def popularity_auc(predictions: pl.DataFrame, positive: str) -> float:
    """AUC of the item's own as-of click rate on the test impressions, the least a ranker must beat; NaN where the
    features have no such number."""
    rate = f"item_{positive}_rate_all"
    if rate not in predictions.columns:
        return float("nan")
    return auc(predictions[positive].to_numpy(), predictions[rate].to_numpy())
