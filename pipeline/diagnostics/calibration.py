"""K4: does a probability of 20 % come true one time in five? By score, and by the values of a field."""

from __future__ import annotations

import numpy as np
import polars as pl

Z = 1.96


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> pl.DataFrame:
    """Predicted against observed rates in bins of equal size, with Wilson's 95 % interval of the observed.

    Columns: bin, rows, predicted, observed, low, high. Equal probabilities share a bin, so there may be fewer bins.
    """
    edges = np.quantile(probabilities, np.arange(1, bins) / bins) if len(probabilities) else np.empty(0)
    number = np.searchsorted(np.unique(edges), probabilities, side="right")
    rows = np.bincount(number)
    used = np.flatnonzero(rows)
    n = rows[used].astype(np.float64)
    predicted = np.bincount(number, probabilities)[used] / n
    observed = np.bincount(number, labels)[used] / n
    middle = (observed + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(observed * (1 - observed) / n + Z**2 / (4 * n**2))
    return pl.DataFrame(
        {
            "bin": np.arange(len(used), dtype=np.int32),
            "rows": rows[used],
            "predicted": predicted,
            "observed": observed,
            "low": np.clip(middle - half, 0.0, 1.0),
            "high": np.clip(middle + half, 0.0, 1.0),
        }
    )


def expected_calibration_error(table: pl.DataFrame) -> float:
    """Mean |predicted - observed| over the bins of `reliability`, by rows (Naeini et al. 2015); NaN if empty."""
    if table["rows"].sum() == 0:
        return float("nan")
    return float(
        np.average((table["predicted"] - table["observed"]).abs().to_numpy(), weights=table["rows"].to_numpy())
    )


def by_field(labels: np.ndarray, probabilities: np.ndarray, codes: np.ndarray) -> pl.DataFrame:
    """Per value of a field: code, rows, positives, predicted and observed rate, ratio (null without positives)."""
    frame = pl.DataFrame(
        {"code": codes, "label": labels.astype(np.float64), "probability": probabilities.astype(np.float64)}
    )
    promised = pl.col("predicted") / pl.col("observed")
    return (
        frame.group_by("code")
        .agg(
            pl.len().alias("rows"),
            pl.col("label").sum().alias("positives"),
            pl.col("probability").mean().alias("predicted"),
            pl.col("label").mean().alias("observed"),
        )
        .with_columns(pl.when(pl.col("positives") > 0).then(promised).alias("ratio"))
        .sort("code")
    )


def field_error(table: pl.DataFrame) -> float:
    """Field-wise relative calibration error, Σ_z N_z |Σp - Σy| / Σy over N (Pan et al. 2020, Field-RCE).

    Taken over the values that have positives; NaN where none has.
    """
    known = table.drop_nulls("ratio")
    if known.is_empty():
        return float("nan")
    return float(np.average((known["ratio"] - 1).abs().to_numpy(), weights=known["rows"].to_numpy()))
