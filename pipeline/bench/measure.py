"""How a benchmark measures and prints: medians of several runs, rivals in the same call, a table and one JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

from rich.console import Console
from rich.table import Table


def seconds(function: Callable[[], object], runs: int = 3) -> float:
    """Median wall-clock seconds of some runs after one that is not counted."""
    function()
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return median(taken)


def show(title: str, figures: dict[str, float]) -> None:
    """Print the figures as a table and, as the last line, as one JSON object."""
    table = Table("figure", "value", title=title)
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}")
    Console(width=100).print(table)
    print(json.dumps({name: round(value, 6) for name, value in figures.items()}))
