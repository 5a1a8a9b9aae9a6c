"""The page of the data's quality: for every feature a histogram, its drift over the days and its figures.

One file that needs nothing but a browser, in the look of the funnel's report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from jinja2 import Environment, FileSystemLoader

from pipeline.diagnostics.daily import QUANTILES, Measured
from pipeline.diagnostics.drift import BARS, Categories, Histogram, grouped

HERE = Path(__file__).parent
STYLE = HERE.parent / "evaluation"
UNDEFINED = "—"
TOLD = {"psi": "PSI", "unknown": "unknown share", "vanished": "vanished values", "rate": "label rate"}
WIDTH, HEIGHT, LINE = 280.0, 72.0, 40.0
MARGIN = 4.0

Row = tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """A bar of the training rows and the last day's level over it, in the picture's coordinates."""

    x: float
    width: float
    top: float
    level: float
    told: str


@dataclass(frozen=True)
class Curve:
    """The index over the days, on a root scale: the points, those that warn, and the height of the threshold."""

    points: list[tuple[float, float]]
    warned: list[tuple[float, float]]
    limit: float


@dataclass(frozen=True)
class Card:
    """What the page says of one feature; `keys` are the numbers it is sorted by."""

    name: str
    kind: str
    warned: list[str]
    notes: list[str]
    bars: list[Bar]
    ends: tuple[str, str]
    curve: Curve
    facts: list[tuple[str, str]]
    keys: dict[str, float]


def write(measured: Measured, warnings: pl.DataFrame, out: Path, *, limit: float) -> None:
    """Write `quality.html` to `out`; the same input gives the same bytes.

    `warnings`: as `pipeline.diagnostics.quality.exceeding` gives them; `limit`: the index that warns.
    """
    notes = _notes(measured)
    cards = [
        _card(
            part,
            measured.histograms[part["feature"][0]],
            [TOLD[figure] for figure in warnings.filter(pl.col("feature") == part["feature"][0])["figure"]],
            notes.get(part["feature"][0], []),
            limit,
        )
        for part in measured.table.partition_by("feature", maintain_order=True)
    ]
    cards.sort(key=lambda card: (-card.keys["drift"], card.name))
    whole = measured.days.filter(pl.col("domain") == "all")
    environment = Environment(
        loader=FileSystemLoader([HERE, STYLE]), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("quality.html").render(
        first=whole["day"][0],
        last=whole["day"][-1],
        figures=_figures(measured, whole, warnings, cards),
        warnings=[_warning(row) for row in warnings.iter_rows(named=True)],
        notes=sorted(notes.items()),
        days=_days(measured.days),
        cards=cards,
        limit=limit,
        width=WIDTH,
        height=HEIGHT,
        line=LINE,
    )
    (out / "quality.html").write_text(page, encoding="utf-8")


def _notes(measured: Measured) -> dict[str, list[str]]:
    """By feature, what a model gains nothing from."""
    notes = {name: ["constant"] for name in measured.constant}
    for first, *others in measured.duplicated:
        notes |= {name: [*notes.get(name, []), f"equal to {first}"] for name in others}
    return notes


def _figures(
    measured: Measured, whole: pl.DataFrame, warnings: pl.DataFrame, cards: list[Card]
) -> list[tuple[str, str, str]]:
    """The few numbers to read first: name, value, and what to know about it."""
    last = measured.table.filter(pl.col("day") == whole["day"][-1])
    unknown = last.sort("unknown_rise", "feature", descending=[True, False]).row(0, named=True)
    rise = unknown["unknown_rise"]
    return [
        ("Warnings", str(warnings.height), f"{warnings['feature'].n_unique()} of {len(cards)} features"),
        ("Rows", f"{whole['rows'].sum():,}", f"{whole.height} days"),
        ("Drift of the last day", _number(cards[0].keys["drift"]), cards[0].name if cards[0].keys["drift"] else ""),
        ("Rise of unknown values", _percent(rise), unknown["feature"] if rise else ""),
    ]


def _warning(row: dict[str, Any]) -> Row:
    form = _number if row["figure"] == "psi" else _percent
    figures = (form(row["value"]), form(row["limit"]), f"{row['day']}", f"{row['days']}")
    return (row["feature"], TOLD[row["figure"]], *figures)


def _days(days: pl.DataFrame) -> tuple[Row, list[Row]]:
    """Head and rows of the table of days: rows, users, label rates, and rows by domain."""
    domains = [name for name in days["domain"].unique(maintain_order=True) if name != "all"]
    rates = [name for name in days.columns if name.startswith("rate_")]
    rows = []
    for part in days.partition_by("day", maintain_order=True):
        whole, counts = part.row(0, named=True), dict(part.select("domain", "rows").iter_rows())
        sizes = (f"{whole['rows']:,}", f"{whole['users']:,}")
        by_domain = (f"{counts[name]:,}" for name in domains)
        rows.append((f"{whole['day']}", whole["slice"], *sizes, *(_percent(whole[name]) for name in rates), *by_domain))
    return ("day", "slice", "rows", "users", *(name.removeprefix("rate_") for name in rates), *domains), rows


def _card(part: pl.DataFrame, histogram: Histogram, warned: list[str], notes: list[str], limit: float) -> Card:
    last = part.row(-1, named=True)
    train, now, told = _shares(histogram)
    distinct = isinstance(histogram.bins, Categories) or histogram.bins.distinct
    return Card(
        name=last["feature"],
        kind=last["kind"],
        warned=warned,
        notes=notes,
        bars=_bars(train, now, told),
        ends=(told[0], told[-1]) if len(told) > 1 or distinct else ("", ""),
        curve=_curve(part, limit),
        facts=_facts(part, histogram),
        keys={
            "drift": last["drift"] if last["judged"] else 0.0,
            "worst": float(part.filter("judged")["drift"].max() or 0),  # type: ignore[arg-type]
            "psi": last["psi"],
            "unknown": last["unknown"],
        },
    )


def _shares(histogram: Histogram) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[str]]:
    """Shares of the training rows and of the last day by bar of the picture, and what each bar stands for.

    Categories: unknown, the most frequent ones, the rest. Numbers: in order, missing last. Bars at either end that
    neither side has rows in are left out.
    """
    bins = histogram.bins
    if isinstance(bins, Categories):
        groups = np.minimum(np.arange(bins.size), BARS - 1)
        groups[-1] = groups.max()
        shown = histogram.common[: groups[-1] - 1]
        told = ["unknown", *shown, "rest" if len(shown) == len(histogram.common) else "less frequent and rest"]
    else:
        groups = bins.pictured
        cuts = [_short(cut) for cut in bins.bars]
        between = cuts if bins.distinct else [f"{low} to {high}" for low, high in zip(["…", *cuts], cuts, strict=False)]
        told = [*between, f"above {cuts[-1]}" if cuts else "known", "missing"]
    counts = grouped(np.stack([histogram.train, histogram.daily[-1]]), groups)
    used = counts.sum(axis=0) > 0
    kept = np.flatnonzero(used | (np.cumsum(used) * np.cumsum(used[::-1])[::-1] > 0))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares[0, kept], shares[1, kept], [told[place] for place in kept]


def _bars(train: npt.NDArray[np.float64], now: npt.NDArray[np.float64], told: list[str]) -> list[Bar]:
    step = WIDTH / len(told)
    scale = (HEIGHT - MARGIN) / max(train.max(), now.max())
    return [
        Bar(
            x=round(place * step, 1),
            width=round(step, 1),
            top=round(HEIGHT - train[place] * scale, 1),
            level=round(HEIGHT - now[place] * scale, 1),
            told=f"{text}: train {_percent(train[place])}, last day {_percent(now[place])}",
        )
        for place, text in enumerate(told)
    ]


def _curve(part: pl.DataFrame, limit: float) -> Curve:
    index = part["psi"].to_numpy()
    top = np.sqrt(max(limit, index.max()))
    x = np.linspace(MARGIN, WIDTH - MARGIN, len(index)) if len(index) > 1 else np.array([WIDTH / 2])
    y = LINE - MARGIN - np.sqrt(np.maximum(index, 0)) / top * (LINE - 2 * MARGIN)
    points = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)]
    beyond = part.select(pl.col("judged") & (pl.col("drift") > limit)).to_series()
    threshold = round(float(LINE - MARGIN - np.sqrt(limit) / top * (LINE - 2 * MARGIN)), 1)
    return Curve(points, [point for point, over in zip(points, beyond, strict=True) if over], threshold)


def _facts(part: pl.DataFrame, histogram: Histogram) -> list[tuple[str, str]]:
    last = part.row(-1, named=True)
    usual = histogram.train[histogram.bins.unknown] / max(1, int(histogram.train.sum()))
    worst = part.sort("psi", "day", descending=[True, False]).row(0, named=True)
    facts = [
        (
            "PSI",
            f"{_number(last['psi'])}, beyond chance {_number(last['drift'])}{'' if last['judged'] else '; not judged'}",
        ),
        ("", f"{_number(last['psi_before'])} against the day before"),
        ("", f"{_number(worst['psi'])} at most, on {worst['day']}"),
        ("unknown", f"{_percent(usual)} in training, {_percent(last['unknown'])} last day"),
    ]
    if last["kind"] == "category":
        facts.append(("values", f"{last['values']:,}"))
        gone = part.filter("judged", pl.col("vanished") > 0).sort("vanished_share", "day", descending=[True, False])
        found = [("new", row) for row in [last] if row["new"]]
        found += [("vanished", row) for row in gone.head(1).iter_rows(named=True)]
        for kind, row in found:
            more = ", …" if row[kind] > len(row[f"{kind}_values"]) else ""
            names = ", ".join(row[f"{kind}_values"])
            facts.append((kind, f"{row[kind]:,} on {row['day']} ({_percent(row[f'{kind}_share'])}): {names}{more}"))
        return facts
    low, high = part["minimum"].min(), part["maximum"].max()
    middle = " · ".join(_short(last[name]) for name in QUANTILES)
    facts += [
        ("mean", f"{_short(part['mean'][0])} first day, {_short(last['mean'])} last; {_percent(last['zero'])} zero"),
        ("range", f"{_short(low)} to {_short(high)}; last day's 5, 50, 95 %: {middle}"),
    ]
    if last["kind"] != "label":
        facts.append(
            ("correlation", _defined(last["correlation"], lambda value: f"{value:+.3f} with the positive label"))
        )
    return facts


def _defined(value: float | None, form: Callable[[float], str]) -> str:
    return UNDEFINED if value is None or np.isnan(value) else form(value)


def _number(value: float | None) -> str:
    return _defined(value, lambda number: f"{number:.3f}")


def _percent(value: float | None) -> str:
    return _defined(value, lambda number: f"{number:.1%}")


def _short(value: Any) -> str:
    return _defined(value, lambda number: f"{number:.3g}")
