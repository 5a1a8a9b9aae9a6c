"""The data quality stage: a day that a feature or label does not survive unchanged warns, or stops the run.

Two things are measured and not judged: a feature that looks back in time, on training days before the longest window of
the statistics has filled (it grows because the log is young), and the hour on a first or last day that the log cuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import config
from pipeline.diagnostics import quality_page
from pipeline.diagnostics.columns import features_of
from pipeline.diagnostics.daily import Frame, measure
from pipeline.features import statistics
from pipeline.features.pairs import way_out
from pipeline.features.store import FeatureStore, Rows
from pipeline.lake import InputError
from pipeline.progress import progress

WORST = 10
PAGE_WIDTH = 100
FIGURES = {"psi": "drift", "unknown": "unknown_rise", "vanished": "vanished_share", "rate": "rate_change"}
TOLD = {
    "psi": "PSI against training, beyond chance",
    "unknown": "rise of the unknown values' share",
    "vanished": "training share of vanished values",
    "rate": "relative change of the label's rate",
}


def check(
    events: Path, features: Path, out: Path, *, settings: config.Quality, contract: config.Contract
) -> dict[str, float]:
    """Write quality.parquet, days.parquet, warnings.parquet and quality.html to `out`; returns what is tracked.

    Nothing is raised for bad data, so that there is a page to look at: `tell` does that.
    """
    store = FeatureStore.open(features)
    frame = Frame(
        bounds=store.slices,
        keys=lambda entity, rows: store.entity_keys(entity, rows.user, rows.item, rows.domain),
        domains=store.schema.domains,
        labels=store.schema.labels,
        positive=contract.positive,
        warm_up=max((statistics.window_length(window) or 0 for window in store.recipe.windows), default=0),
    )
    measured = measure(features_of(store, events), lambda: read_days(store), frame)
    warnings = exceeding(measured.table, settings, "warn")
    for name, table in (("quality", measured.table), ("days", measured.days), ("warnings", warnings)):
        table.write_parquet(out / f"{name}.parquet", compression="zstd", statistics=False)
    quality_page.write(measured, warnings, out, limit=settings.warn_psi)
    judged = measured.table.filter("judged")
    greatest = {f"{name}_max": judged[column].max() for name, column in FIGURES.items()}
    return {
        "quality_warnings": warnings.height,
        **{name: float(value) for name, value in greatest.items() if value is not None},  # type: ignore[arg-type]
        "days": measured.table["day"].n_unique(),
        "constant_features": len(measured.constant),
        "duplicated_features": sum(len(group) - 1 for group in measured.duplicated),
    }


def tell(folder: Path, settings: config.Quality) -> None:
    """Print a checked folder's worst ten warnings; raise InputError for the worst figure beyond a stop, if any."""
    warnings = pl.read_parquet(folder / "warnings.parquet")
    if warnings.height:
        console = Console(highlight=False)
        console.width = min(console.width, PAGE_WIDTH) if console.is_terminal else PAGE_WIDTH
        console.print(_grid(warnings.head(WORST)), end="")
        rest = f", {warnings.height - WORST} more" if warnings.height > WORST else ""
        console.print(Text(f"data quality: the worst warnings{rest}; see {folder / 'quality.html'}", style="dim"))
    for stop in exceeding(pl.read_parquet(folder / "quality.parquet"), settings, "stop").iter_rows(named=True):
        key = f"quality.stop_{stop['figure']}"
        raise InputError(
            f"feature {stop['feature']!r} on {stop['day']}: {TOLD[stop['figure']]}, is {stop['value']:.3f}, and {key} "
            f"is {stop['limit']:g}; mend that day's log, {way_out(stop['feature'])}, or raise {key} "
            f"({folder / 'quality.html'} shows it)"
        )


def read_days(store: FeatureStore) -> Iterator[tuple[int, Rows]]:
    """Every UTC day (counted from 1970) that has impressions, with its rows in order of time; one day is in memory."""
    for day in progress(store.days(), "data quality"):
        yield int(np.datetime64(day).astype(int)), store.read(day)


def exceeding(table: pl.DataFrame, settings: config.Quality, level: Literal["warn", "stop"]) -> pl.DataFrame:
    """For every feature and figure the worst of its judged days beyond the threshold, the worst features first.

    Columns: feature, figure (a key of `FIGURES`), day, value, limit, days (how many are beyond it).
    """
    found = []
    for figure, column in FIGURES.items():
        limit: float | None = getattr(settings, f"{level}_{figure}")
        if limit is not None:
            beyond = table.filter("judged", pl.col(column) > limit).sort(column, "day", descending=[True, False])
            found.append(
                beyond.group_by("feature", maintain_order=True).agg(
                    pl.lit(figure).alias("figure"),
                    pl.col("day").first(),
                    pl.col(column).first().alias("value"),
                    pl.lit(limit, pl.Float64).alias("limit"),
                    pl.len().cast(pl.Int64).alias("days"),
                )
            )
    columns = {"feature": pl.String, "figure": pl.String, "day": pl.Date, "value": pl.Float64, "limit": pl.Float64}
    empty = pl.DataFrame(schema={**columns, "days": pl.Int64})
    return pl.concat([empty, *found]).sort(pl.col("value") / pl.col("limit"), "feature", descending=[True, False])


def _grid(warnings: pl.DataFrame) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("feature", "what", "worst day", "value", "limit", "days"):
        right = name in ("value", "limit", "days")
        grid.add_column(name, justify="right" if right else "left", overflow="ellipsis", no_wrap=True)
    for row in warnings.iter_rows(named=True):
        figures = (f"{row['value']:.3f}", f"{row['limit']:g}", str(row["days"]))
        grid.add_row(Text(row["feature"]), TOLD[row["figure"]], f"{row['day']}", *figures)
    return grid
