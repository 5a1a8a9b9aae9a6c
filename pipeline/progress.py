"""Progress bars for long work, of the first of several processes; silent where nobody is looking."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from models import processes

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, behind a bar that vanishes when they are done."""
    if _silent():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total=total, transient=True, console=Console(stderr=True))


@contextmanager
def training(what: str, *, steps: int, rows: int | None, done: int) -> Iterator[Callable[[Tensor], None]]:
    """A line of an epoch of `steps` steps, of which `done` are over: rows a second if there are `rows` in it, loss and
    the time left. What it gives is to be called after each step with the mean loss."""
    if _silent():
        yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *([TextColumn("{task.fields[speed]:,.0f} rows/s")] if rows else []),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, console=Console(stderr=True)) as line:
        task = line.add_task(what, total=steps, completed=done, loss=math.nan, speed=0.0)

        def tell(loss: Tensor) -> None:
            speed = (line.tasks[0].speed or 0.0) * (rows or 0) / max(steps, 1)
            line.update(task, advance=1, loss=loss, speed=speed)

        yield tell


def _silent() -> bool:
    return processes.place() > 0 or not sys.stderr.isatty()
