"""The pictures of an evaluation, one look for all: small enough to be read on a phone, for a light or a dark page."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

WIDTH = 4.9
DPI = 176


@dataclass(frozen=True)
class Theme:
    """Colours of text, secondary text, grid lines, ground, gains, losses, and up to five series."""

    ink: str
    muted: str
    line: str
    ground: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1c2430", muted="#667085", line="#e4e7ec", ground="#ffffff", good="#12805c", bad="#c4432b",
    series=("#2f6fde", "#e08a1e", "#12805c", "#9b51c9", "#667085"),
)  # fmt: skip
DARK = Theme(
    ink="#e6eaf0", muted="#98a2b3", line="#2c3440", ground="#171c24", good="#3cc492", bad="#f0755c",
    series=("#6ea2ff", "#f2ad55", "#3cc492", "#c58bec", "#98a2b3"),
)  # fmt: skip


def draw(tables: dict[str, Any], theme: Theme) -> dict[str, Figure]:
    """Every picture of an evaluation by name, from `pipeline.evaluation.funnel.read_tables`."""
    pictures: dict[str, Callable[[dict[str, Any], Theme], Figure]] = {
        "losses": losses,
        "stages": stages,
        "gates": gates,
        "consistency": consistency,
        "domains": domains,
        "reliability": reliability,
    }
    return {name: picture(tables, theme) for name, picture in pictures.items()}


def save(figure: Figure, file: Path | io.BytesIO) -> None:
    """Write the figure as PNG; the same figure gives the same bytes."""
    figure.savefig(file, format="png", metadata={"Software": None})


def losses(tables: dict[str, Any], theme: Theme) -> Figure:
    """Waterfall: from all held-out positives, through what each stage loses, to those that are shown."""
    table = tables["losses"].filter(pl.col("domain") == "all", pl.col("route") == "all")
    names = [str(name) for name in table["lost"]]
    shares, counts = table["share"].to_list(), table["positives"].to_list()
    left = 1 - np.cumsum(shares)
    starts = [0.0, *left[:-1], 0.0]
    widths = [1.0, *shares]
    colors = [theme.muted, *[theme.bad] * (len(names) - 1), theme.good]
    figure, axes = _canvas("Where held-out positives are lost", theme, height=3.5)
    y = np.arange(len(widths))
    axes.barh(y, widths, left=starts, color=colors, height=0.62)
    edges = np.r_[1.0, left[:-1], shares[-1]]
    for number, edge in enumerate(edges[:-1]):
        axes.plot([edge, edge], [number - 0.31, number + 1.31], color=theme.muted, linewidth=0.7)
    for number, (count, share) in enumerate(zip([sum(counts), *counts], widths, strict=True)):
        end = starts[number] + widths[number]
        inside = end > 0.75
        axes.text(
            (starts[number] if inside and number else end) + (-0.015 if inside else 0.015), number,
            f"{count:,} · {share:.1%}", va="center", ha="right" if inside else "left",
            color=theme.ground if not number else theme.ink, fontsize=9,
        )  # fmt: skip
    _categories(axes, ["held out", *[name if name == "shown" else f"− {name}" for name in names]])
    axes.set_xlim(0, 1)
    _percent(axes.xaxis)
    return figure


def stages(tables: dict[str, Any], theme: Theme) -> Figure:
    """Recall of each stage's whole list, with the list's size, and of its first k (the largest cut-off).

    The last bar is paler: fine-ranking everything is what might be, no stage.
    """
    k = max(tables["settled"]["cutoffs"])
    table = tables["stages"].filter(pl.col("stage") != "coarse")
    figure, axes = _canvas("Recall by stage", theme, height=1.2 + 0.3 * len(table))
    y = np.arange(len(table))
    colors = [theme.series[4] if stage.startswith("route") else theme.series[0] for stage in table["stage"]]
    bars = axes.barh(y, table["recall"], color=colors, height=0.58, alpha=0.85, label="whole list")
    bars[-1].set_alpha(0.4)
    edge = max(0.05, float(table["recall"].max())) * 1.4
    axes.plot(
        table[f"recall_{k}"].to_numpy(), y, "D", color=theme.series[1], markersize=5, label=f"first {k}",
        markeredgecolor=theme.ground, markeredgewidth=0.8,
    )  # fmt: skip
    for number, (value, size) in enumerate(table.select("recall", "size").iter_rows()):
        axes.text(value + 0.03 * edge, number, f"{value:.1%} in {size:,.0f}", va="center", color=theme.ink, fontsize=9)
    _categories(axes, table["stage"].to_list())
    axes.set_xlim(0, edge)
    _percent(axes.xaxis)
    _legend_below(figure, axes, theme, columns=2)
    return figure


def gates(tables: dict[str, Any], theme: Theme) -> Figure:
    """What each stage gains over leaving it out, with its interval: green beats, red does not, grey is undecided."""
    table = tables["gates"]
    colors = {"beats": theme.good, "does not beat": theme.bad, "undecided": theme.muted}
    figure, axes = _canvas("Gain over leaving the stage out (95 % interval)", theme, height=1.1 + 0.3 * len(table))
    axes.axvline(0, color=theme.ink, linewidth=0.8)
    for number, row in enumerate(table.iter_rows(named=True)):
        color = colors[row["verdict"]]
        axes.plot([row["low"], row["high"]], [number, number], color=color, linewidth=2.4, solid_capstyle="round")
        axes.plot(row["difference"], number, "o", color=color, markersize=6.5)
    _categories(axes, [f"{row['gate']} · {row['metric']}@{row['k']}" for row in table.iter_rows(named=True)])
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure


def consistency(tables: dict[str, Any], theme: Theme) -> Figure:
    """What the coarse ranker's first k hold of the fine ranker's choice and of the held-out positives."""
    table, keep = tables["consistency"], tables["settled"]["keep"]
    figure, axes = _canvas("Inside the coarse ranker's first k", theme, height=3.5)
    lines = {"fine_20": "fine top 20", "fine_50": "fine top 50", "ash": "positives (ASH)", "ish": "own domain's (ISH)"}
    for number, (column, label) in enumerate(lines.items()):
        style = "-" if number < 3 else "--"
        axes.plot(table["k"], table[column], style, color=theme.series[number], linewidth=1.8, label=label)
    axes.plot(table["k"], table["chance"], ":", color=theme.muted, linewidth=1.4, label="by chance, of merged")
    axes.axvline(keep, color=theme.ink, linewidth=0.8)
    axes.annotate(f"keep {keep}", (keep, 0), xytext=(4, 5), textcoords="offset points", color=theme.ink, fontsize=9)
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, None)
    axes.set_xlabel("k", color=theme.muted, fontsize=9)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    _percent(axes.yaxis)
    _legend(axes, theme)
    return figure


def domains(tables: dict[str, Any], theme: Theme) -> Figure:
    """AUC of each task in each domain, on all impressions; bars begin at chance."""
    table = tables["tasks"].filter(pl.col("exposure") == "all")
    names = ["all", *sorted(set(table["domain"]) - {"all"})]
    tasks = table["task"].unique(maintain_order=True).to_list()
    figure, axes = _canvas("AUC by domain and task", theme, height=1.2 + 0.11 * len(names) * (len(tasks) + 1))
    height = 0.8 / len(tasks)
    for number, task in enumerate(tasks):
        values = dict(table.filter(pl.col("task") == task).select("domain", "auc").iter_rows())
        auc = np.array([values.get(name) or np.nan for name in names])
        y = np.arange(len(names)) + (number - (len(tasks) - 1) / 2) * height
        color = theme.series[number % len(theme.series)]
        axes.barh(y, auc - 0.5, left=0.5, height=height * 0.88, color=color, label=task)
    _categories(axes, names)
    axes.axvline(0.5, color=theme.ink, linewidth=0.8)
    lowest, highest = table["auc"].min(), table["auc"].max()
    axes.set_xlim(min(0.5, lowest or 0.5) - 0.01, min(1.0, (highest or 0.9) + 0.02))
    _legend_below(figure, axes, theme, columns=min(4, len(tasks)))
    return figure


def reliability(tables: dict[str, Any], theme: Theme) -> Figure:
    """Predicted against observed rates, a panel a task, with Wilson intervals; the diagonal is perfect."""
    table = tables["reliability"]
    tasks = table["task"].unique(maintain_order=True).to_list()
    rows = -(-len(tasks) // 2)
    figure = Figure(figsize=(WIDTH, 0.5 + 2.35 * rows), dpi=DPI, facecolor=theme.ground, layout="constrained")
    figure.suptitle("Calibration: predicted against observed rate", **_title(theme))
    panels = figure.subplots(rows, min(2, len(tasks)), squeeze=False).ravel()
    for axes, task in zip(panels, tasks, strict=False):
        part = table.filter(pl.col("task") == task)
        _plain(axes, theme)
        x, y = part["predicted"].to_numpy(), part["observed"].to_numpy()
        top = max(1e-3, float(np.max([*x, *part["high"]], initial=0.0))) * 1.05
        axes.plot([0, top], [0, top], color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        spread = np.clip([y - part["low"].to_numpy(), part["high"].to_numpy() - y], 0, None)
        axes.errorbar(x, y, yerr=spread, fmt="o", color=theme.series[0], markersize=4, elinewidth=1.2)
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.grid(color=theme.line, linewidth=0.8)
        axes.set_title(task, fontsize=9, color=theme.ink)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4))
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 1))
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    return figure


def _canvas(title: str, theme: Theme, *, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.ground, layout="constrained")
    axes = figure.subplots()
    _plain(axes, theme)
    axes.grid(axis="x", color=theme.line, linewidth=0.8)
    figure.suptitle(title, **_title(theme))
    return figure, axes


def _title(theme: Theme) -> dict[str, Any]:
    return {"x": 0.02, "ha": "left", "fontsize": 11, "fontweight": "bold", "color": theme.ink}


def _plain(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.ground)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _categories(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _percent(axis: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(axes: Axes, theme: Theme) -> None:
    box = {"facecolor": theme.ground, "edgecolor": theme.line, "framealpha": 0.9}
    axes.legend(loc="lower right", labelcolor=theme.ink, fontsize=9, **box)


def _legend_below(figure: Figure, axes: Axes, theme: Theme, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, labelcolor=theme.ink, fontsize=9
    )
